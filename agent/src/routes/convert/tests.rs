//! Wire messages as they are, and as they can't be.

use super::*;

fn endpoint(last: u8, node: &str, zone: &str) -> wire::Endpoint {
    wire::Endpoint {
        address: vec![10, 244, 0, last],
        port: 8080,
        node: node.to_owned(),
        zone: zone.to_owned(),
        ready: true,
        serving: true,
        terminating: false,
        ..wire::Endpoint::default()
    }
}

pub fn service() -> wire::ServicePort {
    wire::ServicePort {
        id: "default/web:80/TCP".to_owned(),
        protocol: wire::Protocol::Tcp.into(),
        frontends: vec![
            wire::Frontend {
                kind: wire::FrontendKind::ClusterIp.into(),
                address: vec![10, 96, 0, 10],
                port: 80,
            },
            wire::Frontend {
                kind: wire::FrontendKind::NodePort.into(),
                address: Vec::new(),
                port: 30080,
            },
        ],
        endpoints: vec![
            endpoint(3, "n3", "b"),
            endpoint(1, "n1", "a"),
            endpoint(2, "n2", "a"),
        ],
        ..wire::ServicePort::default()
    }
}

#[test]
fn order_of_endpoints_is_no_difference() {
    let mut other = service();
    other.endpoints.reverse();
    assert_eq!(
        ServiceRoute::try_from(service()),
        ServiceRoute::try_from(other)
    );
}

#[test]
fn endpoints_that_cannot_serve_are_left_out() {
    let mut service = service();
    service.endpoints[0].ready = false;
    service.endpoints[0].serving = false;
    service.endpoints[1].ready = false;
    service.endpoints[1].terminating = true;
    let route = ServiceRoute::try_from(service).expect("a service");
    let seen: Vec<_> = route
        .endpoints
        .iter()
        .map(|endpoint| (endpoint.node.as_str(), endpoint.terminating))
        .collect();
    assert_eq!(seen, [("n1", true), ("n2", false)]);
}

/// How a service is broken, and what is said of it.
type Case = (fn(&mut wire::ServicePort), &'static str);

#[test]
fn what_cannot_be_is_named() {
    let broken = |change: fn(&mut wire::ServicePort)| {
        let mut service = service();
        change(&mut service);
        ServiceRoute::try_from(service)
            .expect_err("broken")
            .to_string()
    };
    let cases: [Case; 10] = [
        (|s| s.id.clear(), "a service has no name"),
        (|s| s.protocol = 9, "default/web:80/TCP: unknown protocol 9"),
        (
            |s| s.frontends[0].kind = 0,
            "default/web:80/TCP: unknown frontend kind 0",
        ),
        (
            |s| s.frontends[0].port = 70_000,
            "default/web:80/TCP: port 70000",
        ),
        (
            |s| s.endpoints[0].address = vec![1],
            "default/web:80/TCP: an address of 1 bytes",
        ),
        (
            |s| s.internal_traffic_policy = 7,
            "default/web:80/TCP: unknown traffic policy 7",
        ),
        (
            |s| s.distribution = 7,
            "default/web:80/TCP: unknown distribution 7",
        ),
        (
            |s| s.algorithm = 7,
            "default/web:80/TCP: unknown algorithm 7",
        ),
        (
            |s| s.return_path = 7,
            "default/web:80/TCP: unknown return path 7",
        ),
        (
            |s| s.source_ranges = vec!["10.0.0.0/33".to_owned()],
            "default/web:80/TCP: \"10.0.0.0/33\" is not a CIDR",
        ),
    ];
    for (change, message) in cases {
        assert_eq!(broken(change), message);
    }
}

#[test]
fn nodes_carry_their_pod_cidrs() {
    let node = wire::Node {
        name: "n2".to_owned(),
        addresses: vec![vec![10, 89, 0, 12]],
        pod_cidrs: vec!["10.244.2.0/24".to_owned()],
        ..wire::Node::default()
    };
    let route = NodeRoute::try_from(node.clone()).expect("a node");
    assert_eq!(route.as_peer().pod_cidrs.len(), 1);
    let broken = wire::Node {
        pod_cidrs: vec!["10.244".to_owned()],
        ..node
    };
    let error = NodeRoute::try_from(broken).expect_err("no CIDR");
    assert_eq!(error.to_string(), "n2: \"10.244\" is not a CIDR");
}
