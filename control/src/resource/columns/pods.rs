//! The table of pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, age, column, human, name, or_none, wide};
use crate::api::meta;

/// The columns.
pub const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "The aggregate readiness state of this pod for accepting traffic.",
    ),
    column(
        "Status",
        "string",
        "The aggregate status of the containers in this pod.",
    ),
    column(
        "Restarts",
        "string",
        "The number of times the containers in this pod have been restarted and when the last container in this pod \
         has restarted.",
    ),
    AGE,
    wide("IP", "string", "IP address allocated to the pod."),
    wide("Node", "string", "The node that the pod runs on."),
    wide(
        "Nominated Node",
        "string",
        "The node that preemption makes room on for the pod.",
    ),
    wide(
        "Readiness Gates",
        "string",
        "How many of the pod's readiness gates are open.",
    ),
];

/// The cells of a pod.
pub fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod, now);
    let addresses = meta::list(pod, &["status", "podIPs"]);
    let address = match addresses.first() {
        Some(first) => meta::text(first, &["ip"]),
        None => meta::text(pod, &["status", "podIP"]),
    };
    vec![
        name(pod),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.reason),
        json!(summary.restarts),
        age(pod, now),
        or_none(address),
        or_none(meta::text(pod, &["spec", "nodeName"])),
        or_none(meta::text(pod, &["status", "nominatedNodeName"])),
        json!(gates(pod)),
    ]
}

fn gates(pod: &Value) -> String {
    let gates = meta::list(pod, &["spec", "readinessGates"]);
    if gates.is_empty() {
        return super::NONE.to_owned();
    }
    let open = gates
        .iter()
        .filter(|gate| condition(pod, meta::text(gate, &["conditionType"])) == Some("True"))
        .count();
    format!("{open}/{}", gates.len())
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    meta::list(pod, &["status", "conditions"])
        .iter()
        .find(|condition| condition["type"] == kind)
        .and_then(|condition| condition["status"].as_str())
}

#[derive(Default)]
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: String,
}

/// What became of a container that has ended.
fn termination(state: &Value) -> String {
    let ended = &state["terminated"];
    let reason = meta::text(ended, &["reason"]);
    if !reason.is_empty() {
        return reason.to_owned();
    }
    match meta::number(ended, &["signal"]).filter(|signal| *signal != 0) {
        Some(signal) => format!("Signal:{signal}"),
        None => format!(
            "ExitCode:{}",
            meta::number(ended, &["exitCode"]).unwrap_or(0)
        ),
    }
}

fn restarts_of(status: &Value) -> i64 {
    meta::number(status, &["restartCount"]).unwrap_or(0)
}

fn last_end(status: &Value) -> Option<Timestamp> {
    meta::text(status, &["lastState", "terminated", "finishedAt"])
        .parse()
        .ok()
}

/// Whether an init container runs beside the others.
fn is_sidecar(pod: &Value, container: &str) -> bool {
    meta::list(pod, &["spec", "initContainers"])
        .iter()
        .any(|one| one["name"] == container && one["restartPolicy"] == "Always")
}

/// The reason that the init containers give the pod's status, while they are not all done.
fn initializing(pod: &Value) -> Option<String> {
    let total = meta::list(pod, &["spec", "initContainers"]).len();
    for (at, status) in meta::list(pod, &["status", "initContainerStatuses"])
        .iter()
        .enumerate()
    {
        let state = &status["state"];
        let sidecar = is_sidecar(pod, meta::text(status, &["name"]));
        if meta::number(state, &["terminated", "exitCode"]) == Some(0)
            || (sidecar && status["started"] == true)
        {
            continue;
        }
        if state.get("terminated").is_some() {
            return Some(format!("Init:{}", termination(state)));
        }
        let waiting = meta::text(state, &["waiting", "reason"]);
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{at}/{total}"));
    }
    None
}

fn summarize(pod: &Value, now: Timestamp) -> Summary {
    let phase = meta::text(pod, &["status", "phase"]);
    let own_reason = meta::text(pod, &["status", "reason"]);
    let mut reason = if own_reason.is_empty() {
        phase
    } else {
        own_reason
    }
    .to_owned();
    let gated = meta::list(pod, &["status", "conditions"])
        .iter()
        .any(|one| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let mut summary = Summary {
        total: meta::list(pod, &["spec", "containers"]).len(),
        ..Summary::default()
    };
    let mut restarts = 0;
    let mut last = None;
    for status in meta::list(pod, &["status", "initContainerStatuses"]) {
        if is_sidecar(pod, meta::text(status, &["name"])) {
            summary.total += 1;
            summary.ready += usize::from(status["ready"] == true);
            restarts += restarts_of(status);
            last = last.max(last_end(status));
        }
    }
    if let Some(init) = initializing(pod) {
        reason = init;
    } else {
        let mut running = false;
        let statuses = meta::list(pod, &["status", "containerStatuses"]);
        restarts += statuses.iter().map(restarts_of).sum::<i64>();
        last = last.max(statuses.iter().filter_map(last_end).max());
        for status in statuses.iter().rev() {
            let state = &status["state"];
            let waiting = meta::text(state, &["waiting", "reason"]);
            if !waiting.is_empty() {
                waiting.clone_into(&mut reason);
            } else if state.get("terminated").is_some() {
                reason = termination(state);
            } else if status["ready"] == true && state.get("running").is_some() {
                running = true;
                summary.ready += 1;
            }
        }
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready") == Some("True");
            if ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
        }
    }
    if meta::is_terminating(pod) {
        if own_reason == "NodeLost" {
            "Unknown".clone_into(&mut reason);
        } else if !matches!(phase, "Succeeded" | "Failed") {
            "Terminating".clone_into(&mut reason);
        }
    }
    summary.reason = reason;
    summary.restarts = match last.filter(|_| restarts > 0) {
        Some(last) => format!(
            "{restarts} ({} ago)",
            human(now.as_second() - last.as_second())
        ),
        None => restarts.to_string(),
    };
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().expect("a time")
    }

    fn shown(pod: &Value) -> Vec<String> {
        cells(pod, now())
            .iter()
            .map(|cell| cell.as_str().unwrap_or("").to_owned())
            .collect()
    }

    fn pod(status: &Value) -> Value {
        json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "n1", "containers": [{"name": "a"}, {"name": "b"}]},
            "status": status,
        })
    }

    #[test]
    fn a_running_pod() {
        let pod = pod(
            &json!({"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}},
                {"name": "b", "ready": true, "restartCount": 2, "state": {"running": {}},
                 "lastState": {"terminated": {"finishedAt": "2026-01-01T00:09:00Z"}}},
            ]}),
        );
        assert_eq!(
            shown(&pod),
            [
                "web",
                "2/2",
                "Running",
                "2 (60s ago)",
                "10m",
                "10.0.0.1",
                "n1",
                "<none>",
                "<none>"
            ]
        );
    }

    #[test]
    fn reasons_come_from_containers() {
        let waiting = pod(&json!({"phase": "Running", "containerStatuses": [
            {"name": "a", "ready": false, "restartCount": 5, "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
        ]}));
        assert_eq!(shown(&waiting)[1..4], ["0/2", "CrashLoopBackOff", "5"]);
        let failed = pod(&json!({"phase": "Failed", "containerStatuses": [
            {"name": "a", "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3}}},
        ]}));
        assert_eq!(shown(&failed)[2], "ExitCode:3");
        let mut leaving = waiting;
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:10:00Z");
        assert_eq!(shown(&leaving)[2], "Terminating");
        assert_eq!(shown(&pod(&json!({"phase": "Pending"})))[2], "Pending");
    }
}
