//! A node falls silent and comes back; tolerations run out.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use serde_json::{Value, json};

use super::{
    Heartbeats,
    plan::{Eviction, GRACE, Plan, eviction, plan},
};
use crate::controllers::clock::after;

fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

fn node(ready: Option<&str>, taints: &Value) -> Node {
    let conditions: Vec<Value> = ready
        .iter()
        .map(|status| json!({"type": "Ready", "status": status, "lastHeartbeatTime": "2026-01-01T00:00:00Z"}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "n1"},
        "spec": {"taints": taints},
        "status": {"conditions": conditions},
    }))
    .expect("a node")
}

fn text(plan: &Plan) -> String {
    let conditions = plan.conditions.iter().map(|c| {
        format!(
            "{}={} {}",
            c.type_,
            c.status,
            c.reason.as_deref().unwrap_or_default()
        )
    });
    let taints = plan
        .taints
        .iter()
        .flatten()
        .map(|taint| format!("taint {}:{}", taint.key, taint.effect));
    conditions.chain(taints).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_silent_node_is_unknown_tainted_and_its_pods_not_ready() {
    let heard = start();
    let fine = plan(
        &node(Some("True"), &json!([])),
        heard,
        after(heard, Duration::from_secs(10)),
    );
    assert_eq!(text(&fine), "");
    assert!(fine.is_ready);
    assert_eq!(fine.look_again, Some(Duration::from_secs(30)));

    let silent = plan(&node(Some("True"), &json!([])), heard, after(heard, GRACE));
    assert_eq!(
        text(&silent),
        "Ready=Unknown NodeStatusUnknown\n\
         MemoryPressure=Unknown NodeStatusNeverUpdated\n\
         DiskPressure=Unknown NodeStatusNeverUpdated\n\
         PIDPressure=Unknown NodeStatusNeverUpdated\n\
         taint node.kubernetes.io/unreachable:NoSchedule\n\
         taint node.kubernetes.io/unreachable:NoExecute"
    );
    assert!(!silent.is_ready);
    let taints = silent.taints.expect("it is tainted");
    assert!(taints.iter().all(|taint| taint.time_added.is_some()));

    let back = plan(
        &node(Some("True"), &json!(taints)),
        after(heard, GRACE),
        after(heard, GRACE),
    );
    assert!(back.is_ready);
    assert_eq!(
        back.taints,
        Some(Vec::new()),
        "the taints go when it is heard again"
    );
}

#[test]
fn a_node_that_says_it_is_not_ready_is_believed_at_once_and_foreign_taints_stay() {
    let own = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    let plan = plan(&node(Some("False"), &own), start(), start());
    assert!(!plan.is_ready);
    assert_eq!(
        text(&plan),
        "taint dedicated:NoSchedule\n\
         taint node.kubernetes.io/not-ready:NoSchedule\n\
         taint node.kubernetes.io/not-ready:NoExecute"
    );
    assert_eq!(plan.taints.expect("tainted")[0].time_added, None);
}

#[test]
fn a_new_node_is_kept_free_until_it_speaks() {
    let plan = plan(&node(None, &json!([])), start(), start());
    assert_eq!(text(&plan), "taint node.kubernetes.io/not-ready:NoSchedule");
}

#[test]
fn what_else_a_node_says_keeps_pods_away_too() {
    let mut node = node(Some("True"), &json!([]));
    node.spec.get_or_insert_default().unschedulable = Some(true);
    let conditions = node.status.get_or_insert_default();
    conditions.conditions.get_or_insert_default().push(
        serde_json::from_value(json!({"type": "DiskPressure", "status": "True"}))
            .expect("a condition"),
    );
    let cordoned = plan(&node, start(), start());
    assert_eq!(
        text(&cordoned),
        "taint node.kubernetes.io/unschedulable:NoSchedule\n\
         taint node.kubernetes.io/disk-pressure:NoSchedule"
    );
}

#[test]
fn a_silence_that_was_our_own_is_held_against_no_node() {
    let heartbeats = Heartbeats::default();
    let later = |seconds| after(start(), Duration::from_secs(seconds));
    assert_eq!(heartbeats.heard("n1", "a", start()), start());
    assert_eq!(heartbeats.heard("n1", "a", later(10)), start());
    assert_eq!(heartbeats.heard("n1", "b", later(20)), later(20));
    assert_eq!(
        heartbeats.heard("n1", "b", later(100)),
        later(100),
        "it slept"
    );
    assert_eq!(heartbeats.heard("n1", "b", later(110)), later(100));
}

#[test]
fn evictions_wait_for_the_shortest_toleration() {
    let taint: Taint = serde_json::from_value(json!({
        "key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": start().to_string(),
    }))
    .expect("a taint");
    let toleration = |seconds: Option<i64>| Toleration {
        key: Some("node.kubernetes.io/unreachable".to_owned()),
        operator: Some("Exists".to_owned()),
        toleration_seconds: seconds,
        ..Toleration::default()
    };
    let taints = [taint];
    let later = |seconds| after(start(), Duration::from_secs(seconds));
    assert_eq!(eviction(&[], &taints, start()), Eviction::Now);
    assert_eq!(eviction(&[], &[], start()), Eviction::None);
    assert_eq!(
        eviction(&[toleration(None)], &taints, later(9999)),
        Eviction::None
    );
    let five_minutes = [toleration(Some(300)), toleration(None)];
    assert_eq!(
        eviction(&five_minutes, &taints, later(100)),
        Eviction::In(Duration::from_secs(200))
    );
    assert_eq!(eviction(&five_minutes, &taints, later(300)), Eviction::Now);
}
