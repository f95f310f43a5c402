//! Plans of stateful sets, by cases.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use serde_json::{Value, json};

use super::plan::{Plan, Template, plan};

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "what json! makes is passed on"
)]
fn set(replicas: i32, rest: Value) -> StatefulSet {
    let mut spec =
        json!({"replicas": replicas, "selector": {}, "template": {}, "serviceName": "s"});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), rest) {
        spec.extend(more);
    }
    serde_json::from_value(json!({
        "metadata": {"name": "web", "uid": "u"}, "spec": spec, "status": {"replicas": 0, "currentRevision": "old"},
    }))
    .expect("a set")
}

fn pod(ordinal: i64, revision: &str, state: &str) -> Arc<Pod> {
    let ready = if state == "ready" { "True" } else { "False" };
    let mut pod = json!({
        "metadata": {"name": format!("web-{ordinal}"), "labels": {"controller-revision-hash": revision}},
        "status": {"phase": if state == "failed" { "Failed" } else { "Running" }, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]},
    });
    if state == "going" {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:59:00Z");
    }
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn shown(plan: &Plan) -> String {
    let made = plan
        .create
        .iter()
        .map(|(ordinal, template)| match template {
            Template::Newest => format!("+{ordinal}"),
            Template::Current => format!("+{ordinal}old"),
        });
    let gone = plan
        .delete
        .iter()
        .filter_map(|pod| pod.metadata.name.clone());
    made.chain(gone.map(|name| name.replace("web", "")))
        .collect::<Vec<_>>()
        .join(" ")
}

fn round(set: &StatefulSet, pods: &[Arc<Pod>]) -> String {
    shown(&plan(set, pods, "new", now()))
}

#[test]
fn pods_come_one_by_one_each_when_the_one_before_is_ready() {
    let three = set(3, json!({}));
    assert_eq!(round(&three, &[]), "+0");
    assert_eq!(round(&three, &[pod(0, "new", "waiting")]), "");
    assert_eq!(round(&three, &[pod(0, "new", "ready")]), "+1");
    assert_eq!(
        round(&three, &[pod(0, "new", "ready"), pod(2, "new", "ready")]),
        "+1"
    );
    assert_eq!(round(&three, &[pod(0, "new", "failed")]), "-0");
    assert_eq!(round(&three, &[pod(0, "new", "going")]), "");
    let late = set(2, json!({"ordinals": {"start": 5}}));
    assert_eq!(round(&late, &[pod(5, "new", "ready")]), "+6");
}

#[test]
fn in_parallel_all_come_and_go_at_once() {
    let three = set(3, json!({"podManagementPolicy": "Parallel"}));
    assert_eq!(round(&three, &[]), "+0 +1 +2");
    let one = set(1, json!({"podManagementPolicy": "Parallel"}));
    let pods = [
        pod(0, "new", "ready"),
        pod(1, "new", "ready"),
        pod(2, "new", "waiting"),
    ];
    assert_eq!(round(&one, &pods), "-2 -1");
}

#[test]
fn pods_go_from_the_highest_down() {
    let one = set(1, json!({}));
    let pods = [
        pod(0, "new", "ready"),
        pod(1, "new", "ready"),
        pod(2, "new", "ready"),
    ];
    assert_eq!(round(&one, &pods), "-2");
    let pods = [
        pod(0, "new", "ready"),
        pod(1, "new", "ready"),
        pod(2, "new", "going"),
    ];
    assert_eq!(round(&one, &pods), "");
    let pods = [pod(0, "new", "waiting"), pod(1, "new", "ready")];
    assert_eq!(round(&one, &pods), "", "what stays must be well first");
}

#[test]
fn an_update_goes_from_the_highest_down_to_the_partition() {
    let three = set(3, json!({}));
    let old = [0, 1, 2].map(|ordinal| pod(ordinal, "old", "ready"));
    assert_eq!(round(&three, &old), "-2");
    let pods = [old[0].clone(), old[1].clone(), pod(2, "new", "waiting")];
    assert_eq!(round(&three, &pods), "");
    let pods = [old[0].clone(), old[1].clone(), pod(2, "new", "ready")];
    assert_eq!(round(&three, &pods), "-1");
    let part = set(
        3,
        json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}),
    );
    assert_eq!(round(&part, &pods), "");
    assert_eq!(
        round(&part, &[]),
        "+0old",
        "below the partition the template before counts"
    );
    let never = set(3, json!({"updateStrategy": {"type": "OnDelete"}}));
    assert_eq!(round(&never, &old), "");
}

#[test]
fn the_newest_revision_is_current_when_all_are_of_it() {
    let two = set(2, json!({}));
    let status = |pods: &[Arc<Pod>]| plan(&two, pods, "new", now()).status;
    let half = status(&[pod(0, "old", "ready"), pod(1, "new", "ready")]);
    assert_eq!(half.current_revision.as_deref(), Some("old"));
    assert_eq!(
        (half.current_replicas, half.updated_replicas),
        (Some(1), Some(1))
    );
    let all = status(&[pod(0, "new", "ready"), pod(1, "new", "ready")]);
    assert_eq!(all.current_revision.as_deref(), Some("new"));
    assert_eq!(
        (all.ready_replicas, all.available_replicas),
        (Some(2), Some(2))
    );
}
