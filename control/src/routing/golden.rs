//! Manifests in, routing table out, in either order of events; and back to nothing.

use std::fmt::Write;

use serde_json::Value;
use tokio::time::Instant;

use super::index::Index;
use super::*;

fn inputs(manifests: &str) -> Vec<Input> {
    let documents = manifests
        .split("\n---\n")
        .filter(|text| !text.trim().is_empty());
    let read = |text: &str| {
        let object: Value = serde_saphyr::from_str(text).unwrap();
        match object["kind"].as_str().unwrap() {
            "Service" => Input::Service(serde_json::from_value(object).unwrap()),
            "EndpointSlice" => Input::Slice(serde_json::from_value(object).unwrap()),
            "Node" => Input::Node(serde_json::from_value(object).unwrap()),
            kind => panic!("no input of the table: {kind}"),
        }
    };
    documents.map(read).collect()
}

fn dump(table: &Table) -> String {
    let mut text = String::new();
    for service in table.services.values() {
        let policies = format!(
            "{:?}/{:?}",
            service.internal_policy, service.external_policy
        );
        writeln!(text, "{} {:?} {policies}", service.id, service.port_name).unwrap();
        for Frontend {
            kind,
            address,
            port,
        } in &service.frontends
        {
            let address = address.map_or("*".to_owned(), |address| address.to_string());
            writeln!(text, "  {kind:?} {address} {port}").unwrap();
        }
        let options = &service.options;
        if *options != Options::default() {
            writeln!(text, "  {}", described(options)).unwrap();
        }
        for endpoint in &service.endpoints {
            let state = match (endpoint.ready, endpoint.terminating) {
                (true, false) => "ready",
                (true, true) => "ready terminating",
                (false, _) => "terminating",
            };
            let Endpoint {
                address,
                port,
                node,
                zone,
                ..
            } = endpoint;
            write!(text, "  -> {address} {port} {node}/{zone} {state}").unwrap();
            if endpoint.weight != Endpoint::ORDINARY_WEIGHT {
                write!(text, " weight {}", endpoint.weight).unwrap();
            }
            for hint in endpoint.hinted_zones.iter().chain(&endpoint.hinted_nodes) {
                write!(text, " for {hint}").unwrap();
            }
            writeln!(text).unwrap();
        }
    }
    for NodeEntry {
        name,
        zone,
        addresses,
        pod_cidrs,
    } in table.nodes.values().map(|node| &**node)
    {
        writeln!(text, "node {name}/{zone} {addresses:?} {pod_cidrs:?}").unwrap();
    }
    text
}

/// What differs from a service that asks for nothing.
fn described(options: &Options) -> String {
    let mut words = vec![
        format!("{:?}", options.distribution),
        format!("{:?}", options.algorithm),
    ];
    words.extend(options.return_path.map(|path| format!("{path:?}")));
    words.extend(
        options
            .affinity_seconds
            .map(|seconds| format!("affinity {seconds}")),
    );
    words.extend(
        options
            .source_ranges
            .iter()
            .map(|range| format!("from {range}")),
    );
    words.extend(options.publish_not_ready.then(|| "unready too".to_owned()));
    words.extend(
        options
            .health_check_node_port
            .map(|port| format!("health at {port}")),
    );
    words.join(" ")
}

fn check(manifests: &str, expected: &str) {
    let inputs = inputs(manifests);
    let keys: Vec<_> = inputs.iter().map(|input| input.key().unwrap()).collect();
    let mut backwards = inputs.clone();
    backwards.reverse();
    for order in [inputs, backwards] {
        // All at once, one by one, and everything twice.
        let mut together = (Index::default(), Table::default());
        let mut singly = (Index::default(), Table::default());
        for input in order.iter().chain(&order) {
            together.0.apply(input.clone());
            singly.0.apply(input.clone());
            singly.0.update(&mut singly.1);
        }
        together.0.update(&mut together.1);
        for (index, table) in [&mut together, &mut singly] {
            assert_eq!(dump(table), expected);
            for key in keys.iter().chain(&keys) {
                index.remove(key);
                index.update(table);
            }
            assert_eq!(*table, Table::default());
        }
    }
}

