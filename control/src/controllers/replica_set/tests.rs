//! Plans as text: what is made, deleted, adopted and released.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use serde_json::{Value, json};

use super::plan::{plan, status};
use crate::controllers::{clock, meta};

const START: &str = "2026-01-01T00:00:00Z";

fn now() -> Timestamp {
    clock::after(START.parse().expect("a time"), Duration::from_hours(1))
}

fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "s", "generation": 3},
        "spec": {
            "replicas": replicas,
            "minReadySeconds": min_ready,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}},
        },
    }))
    .expect("a replica set")
}

/// A running, ready pod of the set; `change` is merged over it.
fn pod(name: &str, change: &Value) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "labels": {"app": "web"},
            "creationTimestamp": START,
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "s", "controller": true}],
        },
        "spec": {"nodeName": "n1", "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": START}]},
    });
    json_patch::merge(&mut object, change);
    Arc::new(serde_json::from_value(object).expect("a pod"))
}

fn text(set: &ReplicaSet, pods: &[Arc<Pod>]) -> String {
    plan(set, pods, now()).to_string()
}

#[test]
fn makes_what_is_missing_and_no_more_than_a_burst() {
    assert_eq!(text(&set(3, 0), &[pod("a", &json!({}))]), "create 2\n");
    assert_eq!(text(&set(5000, 0), &[]), "create 500\n");
    assert_eq!(text(&set(1, 0), &[pod("a", &json!({}))]), "");
}

#[test]
fn ended_and_terminating_pods_are_replaced() {
    let failed = pod("a", &json!({"status": {"phase": "Failed"}}));
    let going = pod("b", &json!({"metadata": {"deletionTimestamp": START}}));
    assert_eq!(text(&set(1, 0), &[failed, going]), "create 1\n");
}

#[test]
fn gives_up_pods_in_the_order_that_hurts_least() {
    let not_ready = json!([{"type": "Ready", "status": "False"}]);
    let recent =
        json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:00Z"}]);
    let pods = [
        pod("old-and-good", &json!({"spec": {"nodeName": "n2"}})),
        pod(
            "restarted",
            &json!({"spec": {"nodeName": "n3"}, "status": {"containerStatuses": [
            {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 4}]}}),
        ),
        pod(
            "recently-ready",
            &json!({"spec": {"nodeName": "n4"}, "status": {"conditions": recent}}),
        ),
        pod("crowded-1", &json!({})),
        pod(
            "crowded-2",
            &json!({"metadata": {"creationTimestamp": "2026-01-01T00:10:00Z"}}),
        ),
        pod(
            "cheap",
            &json!({"spec": {"nodeName": "n5"}, "metadata": {"annotations": {
            "controller.kubernetes.io/pod-deletion-cost": "-5"}}}),
        ),
        pod(
            "not-ready",
            &json!({"status": {"conditions": not_ready}, "spec": {"nodeName": "n6"}}),
        ),
        pod(
            "pending",
            &json!({"status": {"phase": "Pending"}, "spec": {"nodeName": "n7"}}),
        ),
        pod(
            "unassigned",
            &json!({"status": {"phase": "Pending"}, "spec": {"nodeName": null}}),
        ),
    ];
    let expected = "delete unassigned\ndelete pending\ndelete not-ready\ndelete cheap\ndelete crowded-2\n\
                    delete crowded-1\ndelete recently-ready\ndelete restarted\ndelete old-and-good\n";
    assert_eq!(text(&set(0, 0), &pods), expected);
    let backwards: Vec<_> = pods.iter().rev().cloned().collect();
    assert_eq!(
        text(&set(0, 0), &backwards),
        expected,
        "the order of the cache does not matter"
    );
}

#[test]
fn adopts_what_matches_and_releases_what_does_not() {
    let orphan = pod("orphan", &json!({"metadata": {"ownerReferences": null}}));
    let foreign = pod(
        "foreign",
        &json!({"metadata": {"ownerReferences": null, "labels": {"app": "db"}}}),
    );
    let changed = pod("changed", &json!({"metadata": {"labels": {"app": "db"}}}));
    let pods = [orphan, foreign, changed];
    assert_eq!(
        text(&set(2, 0), &pods),
        "adopt orphan\nrelease changed\ncreate 1\n"
    );

    let mut going = set(2, 0);
    going.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    assert_eq!(text(&going, &pods), "", "a set that goes does nothing more");
}

#[test]
fn availability_takes_its_time() {
    let recent =
        json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:59:50Z"}]);
    let pods = [
        pod("a", &json!({})),
        pod("b", &json!({"status": {"conditions": recent}})),
    ];
    let set = set(2, 30);
    let plan = plan(&set, &pods, now());
    assert_eq!(plan.to_string(), "look again in 20s\n");
    let status = status(&set, &plan.active, None, now());
    assert_eq!(
        (
            status.replicas,
            status.ready_replicas,
            status.available_replicas,
            status.observed_generation
        ),
        (2, Some(2), Some(1), Some(3))
    );
}

#[test]
fn a_failure_stays_in_the_status_until_the_number_is_right() {
    let mut set = set(2, 0);
    let failed = status(&set, &[], Some(("FailedCreate", "quota".to_owned())), now());
    let condition = &failed.conditions.as_ref().expect("conditions")[0];
    assert_eq!(
        (
            condition.type_.as_str(),
            condition.reason.as_deref(),
            condition.message.as_deref()
        ),
        ("ReplicaFailure", Some("FailedCreate"), Some("quota"))
    );
    set.status = Some(failed.clone());
    let one = [pod("a", &json!({}))];
    assert_eq!(
        status(&set, &one, None, now()).conditions,
        failed.conditions
    );
    let two = [pod("a", &json!({})), pod("b", &json!({}))];
    assert_eq!(status(&set, &two, None, now()).conditions, None);
    assert_eq!(meta::name(&two[1].metadata), "b");
}
