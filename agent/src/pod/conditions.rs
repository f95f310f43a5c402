//! A pod's conditions: which hold, why the others do not, and since when.
#![forbid(unsafe_code)]

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodCondition, PodSpec},
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    record::PodRecord,
    status::{initialized, is_done, is_sidecar},
};

/// The verdict of one condition: reason and message say why it is false.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

const OURS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// The conditions that the agent tells, with those of others behind.
pub fn conditions(pod: &Pod, record: &PodRecord, phase: &str, now: Timestamp) -> Vec<PodCondition> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let initialized = initialized(spec, record);
    let ready = containers_ready(spec, record, phase);
    let incomplete: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| !is_done(container, record))
        .map(|container| container.name.as_str())
        .collect();
    let verdicts = [
        verdict(OURS[0], record.sandbox),
        Verdict {
            reason: (!initialized).then_some("ContainersNotInitialized"),
            message: (!initialized).then(|| {
                format!(
                    "containers with incomplete status: [{}]",
                    incomplete.join(" ")
                )
            }),
            ..verdict(OURS[1], initialized)
        },
        Verdict {
            kind: OURS[2],
            ..through_gates(pod, containers_ready(spec, record, phase))
        },
        ready,
        verdict(OURS[4], true),
    ];
    let known = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let foreign = known
        .into_iter()
        .flatten()
        .filter(|condition| !OURS.contains(&condition.type_.as_str()));
    let mut all: Vec<PodCondition> = verdicts
        .into_iter()
        .map(|verdict| dated(verdict, pod, record, now))
        .collect();
    all.extend(foreign.cloned());
    all
}

fn verdict(kind: &'static str, holds: bool) -> Verdict {
    Verdict {
        kind,
        holds,
        reason: None,
        message: None,
    }
}

fn containers_ready(spec: &PodSpec, record: &PodRecord, phase: &str) -> Verdict {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let unready: Vec<&str> = sidecars
        .chain(&spec.containers)
        .filter(|container| {
            let own = record.containers.get(&container.name);
            !own.is_some_and(|own| own.ready && own.current.is_some())
        })
        .map(|container| container.name.as_str())
        .collect();
    let kind = OURS[3];
    let (reason, message) = match phase {
        "Succeeded" => (Some("PodCompleted"), None),
        "Failed" => (Some("PodFailed"), None),
        _ if !unready.is_empty() => (
            Some("ContainersNotReady"),
            Some(format!(
                "containers with unready status: [{}]",
                unready.join(" ")
            )),
        ),
        _ => (None, None),
    };
    Verdict {
        kind,
        holds: reason.is_none(),
        reason,
        message,
    }
}

/// A pod whose containers are ready is so once all conditions hold that it names as its gates.
fn through_gates(pod: &Pod, ready: Verdict) -> Verdict {
    let spec = pod.spec.as_ref();
    let gates = spec.and_then(|spec| spec.readiness_gates.as_ref());
    let told = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut closed = Vec::new();
    for gate in gates.into_iter().flatten() {
        let kind = &gate.condition_type;
        let mut conditions = told.into_iter().flatten();
        match conditions.find(|condition| condition.type_ == *kind) {
            Some(condition) if condition.status == "True" => {}
            Some(_) => closed.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but False"
            )),
            None => closed.push(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
        }
    }
    if !ready.holds || closed.is_empty() {
        return ready;
    }
    Verdict {
        kind: ready.kind,
        holds: false,
        reason: Some("ReadinessGatesNotReady"),
        message: Some(closed.join(", ")),
    }
}

/// A condition keeps its transition time for as long as its status does.
fn dated(verdict: Verdict, pod: &Pod, record: &PodRecord, now: Timestamp) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let told = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let same =
        |condition: &&PodCondition| condition.type_ == verdict.kind && condition.status == status;
    let before = record
        .conditions
        .iter()
        .find(same)
        .or_else(|| told.into_iter().flatten().find(same));
    let since = before.and_then(|condition| condition.last_transition_time.clone());
    PodCondition {
        last_transition_time: Some(since.unwrap_or(Time(now))),
        message: verdict.message,
        reason: verdict.reason.map(Into::into),
        status: status.into(),
        type_: verdict.kind.into(),
        ..PodCondition::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn gates_hold_a_ready_pod_back() {
        let verdict_of = |conditions: serde_json::Value| {
            let pod = json!({
                "spec": { "containers": [], "readinessGates": [{ "conditionType": "example.org/in" }] },
                "status": { "conditions": conditions },
            });
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            let record = PodRecord::new(Timestamp::UNIX_EPOCH);
            let all = super::conditions(&pod, &record, "Running", Timestamp::UNIX_EPOCH);
            let ready = all
                .into_iter()
                .find(|own| own.type_ == "Ready")
                .expect("Ready");
            (ready.status, ready.reason)
        };
        let told = |status: &str| json!([{ "type": "example.org/in", "status": status }]);
        let closed = (
            "False".to_owned(),
            Some("ReadinessGatesNotReady".to_owned()),
        );
        assert_eq!(verdict_of(json!([])), closed);
        assert_eq!(verdict_of(told("False")), closed);
        assert_eq!(verdict_of(told("True")), ("True".to_owned(), None));
    }
}