const WEB: &str = "
kind: Service
metadata: {namespace: default, name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:10:96::a']
  externalIPs: [198.51.100.7]
  externalTrafficPolicy: Local
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
kind: EndpointSlice
metadata: {namespace: default, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}]
endpoints:
- {addresses: [10.244.1.2], nodeName: n2, zone: b, conditions: {ready: true}}
- {addresses: [10.244.0.2], nodeName: n1, zone: a, conditions: {ready: true, serving: true, terminating: false}}
- {addresses: [10.244.0.3], nodeName: n1, zone: a, conditions: {ready: false, serving: false}}
- {addresses: [10.244.0.4], nodeName: n1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.244.0.5]}
---
kind: EndpointSlice
metadata: {namespace: default, name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: ['fd00:10:244::2'], nodeName: n1, conditions: {ready: true}}]
---
kind: EndpointSlice
metadata: {namespace: other, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.9.9]}]
";

#[test]
fn a_service_with_two_ports_and_two_families() {
    check(
        WEB,
        "default/web:53/UDP \"dns\" Cluster/Local
  ClusterIp 10.96.0.10 53
  ClusterIp fd00:10:96::a 53
  NodePort * 30053
  ExternalIp 198.51.100.7 53
  -> 10.244.0.2 53 n1/a ready
  -> 10.244.0.4 53 n1/ terminating
  -> 10.244.0.5 53 / ready
  -> 10.244.1.2 53 n2/b ready
default/web:80/TCP \"http\" Cluster/Local
  ClusterIp 10.96.0.10 80
  ClusterIp fd00:10:96::a 80
  NodePort * 30080
  ExternalIp 198.51.100.7 80
  -> 10.244.0.2 8080 n1/a ready
  -> 10.244.0.4 8080 n1/ terminating
  -> 10.244.0.5 8080 / ready
  -> 10.244.1.2 8080 n2/b ready
  -> fd00:10:244::2 8080 n1/ ready
",
    );
}

#[test]
fn services_without_addresses_are_left_out() {
    check(
        "
kind: Service
metadata: {namespace: default, name: headless}
spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: default, name: elsewhere}
spec: {type: ExternalName, externalName: example.com, ports: [{port: 80}]}
---
kind: Service
metadata: {namespace: default, name: waiting}
spec: {ports: [{port: 80}]}
",
        "",
    );
}

#[test]
fn a_service_without_endpoints_stays_so_that_clients_are_refused() {
    check(
        "
kind: Service
metadata: {namespace: default, name: empty}
spec: {clusterIP: 10.96.0.11, internalTrafficPolicy: Local, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}, {hostname: lb.example.com}]}}
",
        "default/empty:80/TCP \"\" Local/Cluster
  ClusterIp 10.96.0.11 80
  LoadBalancer 203.0.113.5 80
",
    );
}

#[test]
fn an_endpoint_in_two_slices_counts_once_in_its_better_state() {
    check(
        "
kind: Service
metadata: {namespace: default, name: moved}
spec: {clusterIP: 10.96.0.12, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {namespace: default, name: moved-1, labels: {kubernetes.io/service-name: moved}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints: [{addresses: [10.244.0.2], conditions: {ready: false, serving: true, terminating: true}}]
---
kind: EndpointSlice
metadata: {namespace: default, name: moved-2, labels: {kubernetes.io/service-name: moved}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.2], nodeName: n1, conditions: {ready: true}}]
",
        "default/moved:80/TCP \"\" Cluster/Cluster
  ClusterIp 10.96.0.12 80
  -> 10.244.0.2 8080 n1/ ready
",
    );
}

#[test]
fn what_a_service_asks_for_is_told() {
    check(
        "
kind: Service
metadata: {namespace: default, name: lb, annotations: {portolan.dev/algorithm: least-connections, portolan.dev/return-path: direct}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.13
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  loadBalancerSourceRanges: [203.0.113.0/24, 'fd00::/8']
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  trafficDistribution: PreferClose
  publishNotReadyAddresses: true
  ports: [{port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.5}, {ip: 203.0.113.6, ipMode: Proxy}]}}
---
kind: EndpointSlice
metadata: {namespace: default, name: lb-1, labels: {kubernetes.io/service-name: lb}, annotations: {portolan.dev/weights: '{\"10.244.0.2\": 250}'}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- {addresses: [10.244.0.2], nodeName: n1, zone: a, hints: {forZones: [{name: a}], forNodes: [{name: n1}]}}
- {addresses: [10.244.0.3], nodeName: n2, zone: b, hints: {forZones: [{name: b}]}}
",
        "default/lb:80/TCP \"\" Cluster/Local
  ClusterIp 10.96.0.13 80
  NodePort * 30080
  LoadBalancer 203.0.113.5 80
  SameZone LeastConnections Direct affinity 60 from 203.0.113.0/24 from fd00::/8 unready too health at 30999
  -> 10.244.0.2 8080 n1/a ready weight 250 for a for n1
  -> 10.244.0.3 8080 n2/b ready for b
",
    );
}

