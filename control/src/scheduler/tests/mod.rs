//! Plans as text.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

use super::{Policy, demand::Demand, plan, snapshot::Snapshot};

mod preemption;
mod volumes;
mod wishes;

/// How a misfit on one node ends where nobody matters less.
const NO_VICTIMS: &str =
    " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.\n";

fn node(name: &str, change: &Value) -> Node {
    let mut object = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {
            "allocatable": {"cpu": "2", "memory": "2Gi", "pods": "10"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).expect("a node")
}

fn pod(name: &str, change: &Value) -> Pod {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "128Mi"}}}]},
    });
    json_patch::merge(&mut object, change);
    serde_json::from_value(object).expect("a pod")
}

fn requests(cpu: &str, memory: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}})
}

fn owned(owner: &str) -> Value {
    json!({"metadata": {"ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]}})
}

fn cluster(nodes: &[Node]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

fn wait(snapshot: &mut Snapshot, pods: &[Pod]) {
    for pod in pods {
        snapshot.add_pending(&Arc::new(Demand::of(pod)));
    }
}

fn text(snapshot: &Snapshot) -> String {
    plan(snapshot, &Policy::default()).to_string()
}

#[test]
fn replicas_spread_over_nodes() {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    wait(
        &mut snapshot,
        &[pod("a", &owned("web")), pod("b", &owned("web"))],
    );
    let plan = plan(&snapshot, &Policy::default());
    let mut nodes: Vec<_> = plan
        .placements
        .iter()
        .map(|(_, node)| node.as_str())
        .collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["n1", "n2"]);

    // Also when one of them is there already, and its node is the emptier one.
    let mut snapshot = cluster(&[
        node(
            "n1",
            &json!({"status": {"allocatable": {"cpu": "8", "memory": "8Gi"}}}),
        ),
        node("n2", &json!({})),
    ]);
    snapshot.place(&Arc::new(Demand::of(&pod("a", &owned("web")))), "n1");
    wait(&mut snapshot, &[pod("b", &owned("web"))]);
    assert_eq!(text(&snapshot), "b -> n2\n");
}

#[test]
fn replicas_spread_over_zones_before_they_double_up() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}});
    let mut snapshot = cluster(&[
        node("n1", &zone("east")),
        node("n2", &zone("east")),
        node("n3", &zone("west")),
    ]);
    snapshot.place(&Arc::new(Demand::of(&pod("a", &owned("web")))), "n1");
    wait(&mut snapshot, &[pod("b", &owned("web"))]);
    assert_eq!(text(&snapshot), "b -> n3\n");
}

#[test]
fn the_emptier_node_is_preferred() {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    snapshot.place(
        &Arc::new(Demand::of(&pod("big", &requests("1", "1Gi")))),
        "n1",
    );
    wait(&mut snapshot, &[pod("a", &json!({}))]);
    assert_eq!(text(&snapshot), "a -> n2\n");
}

#[test]
fn what_does_not_fit_says_why_node_by_node() {
    let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "value": "x", "effect": "NoSchedule"}]}});
    let mut snapshot = cluster(&[
        node("n1", &json!({})),
        node(
            "n2",
            &json!({"status": {"allocatable": {"cpu": "1", "memory": "64Mi"}}}),
        ),
        node("n3", &taint("dedicated")),
        node("n4", &json!({"spec": {"unschedulable": true}})),
        node(
            "n5",
            &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        ),
    ]);
    wait(&mut snapshot, &[pod("big", &requests("4", "1Gi"))]);
    assert_eq!(
        text(&snapshot),
        "big -> 0/5 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint {dedicated: x}, \
         1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }, 1 node(s) were unschedulable, \
         2 Insufficient cpu. preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling.\n"
    );
    assert_eq!(
        {
            let mut empty = cluster(&[]);
            wait(&mut empty, &[pod("a", &json!({}))]);
            text(&empty)
        },
        "a -> no nodes available to schedule pods\n"
    );
}

#[test]
fn room_is_counted_within_a_round_and_given_back_after() {
    let mut snapshot = cluster(&[node("n1", &json!({}))]);
    let pods: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|name| pod(name, &json!({})))
        .into();
    wait(&mut snapshot, &pods);
    assert_eq!(
        text(&snapshot),
        "a -> n1\nb -> n1\nc -> n1\nd -> n1\ne -> 0/1 nodes are available: 1 Insufficient cpu."
            .to_owned()
            + NO_VICTIMS
    );
    for (demand, node) in plan(&snapshot, &Policy::default()).placements {
        snapshot.place(&demand, &node);
    }
    assert!(text(&snapshot).starts_with("e -> 0/1"));
    snapshot.unplace(&Demand::of(&pods[1]).key);
    assert_eq!(text(&snapshot), "e -> n1\n");
}

#[test]
fn pods_of_a_node_that_is_not_known_yet_are_counted_when_it_comes() {
    let mut snapshot = cluster(&[]);
    snapshot.place(
        &Arc::new(Demand::of(&pod("big", &requests("2", "1Gi")))),
        "n1",
    );
    snapshot.set_node(&node("n1", &json!({})));
    wait(&mut snapshot, &[pod("a", &json!({}))]);
    assert_eq!(
        text(&snapshot),
        "a -> 0/1 nodes are available: 1 Insufficient cpu.".to_owned() + NO_VICTIMS
    );
    snapshot.remove_node("n1");
    snapshot.set_node(&node("n2", &json!({})));
    assert_eq!(text(&snapshot), "a -> n2\n");
}

