//! What Kubernetes answers to objects that are not valid, word for word, and what it makes of defaults.

use serde_json::{Value, json};

use super::super::{Faults, Resource, Table};
use crate::api::ResourceId;
use crate::api::meta;
use crate::resource::rows;

fn with_row<T>(id: ResourceId, use_row: impl FnOnce(&Resource) -> T) -> T {
    let table = Table::built_in();
    let row = table.get(id).expect("a built-in kind");
    use_row(row)
}

/// The faults of a new object.
pub fn faults(id: ResourceId, mut object: Value) -> Vec<String> {
    with_row(id, |row| {
        row.behaviour.default(&mut object);
        let mut faults = Faults::new();
        row.behaviour.validate(&object, &mut faults);
        lines(faults)
    })
}

/// The faults of a change.
pub fn change_faults(id: ResourceId, old: &Value, new: &Value) -> Vec<String> {
    with_row(id, |row| {
        let mut faults = Faults::new();
        row.behaviour.validate_update(new, old, &mut faults);
        lines(faults)
    })
}

fn lines(faults: Faults) -> Vec<String> {
    faults
        .into_causes()
        .iter()
        .map(crate::api::status::Cause::line)
        .collect()
}

pub fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    let place = object.pointer_mut(parent).expect("the parent is there");
    match field.parse::<usize>() {
        Ok(index) => place[index] = value,
        Err(_) => place[field] = value,
    }
    object
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "demo:1"}]}})
}

/// A pointer, what is put there, and a fault that it must make.
type Fault<'a> = (&'a str, Value, &'a str);

fn check_pods<const N: usize>(cases: [Fault<'_>; N]) {
    for (pointer, value, expected) in cases {
        let found = faults(rows::PODS, set(pod(), pointer, value));
        // Kubernetes quotes with Go's rules, in which a quote inside is escaped too.
        let found: Vec<String> = found
            .into_iter()
            .map(|line| line.replace("\\\"", "\""))
            .collect();
        assert!(found.contains(&expected.to_owned()), "{pointer}: {found:?}");
    }
}

#[test]
fn a_whole_pod_has_no_fault() {
    assert_eq!(faults(rows::PODS, pod()), Vec::<String>::new());
}

#[test]
fn pods() {
    check_pods([
        (
            "/spec/containers",
            json!([]),
            "spec.containers: Required value",
        ),
        (
            "/spec/containers/0/name",
            json!(""),
            "spec.containers[0].name: Required value",
        ),
        (
            "/spec/containers/0/image",
            json!(""),
            "spec.containers[0].image: Required value",
        ),
        (
            "/spec/containers/0/image",
            json!(" x"),
            "spec.containers[0].image: Invalid value: \" x\": must not have leading or trailing whitespace",
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "/spec/containers/0/ports",
            json!([{"name": "http"}]),
            "spec.containers[0].ports[0].containerPort: Required value",
        ),
        (
            "/spec/containers/0/ports",
            json!([{"containerPort": 1, "protocol": "HTTP"}]),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"HTTP\": supported values: \"SCTP\", \"TCP\", \
             \"UDP\"",
        ),
        (
            "/spec/containers/0/imagePullPolicy",
            json!("Sometimes"),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
             \"IfNotPresent\", \"Never\"",
        ),
    ]);
}

#[test]
fn pods_in_depth() {
    check_pods([
        (
            "/spec/containers/0/volumeMounts",
            json!([{"name": "v", "mountPath": "/v"}]),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            "/spec/containers/0/env",
            json!([{"name": "a=b", "value": "x"}]),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist \
             only of printable ASCII characters other than '='",
        ),
        (
            "/spec/containers/0/resources",
            json!({"limits": {"gpu": "1"}}),
            "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for \
             containers",
        ),
        (
            "/spec/containers/0/livenessProbe",
            json!({}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            "/spec/volumes",
            json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            "/spec/tolerations",
            json!([{"operator": "Equal"}]),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, \
             which means \"match all values and all keys\"",
        ),
        (
            "/spec/activeDeadlineSeconds",
            json!(0),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
    ]);
}

#[test]
fn pods_change_little() {
    let mut old = pod();
    with_row(rows::PODS, |row| row.behaviour.default(&mut old));
    let image = set(old.clone(), "/spec/containers/0/image", json!("demo:2"));
    assert!(change_faults(rows::PODS, &old, &image).is_empty());
    let command = set(old.clone(), "/spec/containers/0/command", json!(["x"]));
    let found = change_faults(rows::PODS, &old, &command);
    assert!(
        found[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
        "{found:?}"
    );
}

fn service() -> Value {
    json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "x"}}})
}