#[test]
fn nodes_with_their_zones_addresses_and_cidrs() {
    check(
        "
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDR: 10.244.0.0/24, podCIDRs: [10.244.0.0/24, 'fd00:10:244::/64']}
status:
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 10.89.0.11}
  - {type: InternalIP, address: 'fd00:89::11'}
---
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.1.0/24}
",
        "node n1/a [10.89.0.11, fd00:89::11] [10.244.0.0/24, fd00:10:244::/64]
node n2/ [] [10.244.1.0/24]
",
    );
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut index = Index::default();
    let mut table = Table::default();
    for input in inputs(WEB) {
        index.apply(input);
    }
    let moved = WEB.replace("service-name: web}", "service-name: other}");
    for input in inputs(&moved)
        .into_iter()
        .filter(|input| matches!(input, Input::Slice(_)))
    {
        index.apply(input);
    }
    index.update(&mut table);
    assert!(
        table
            .services
            .values()
            .all(|service| service.endpoints.is_empty())
    );
}

/// A publisher with a table of so many services, each of its own generation.
fn published(services: u16) -> Publisher {
    let publisher = Publisher::new("epoch");
    let mut index = Index::default();
    publisher.publish(Table::default(), Instant::now());
    for number in 0..services {
        set(&publisher, &mut index, &format!("s{number}"), number + 1);
    }
    publisher
}

fn set(publisher: &Publisher, index: &mut Index, name: &str, port: u16) {
    let service = format!(
        "kind: Service
metadata: {{namespace: default, name: {name}}}
spec: {{clusterIP: 10.96.0.12, ports: [{{port: {port}}}]}}"
    );
    index.apply(inputs(&service).remove(0));
    let mut table = publisher.table();
    index.update(&mut table);
    publisher.publish(table, Instant::now());
}

#[tokio::test]
async fn a_delta_holds_what_changed_and_no_more() {
    let publisher = published(3);
    let current = publisher.subscribe().borrow().clone().unwrap();
    assert_eq!(current.generation, 4);
    let Change::Delta {
        base,
        services,
        gone_services,
        ..
    } = current.since("epoch", 3)
    else {
        panic!("one generation back is remembered");
    };
    assert_eq!((base, services.len(), gone_services.len()), (3, 1, 0));
    assert_eq!(services[0].id, "default/s2:3/TCP");
    let Change::Delta { services, .. } = current.since("epoch", 1) else {
        panic!("three generations back are remembered");
    };
    assert_eq!(services.len(), 3);
    let Change::Delta {
        base: 4,
        services,
        gone_services,
        nodes,
        gone_nodes,
    } = current.since("epoch", 4)
    else {
        panic!("one who has it all gets an empty delta");
    };
    let counts = [
        services.len(),
        gone_services.len(),
        nodes.len(),
        gone_nodes.len(),
    ];
    assert_eq!(counts, [0; 4]);
    for (epoch, generation) in [("other", 3), ("epoch", 0), ("epoch", 5)] {
        assert_eq!(
            current.since(epoch, generation),
            Change::Snapshot(current.table.clone())
        );
    }
}

#[tokio::test]
async fn a_port_that_moves_is_gone_and_new_in_one_delta() {
    let publisher = Publisher::new("epoch");
    let mut index = Index::default();
    set(&publisher, &mut index, "web", 80);
    set(&publisher, &mut index, "web", 81);
    let current = publisher.subscribe().borrow().clone().unwrap();
    let Change::Delta {
        services,
        gone_services,
        ..
    } = current.since("epoch", 1)
    else {
        panic!("one generation back is remembered");
    };
    assert_eq!(services[0].id, "default/web:81/TCP");
    assert_eq!(gone_services, ["default/web:80/TCP"]);
}

#[tokio::test]
async fn what_changes_nothing_is_no_generation() {
    let publisher = published(1);
    let table = publisher.table();
    publisher.publish(table, Instant::now());
    let current = publisher.subscribe().borrow().clone().unwrap();
    assert_eq!(current.generation, 2);
}

#[tokio::test]
async fn one_who_was_away_for_too_long_gets_it_all() {
    let publisher = published(1100);
    let current = publisher.subscribe().borrow().clone().unwrap();
    assert!(matches!(current.since("epoch", 2), Change::Snapshot(_)));
    assert!(matches!(current.since("epoch", 1000), Change::Delta { .. }));
}