#[test]
fn selectors_affinity_tolerations_and_ports() {
    let mut snapshot = cluster(&[
        node("n1", &json!({"metadata": {"labels": {"disk": "ssd"}}})),
        node(
            "n2",
            &json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}}),
        ),
        node("n3", &json!({})),
    ]);
    let affinity =
        |kind: &str, term: &Value| json!({"spec": {"affinity": {"nodeAffinity": {kind: term}}}});
    let in_n3 = json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["n3"]}]});
    let port = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}]}], "nodeSelector": {"disk": "ssd"}}});
    let pods = vec![
        pod(
            "a-selector",
            &json!({"spec": {"nodeSelector": {"disk": "ssd"}}}),
        ),
        pod(
            "b-required",
            &affinity(
                "requiredDuringSchedulingIgnoredDuringExecution",
                &json!({"nodeSelectorTerms": [in_n3]}),
            ),
        ),
        pod(
            "c-preferred",
            &affinity(
                "preferredDuringSchedulingIgnoredDuringExecution",
                &json!([{"weight": 100, "preference": in_n3}]),
            ),
        ),
        pod(
            "d-tolerant",
            &json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n2"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}}),
        ),
        pod("e-port", &port),
        pod("f-port", &port),
        pod(
            "g-nowhere",
            &json!({"spec": {"nodeSelector": {"disk": "tape"}, "tolerations": [{"operator": "Exists"}]}}),
        ),
    ];
    wait(&mut snapshot, &pods);
    assert_eq!(
        text(&snapshot),
        "a-selector -> n1\nb-required -> n3\nc-preferred -> n3\nd-tolerant -> n2\ne-port -> n1\n\
         f-port -> 0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, \
         1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {gpu: yes}. \
         preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, \
         2 Preemption is not helpful for scheduling.\n\
         g-nowhere -> 0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. \
         preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.\n"
    );
}

#[test]
fn extended_resources_and_init_containers_count() {
    let mut snapshot = cluster(&[node(
        "n1",
        &json!({"status": {"allocatable": {"example.com/gpu": "1"}}}),
    )]);
    let gpu = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}});
    let init = json!({"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1900m"}}}]}});
    wait(
        &mut snapshot,
        &[
            pod("a", &gpu),
            pod("b", &gpu),
            pod("c", &init),
            pod("d", &json!({})),
        ],
    );
    assert_eq!(
        text(&snapshot),
        format!(
            "a -> n1\nc -> n1\nb -> 0/1 nodes are available: 1 Insufficient example.com/gpu.{NO_VICTIMS}\
             d -> 0/1 nodes are available: 1 Insufficient cpu.{NO_VICTIMS}"
        )
    );
}

#[test]
fn priority_goes_first() {
    let mut snapshot = cluster(&[node(
        "n1",
        &json!({"status": {"allocatable": {"pods": "1"}}}),
    )]);
    wait(
        &mut snapshot,
        &[
            pod("low", &json!({})),
            pod("high", &json!({"spec": {"priority": 10}})),
        ],
    );
    assert_eq!(
        text(&snapshot),
        format!("high -> n1\nlow -> 0/1 nodes are available: 1 Too many pods.{NO_VICTIMS}")
    );
}

#[test]
fn the_same_seed_gives_the_same_plan() {
    let nodes: Vec<_> = (0..300)
        .map(|number| node(&format!("n{number}"), &json!({})))
        .collect();
    let mut snapshot = cluster(&nodes);
    let pods: Vec<_> = (0..200)
        .map(|number| pod(&format!("p{number}"), &json!({})))
        .collect();
    wait(&mut snapshot, &pods);
    assert_eq!(text(&snapshot), text(&snapshot));
    let other = plan(
        &snapshot,
        &Policy {
            seed: 9,
            ..Policy::default()
        },
    )
    .to_string();
    assert_ne!(text(&snapshot), other);
}

#[test]
fn thousands_of_nodes_do_not_slow_it_down_beyond_measure() {
    let nodes: Vec<_> = (0..1000)
        .map(|number| node(&format!("n{number}"), &json!({"status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "200"}}})))
        .collect();
    let mut snapshot = cluster(&nodes);
    let pods: Vec<_> = (0..500)
        .map(|number| {
            pod(
                &format!("p{number}"),
                &owned(&format!("set{}", number % 50)),
            )
        })
        .collect();
    wait(&mut snapshot, &pods);
    let begun = std::time::Instant::now();
    let plan = plan(
        &snapshot,
        &Policy {
            batch: 500,
            ..Policy::default()
        },
    );
    let took = begun.elapsed();
    assert_eq!(plan.placements.len(), 500);
    // A bound for any machine; the benchmark has the true numbers.
    assert!(took.as_secs() < 20, "{took:?}");
    println!("500 pods on 1000 nodes in {took:?}");
}