#[test]
fn services() {
    for (pointer, value, expected) in [
        ("/spec/ports", json!([]), "spec.ports: Required value"),
        (
            "/spec/ports",
            json!([{"port": 80}, {"port": 81}]),
            "spec.ports[0].name: Required value",
        ),
        (
            "/spec/ports",
            json!([{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            "/spec/ports/0",
            json!({"port": 0}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            "/spec/ports/0",
            json!({"port": 80, "nodePort": 30000}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "/spec/ports/0",
            json!({"port": 80, "targetPort": "8080"}),
            "spec.ports[0].targetPort: Invalid value: \"8080\": must contain at least one letter (a-z)",
        ),
        (
            "/spec/type",
            json!("External"),
            "spec.type: Unsupported value: \"External\": supported values: \"ClusterIP\", \"ExternalName\", \
             \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "/spec/type",
            json!("ExternalName"),
            "spec.externalName: Required value",
        ),
        (
            "/spec/sessionAffinity",
            json!("Some"),
            "spec.sessionAffinity: Unsupported value: \"Some\": supported values: \"ClientIP\", \"None\"",
        ),
        (
            "/spec/loadBalancerSourceRanges",
            json!(["10.0.0.0/33"]),
            "spec.loadBalancerSourceRanges[0]: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value, \
             (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            "/spec/loadBalancerSourceRanges",
            json!(["10.0.0.0/8"]),
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ),
        (
            "/spec/healthCheckNodePort",
            json!(30000),
            "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and \
             `externalTrafficPolicy` is 'Local'",
        ),
    ] {
        let found = faults(rows::SERVICES, set(service(), pointer, value));
        assert!(found.contains(&expected.to_owned()), "{pointer}: {found:?}");
    }
    assert!(faults(rows::SERVICES, service()).is_empty());
}

#[test]
fn a_service_that_changes_its_type_loses_the_fields_of_the_old_one() {
    let balanced = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "allocateLoadBalancerNodePorts": true,
        "loadBalancerClass": "x/y", "healthCheckNodePort": 30999, "ports": [{"port": 80}], "selector": {"app": "x"},
    });
    let named =
        json!({"type": "ExternalName", "externalName": "a.example", "ports": [{"port": 80}]});
    for (spec, kind, lost) in [
        (
            balanced.clone(),
            "ClusterIP",
            &[
                "externalTrafficPolicy",
                "allocateLoadBalancerNodePorts",
                "loadBalancerClass",
                "healthCheckNodePort",
            ][..],
        ),
        (
            balanced,
            "NodePort",
            &[
                "allocateLoadBalancerNodePorts",
                "loadBalancerClass",
                "healthCheckNodePort",
            ],
        ),
        (named, "ClusterIP", &["externalName"]),
    ] {
        let old = set(service(), "/spec", spec);
        let mut new = set(old.clone(), "/spec/type", json!(kind));
        with_row(rows::SERVICES, |row| {
            row.behaviour.prepare_update(&mut new, &old);
        });
        for field in lost {
            assert!(
                new["spec"].get(field).is_none(),
                "{kind} has no {field}: {new}"
            );
        }
        assert_eq!(faults(rows::SERVICES, new), Vec::<String>::new());
    }
}

#[test]
fn a_service_that_no_longer_keeps_to_local_endpoints_needs_no_health_check() {
    let local = set(
        service(),
        "/spec",
        json!({
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
            "ports": [{"port": 80}], "selector": {"app": "x"},
        }),
    );
    let mut new = set(
        local.clone(),
        "/spec/externalTrafficPolicy",
        json!("Cluster"),
    );
    with_row(rows::SERVICES, |row| {
        row.behaviour.prepare_update(&mut new, &local);
    });
    assert!(new["spec"].get("healthCheckNodePort").is_none(), "{new}");
    assert_eq!(faults(rows::SERVICES, new), Vec::<String>::new());
}

#[test]
fn a_field_that_an_update_itself_asks_for_is_not_overlooked() {
    let old = set(service(), "/spec/type", json!("NodePort"));
    let mut new = set(service(), "/spec/externalTrafficPolicy", json!("Local"));
    with_row(rows::SERVICES, |row| {
        row.behaviour.prepare_update(&mut new, &old);
    });
    assert_eq!(
        faults(rows::SERVICES, new),
        [
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"
        ]
    );
}

#[test]
fn a_service_keeps_its_address_and_ports() {
    let old = json!({"metadata": {"name": "s"}, "spec": {
        "type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}],
    }});
    let mut new = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}});
    with_row(rows::SERVICES, |row| {
        row.behaviour.prepare_update(&mut new, &old);
    });
    assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
    let moved = set(old.clone(), "/spec/clusterIPs", json!(["10.96.0.10"]));
    assert_eq!(
        change_faults(rows::SERVICES, &old, &moved),
        ["spec.clusterIPs[0]: Invalid value: \"10.96.0.10\": may not change once set"]
    );
}

