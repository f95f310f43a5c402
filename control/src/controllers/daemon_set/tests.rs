//! Plans of daemon sets, by cases.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use serde_json::{Value, json};

use super::plan::{Plan, plan};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "what json! makes is passed on"
)]
fn set(strategy: Value, pod: Value) -> DaemonSet {
    let mut spec = json!({"containers": []});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), pod) {
        spec.extend(more);
    }
    serde_json::from_value(json!({
        "metadata": {"name": "d", "uid": "u", "generation": 3},
        "spec": {"selector": {}, "updateStrategy": strategy, "template": {"spec": spec}},
    }))
    .expect("a set")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "what json! makes is passed on"
)]
fn node(name: &str, rest: Value) -> Arc<Node> {
    let node = json!({
        "metadata": {"name": name, "labels": {"name": name}},
        "spec": rest,
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn nodes() -> Vec<Arc<Node>> {
    ["n1", "n2", "n3"]
        .map(|name| node(name, json!({})))
        .to_vec()
}

fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<Pod> {
    let ready = if ready { "True" } else { "False" };
    let pod = json!({
        "metadata": {"name": name, "labels": {"controller-revision-hash": hash}},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn shown(plan: &Plan) -> String {
    let gone = plan
        .delete
        .iter()
        .filter_map(|pod| pod.metadata.name.clone());
    let made = plan.create.iter().map(|node| format!("+{node}"));
    made.chain(gone.map(|name| format!("-{name}")))
        .collect::<Vec<_>>()
        .join(" ")
}

fn round(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    plan(set, nodes, pods, ("new", now()))
}

#[test]
fn every_node_that_wants_one_has_a_pod() {
    let all = set(json!({}), json!({}));
    assert_eq!(shown(&round(&all, &nodes(), &[])), "+n1 +n2 +n3");
    let some = set(json!({}), json!({"nodeSelector": {"name": "n2"}}));
    assert_eq!(shown(&round(&some, &nodes(), &[])), "+n2");
    let pods = [
        pod("a", "n1", "new", true),
        pod("b", "n1", "new", true),
        pod("c", "gone", "new", true),
    ];
    let plan = round(&some, &nodes(), &pods);
    assert_eq!(shown(&plan), "+n2 -a -b -c");
    assert_eq!(plan.status.number_misscheduled, 1);
}

#[test]
fn taints_keep_out_or_expel() {
    let taint = |effect: &str| json!({"taints": [{"key": "k", "effect": effect}]});
    let here = [
        node("n1", taint("NoSchedule")),
        node("n2", taint("NoExecute")),
    ];
    let plain = set(json!({}), json!({}));
    let pods = [pod("a", "n1", "new", true), pod("b", "n2", "new", true)];
    assert_eq!(shown(&round(&plain, &here, &pods)), "-b");
    let bears = set(json!({}), json!({"tolerations": [{"operator": "Exists"}]}));
    assert_eq!(shown(&round(&bears, &here, &[])), "+n1 +n2");
    let cordoned = [node(
        "n1",
        json!({"unschedulable": true, "taints": [
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
        ]}),
    )];
    assert_eq!(shown(&round(&plain, &cordoned, &[])), "+n1");
}

#[test]
fn an_update_goes_as_fast_as_it_may() {
    let all = ["n1", "n2", "n3"];
    let old = all.map(|node| pod(node, node, "old", true));
    let one = set(json!({}), json!({}));
    assert_eq!(shown(&round(&one, &nodes(), &old)), "-n1");
    let two = set(
        json!({"rollingUpdate": {"maxUnavailable": "50%"}}),
        json!({}),
    );
    assert_eq!(shown(&round(&two, &nodes(), &old)), "-n1 -n2");
    let waiting = [pod("x", "n1", "new", false), old[1].clone(), old[2].clone()];
    assert_eq!(shown(&round(&one, &nodes(), &waiting)), "");
    let broken = [
        old[0].clone(),
        pod("n2", "n2", "old", false),
        old[2].clone(),
    ];
    assert_eq!(shown(&round(&one, &nodes(), &broken)), "-n2");
    let never = set(json!({"type": "OnDelete"}), json!({}));
    assert_eq!(shown(&round(&never, &nodes(), &old)), "");
}

#[test]
fn a_surge_makes_the_new_before_the_old_goes() {
    let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    let surge = set(strategy, json!({}));
    let old = ["n1", "n2", "n3"].map(|node| pod(node, node, "old", true));
    assert_eq!(shown(&round(&surge, &nodes(), &old)), "+n1");
    let mut both = old.to_vec();
    both.push(pod("x", "n1", "new", false));
    assert_eq!(shown(&round(&surge, &nodes(), &both)), "");
    both[3] = pod("x", "n1", "new", true);
    assert_eq!(shown(&round(&surge, &nodes(), &both)), "-n1");
}

#[test]
fn the_status_counts_nodes() {
    let pods = [pod("a", "n1", "new", true), pod("b", "n2", "old", false)];
    let status = round(&set(json!({}), json!({})), &nodes(), &pods).status;
    assert_eq!(status.desired_number_scheduled, 3);
    assert_eq!(status.current_number_scheduled, 2);
    assert_eq!(status.number_ready, 1);
    assert_eq!(status.updated_number_scheduled, Some(1));
    assert_eq!(
        (status.number_available, status.number_unavailable),
        (Some(1), Some(2))
    );
    assert_eq!(status.observed_generation, Some(3));
}

#[test]
fn a_node_that_is_not_ready_keeps_its_pod() {
    let mut lost = (*node("n1", json!({}))).clone();
    lost.status = None;
    let pods = [pod("a", "n1", "new", false)];
    assert_eq!(
        shown(&round(&set(json!({}), json!({})), &[Arc::new(lost)], &pods)),
        ""
    );
}
