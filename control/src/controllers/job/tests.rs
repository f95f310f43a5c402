//! Plans of Jobs, by cases.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};

use super::plan::{FINALIZER, Plan, has, plan};

const NOW: &str = "2026-01-01T01:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "what json! makes is passed on"
)]
fn job(spec: Value, status: Value) -> Job {
    let mut spec = spec;
    spec["template"] = json!({"spec": {"containers": [], "restartPolicy": "Never"}});
    serde_json::from_value(
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": spec, "status": status}),
    )
    .expect("a job")
}

fn pod(uid: &str, phase: &str, index: Option<u32>) -> Arc<Pod> {
    let annotations = index.map(|index| json!({super::indexes::KEY: index.to_string()}));
    let ended = json!([{"name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
        "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:59:58Z"}}}]);
    let pod = json!({
        "metadata": {"name": uid, "uid": uid, "finalizers": [FINALIZER], "annotations": annotations},
        "status": {"phase": phase, "containerStatuses": if phase == "Running" { Value::Null } else { ended }},
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

/// The plan's status with what it says of the pods, as the next round sees it once their finalizers are gone.
fn next(plan: &Plan, spec: Value) -> Job {
    job(spec, serde_json::to_value(&plan.status).expect("JSON"))
}

#[test]
fn as_many_pods_as_may_run_at_once() {
    for (spec, expected) in [
        (json!({"parallelism": 1, "completions": 1}), 1),
        (json!({"parallelism": 3, "completions": 2}), 2),
        (json!({"parallelism": 2, "completions": 5}), 2),
        (json!({"parallelism": 3}), 3),
        (json!({"parallelism": 0, "completions": 5}), 0),
        (
            json!({"parallelism": 2, "completions": 5, "suspend": true}),
            0,
        ),
    ] {
        let plan = plan(&job(spec.clone(), json!({})), &[], now());
        assert_eq!(plan.create.len(), expected, "{spec}");
    }
}

#[test]
fn an_end_is_counted_once_whatever_dies_in_between() {
    let spec = json!({"parallelism": 1, "completions": 2});
    let done = pod("a", "Succeeded", None);
    let first = plan(
        &job(spec.clone(), json!({})),
        std::slice::from_ref(&done),
        now(),
    );
    assert_eq!(first.counted.len(), 1);
    assert_eq!(first.status.succeeded, None);
    // The status is written, the finalizer is not gone yet: nothing is counted twice.
    let again = plan(&next(&first, spec.clone()), &[done], now());
    assert_eq!(
        again.status.uncounted_terminated_pods,
        first.status.uncounted_terminated_pods
    );
    assert_eq!(
        again.create.len(),
        1,
        "one success counts, however far its counting is"
    );
    let last = plan(&next(&again, spec), &[], now());
    assert_eq!(last.status.succeeded, Some(1));
    assert_eq!(last.status.uncounted_terminated_pods, None);
}

#[test]
fn enough_successes_complete_and_too_many_failures_fail() {
    let spec = json!({"parallelism": 1, "completions": 1, "backoffLimit": 1});
    let complete = plan(&job(spec.clone(), json!({"succeeded": 1})), &[], now());
    assert!(has(&complete.status, "Complete"));
    assert!(complete.status.completion_time.is_some());
    let failed = plan(
        &job(spec.clone(), json!({"failed": 2})),
        &[pod("a", "Running", None)],
        now(),
    );
    assert!(!has(&failed.status, "Failed"), "its pod must end first");
    assert_eq!(failed.delete.len(), 1);
    let failed = plan(&next(&failed, spec.clone()), &[], now());
    assert!(has(&failed.status, "Failed"));
    assert_eq!(
        failed.news.as_ref().map(|news| news.0),
        Some("BackoffLimitExceeded")
    );
    let late = json!({"parallelism": 1, "completions": 1, "activeDeadlineSeconds": 60});
    let late = plan(
        &job(late, json!({"startTime": "2026-01-01T00:58:00Z"})),
        &[],
        now(),
    );
    assert_eq!(
        late.news.as_ref().map(|news| news.0),
        Some("DeadlineExceeded")
    );
}

#[test]
fn after_a_failure_there_is_a_pause_that_doubles() {
    let spec = json!({"parallelism": 1, "completions": 1, "backoffLimit": 6});
    let one = plan(
        &job(spec.clone(), json!({})),
        &[pod("a", "Failed", None)],
        now(),
    );
    assert_eq!(
        (one.create.len(), one.look_again),
        (0, Some(Duration::from_secs(8)))
    );
    let pods = [pod("a", "Failed", None), pod("b", "Failed", None)];
    let two = plan(&job(spec, json!({})), &pods, now());
    assert_eq!(two.look_again, Some(Duration::from_secs(18)));
}

#[test]
fn an_indexed_job_runs_each_index_once() {
    let spec = json!({"parallelism": 2, "completions": 4, "completionMode": "Indexed"});
    let first = plan(&job(spec.clone(), json!({})), &[], now());
    assert_eq!(first.create, [Some(0), Some(1)]);
    let pods = [pod("a", "Succeeded", Some(0)), pod("b", "Running", Some(1))];
    let second = plan(&job(spec.clone(), json!({})), &pods, now());
    assert_eq!(second.status.completed_indexes.as_deref(), Some("0"));
    assert_eq!(second.create, [Some(2)]);
    let all = plan(
        &job(spec, json!({"completedIndexes": "0-3", "succeeded": 4})),
        &[],
        now(),
    );
    assert!(has(&all.status, "Complete"));
}

#[test]
fn a_queue_of_work_is_done_when_one_found_it_empty_and_all_ended() {
    let spec = json!({"parallelism": 2});
    let pods = [pod("a", "Succeeded", None), pod("b", "Running", None)];
    let waiting = plan(&job(spec.clone(), json!({})), &pods, now());
    assert_eq!((waiting.create.len(), waiting.delete.len()), (0, 0));
    let done = plan(&job(spec, json!({"succeeded": 2})), &[], now());
    assert!(has(&done.status, "Complete"));
}