#[test]
fn another_address_alone_is_meant_for_the_list_too() {
    let old = json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}});
    let mut new = set(old.clone(), "/spec/clusterIP", json!("10.0.0.2"));
    with_row(rows::SERVICES, |row| {
        row.behaviour.prepare_update(&mut new, &old);
    });
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.0.0.2"]));
    let found = change_faults(rows::SERVICES, &old, &new);
    let expected = "spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": may not change once set";
    assert!(found.contains(&expected.to_owned()), "{found:?}");
}

#[test]
fn workloads() {
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"app": "d"}},
        "template": {
            "metadata": {"labels": {"app": "d"}},
            "spec": {"containers": [{"name": "c", "image": "demo"}]},
        },
    }});
    assert!(faults(rows::DEPLOYMENTS, deployment.clone()).is_empty());
    for (pointer, value, expected) in [
        (
            "/spec/replicas",
            json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "/spec/selector",
            json!({}),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
        ),
        (
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "/spec/strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
        (
            "/spec/progressDeadlineSeconds",
            json!(0),
            "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
        ),
    ] {
        let found = faults(rows::DEPLOYMENTS, set(deployment.clone(), pointer, value));
        assert!(found.contains(&expected.to_owned()), "{pointer}: {found:?}");
    }
    let other = set(
        deployment.clone(),
        "/spec/selector",
        json!({"matchLabels": {"app": "e"}}),
    );
    assert_eq!(
        change_faults(rows::DEPLOYMENTS, &deployment, &other),
        ["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"e\"}}: field is immutable"]
    );
}

#[test]
fn config_maps_and_secrets() {
    let map = json!({"metadata": {"name": "m"}, "data": {"a b": "x"}});
    let found = faults(rows::CONFIG_MAPS, map);
    assert!(
        found[0]
            .starts_with("data[a b]: Invalid value: \"a b\": a valid config key must consist of"),
        "{found:?}"
    );
    let frozen = json!({"immutable": true, "data": {"a": "1"}});
    let changed = json!({"immutable": true, "data": {"a": "2"}});
    assert_eq!(
        change_faults(rows::CONFIG_MAPS, &frozen, &changed),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    let tls = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls"});
    assert_eq!(
        faults(rows::SECRETS, tls),
        [
            "data[tls.crt]: Required value",
            "data[tls.key]: Required value"
        ]
    );
    let mut written = json!({"metadata": {"name": "s"}, "stringData": {"a": "x"}});
    with_row(rows::SECRETS, |row| row.behaviour.default(&mut written));
    assert_eq!(written["data"]["a"], "eA==");
    assert_eq!(written.get("stringData"), None);
}

#[test]
fn nodes_and_events() {
    let node = json!({"metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.0.0.0/24", "nothing"]}});
    let found = faults(rows::NODES, node.clone());
    assert_eq!(found.len(), 1);
    assert!(
        found[0].starts_with("spec.podCIDRs[1]: Invalid value: \"nothing\": must be a valid CIDR")
    );
    let moved = set(node.clone(), "/spec/podCIDRs", json!(["10.0.1.0/24"]));
    assert_eq!(change_faults(rows::NODES, &node, &moved).len(), 1);
    let event = json!({
        "metadata": {"name": "e", "namespace": "a"},
        "involvedObject": {"namespace": "b"},
    });
    assert_eq!(
        faults(rows::EVENTS, event),
        ["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"]
    );
    assert_eq!(meta::name(&node), "n");
}
