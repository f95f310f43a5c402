//! A pod's status as Kubernetes shows it, from what is remembered: a pure function.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
        ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    conditions,
    record::{ContainerRecord, PodRecord, Termination},
};

/// What is neither in the pod nor in its record.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// status.hostIPs.
    pub node_addresses: &'a [IpAddr],
    /// Now.
    pub now: Timestamp,
}

/// The pod's status. Conditions of others (`PodScheduled`) are kept as the object has them.
pub fn status(pod: &Pod, record: &PodRecord, place: Place<'_>) -> PodStatus {
    let spec = pod.spec.as_ref();
    let phase = phase(spec, record);
    let failure = record.failed.as_ref().filter(|_| phase == "Failed");
    let addresses: &[IpAddr] = match &record.network {
        _ if spec.is_some_and(is_host_network) => place.node_addresses,
        Some(network) => &network.addresses,
        None => &[],
    };
    let statuses = |containers: &[Container], absent: &str| -> Option<Vec<ContainerStatus>> {
        let all = containers
            .iter()
            .map(|container| container_status(container, record, absent));
        (!containers.is_empty()).then(|| all.collect())
    };
    let first = |addresses: &[IpAddr]| addresses.first().map(ToString::to_string);
    let has_init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .is_some_and(|init| !init.is_empty());
    PodStatus {
        conditions: Some(conditions::conditions(pod, record, phase, place.now)),
        container_statuses: spec.and_then(|spec| {
            let absent = if has_init && !initialized(spec, record) {
                "PodInitializing"
            } else {
                "ContainerCreating"
            };
            statuses(&spec.containers, absent)
        }),
        init_container_statuses: spec
            .and_then(|spec| spec.init_containers.as_ref())
            .and_then(|init| statuses(init, "PodInitializing")),
        host_ip: first(place.node_addresses),
        host_ips: Some(
            place
                .node_addresses
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        phase: Some(phase.to_owned()),
        reason: failure.map(|failure| failure.reason.clone()),
        message: failure.map(|failure| failure.message.clone()),
        pod_ip: first(addresses),
        pod_ips: (!addresses.is_empty()).then(|| {
            addresses
                .iter()
                .map(|ip| PodIP { ip: ip.to_string() })
                .collect()
        }),
        start_time: Some(Time(record.since)),
        ..PodStatus::default()
    }
}

/// Whether the API shows what we told: what others add or fill in does not count.
pub fn is_shown(ours: &PodStatus, theirs: &PodStatus) -> bool {
    let verdicts = |status: &PodStatus| -> std::collections::BTreeMap<String, String> {
        let all = status.conditions.iter().flatten();
        all.map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect()
    };
    let theirs_by_type = verdicts(theirs);
    let gist = |statuses: &Option<Vec<ContainerStatus>>| -> Vec<(String, bool, i32, Option<String>, String)> {
        let all = statuses.iter().flatten();
        all.map(|own| {
            let state = own.state.clone().unwrap_or_default();
            let kind = match (state.running, state.waiting, state.terminated) {
                (Some(_), _, _) => "running".to_owned(),
                (_, Some(waiting), _) => waiting.reason.unwrap_or_default(),
                (_, _, Some(end)) => end.reason.unwrap_or_default(),
                _ => String::new(),
            };
            (own.name.clone(), own.ready, own.restart_count, own.container_id.clone(), kind)
        })
        .collect()
    };
    ours.phase == theirs.phase
        && ours.pod_ips == theirs.pod_ips
        && gist(&ours.container_statuses) == gist(&theirs.container_statuses)
        && gist(&ours.init_container_statuses) == gist(&theirs.init_container_statuses)
        && verdicts(ours)
            .iter()
            .all(|(kind, status)| theirs_by_type.get(kind) == Some(status))
}

/// Whether the pod has the node's own network.
pub fn is_host_network(spec: &PodSpec) -> bool {
    spec.host_network.unwrap_or(false)
}

/// Whether a container is started again after it ended with `exit_code`.
pub fn restarts(spec: &PodSpec, container: &Container, is_init: bool, exit_code: i32) -> bool {
    if is_sidecar(container) {
        return true;
    }
    match spec.restart_policy.as_deref() {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        // An init container that has done its work is not repeated.
        _ => !is_init || exit_code != 0,
    }
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Whether an init container lets the next one begin.
pub fn is_done(container: &Container, record: &PodRecord) -> bool {
    record.containers.get(&container.name).is_some_and(|own| {
        if is_sidecar(container) {
            own.current.is_some() && own.started
        } else {
            own.current.is_none()
                && own.waiting.is_none()
                && own.last_end().is_some_and(|end| end.exit_code == 0)
        }
    })
}

/// Whether every init container is done.
pub fn initialized(spec: &PodSpec, record: &PodRecord) -> bool {
    let started = spec.containers.iter().any(|container| {
        record
            .containers
            .get(&container.name)
            .is_some_and(|own| own.attempts > 0)
    });
    started
        || spec
            .init_containers
            .iter()
            .flatten()
            .all(|container| is_done(container, record))
}

/// A pod whose work is over runs for as long as a container of it does: a sidecar, or one that has to be killed.
fn phase(spec: Option<&PodSpec>, record: &PodRecord) -> &'static str {
    let runs = || {
        let mut all = record.containers.values();
        all.any(|own| own.current.is_some())
    };
    match verdict(spec, record) {
        "Failed" | "Succeeded" if runs() => "Running",
        verdict => verdict,
    }
}

/// What the pod's containers, without sidecars, have come to.
fn verdict(spec: Option<&PodSpec>, record: &PodRecord) -> &'static str {
    if record.failed.is_some() {
        return "Failed";
    }
    let Some(spec) = spec else { return "Pending" };
    let none = ContainerRecord::default();
    let of = |container: &Container| {
        record
            .containers
            .get(&container.name)
            .unwrap_or(&none)
            .clone()
    };
    let failed_for_good = |own: &ContainerRecord| {
        own.current.is_none() && own.last_end().is_some_and(|end| end.exit_code != 0)
    };
    if !initialized(spec, record) {
        let never = spec.restart_policy.as_deref() == Some("Never");
        let init = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| !is_sidecar(container));
        let failed = init.map(of).any(|own| failed_for_good(&own));
        return if never && failed { "Failed" } else { "Pending" };
    }
    let (mut running, mut unstarted, mut restarting, mut failed) = (0, 0, 0, 0);
    for container in &spec.containers {
        let own = of(container);
        match own.last_end() {
            _ if own
                .current
                .as_ref()
                .is_some_and(|current| current.started_at.is_some()) =>
            {
                running += 1;
            }
            Some(end)
                if restarts(spec, container, false, end.exit_code)
                    && record.ending_since.is_none() =>
            {
                restarting += 1;
            }
            Some(end) if end.exit_code != 0 => failed += 1,
            Some(_) => {}
            None if record.ending_since.is_some() => failed += 1,
            None => unstarted += 1,
        }
    }
    match (unstarted, running + restarting, failed) {
        (1.., _, _) => "Pending",
        (0, 1.., _) => "Running",
        (0, 0, 1..) => "Failed",
        _ => "Succeeded",
    }
}

/// Whether the pod's work is over, and what still runs of it is to end.
pub fn is_over(pod: &Pod, record: &PodRecord) -> bool {
    matches!(verdict(pod.spec.as_ref(), record), "Failed" | "Succeeded")
}

fn container_status(container: &Container, record: &PodRecord, absent: &str) -> ContainerStatus {
    let none = ContainerRecord::default();
    let own = record.containers.get(&container.name).unwrap_or(&none);
    let running = own
        .current
        .as_ref()
        .filter(|current| current.started_at.is_some());
    let mut state = ContainerState::default();
    let mut before = own.ends.first();
    if let Some(current) = running {
        state.running = Some(ContainerStateRunning {
            started_at: current.started_at.map(Time),
        });
    } else if let Some(waiting) = &own.waiting {
        state.waiting = Some(ContainerStateWaiting {
            reason: Some(waiting.reason.clone()),
            message: waiting.message.clone(),
        });
    } else if let Some(end) = own.last_end() {
        state.terminated = Some(terminated(end));
        before = own.ends.get(1);
    } else {
        state.waiting = Some(ContainerStateWaiting {
            reason: Some(absent.to_owned()),
            message: None,
        });
    }
    let wanted = container.image.clone().unwrap_or_default();
    let (id, image, image_id) = match (running, own.last_end()) {
        (Some(current), _) => (
            Some(&current.id),
            current.image.clone(),
            current.image_id.clone(),
        ),
        (None, Some(end)) => (Some(&end.id), end.image.clone(), end.image_id.clone()),
        (None, None) => (None, wanted, String::new()),
    };
    let finished = own.last_end().is_some_and(|end| end.exit_code == 0) && !is_sidecar(container);
    let is_plain_init =
        absent == "PodInitializing" && own.waiting.is_none() && running.is_none() && finished;
    ContainerStatus {
        container_id: id.map(|id| format!("portolan://{id}")),
        image,
        image_id,
        last_state: Some(ContainerState {
            terminated: before.map(terminated),
            ..ContainerState::default()
        }),
        name: container.name.clone(),
        ready: is_plain_init || (running.is_some() && own.ready),
        restart_count: own.restarts(),
        started: Some(running.is_some() && own.started),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn terminated(end: &Termination) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("portolan://{}", end.id)),
        exit_code: end.exit_code,
        finished_at: Some(Time(end.finished_at)),
        message: end.message.clone(),
        reason: Some(end.reason.clone()),
        signal: end.signal,
        started_at: Some(Time(end.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::record::{Instance, Waiting};

    fn spec(policy: &str, init: &[&str], main: &[&str]) -> PodSpec {
        let containers = |names: &[&str]| {
            names
                .iter()
                .map(|name| json!({ "name": name }))
                .collect::<Vec<Value>>()
        };
        serde_json::from_value(json!({
            "restartPolicy": policy, "initContainers": containers(init), "containers": containers(main),
        }))
        .expect("a valid spec")
    }

    fn instance() -> Instance {
        Instance {
            id: "i".into(),
            image: String::new(),
            image_id: String::new(),
            started_at: Some(Timestamp::UNIX_EPOCH),
            stop_signal: 15,
            stopping: None,
        }
    }

    /// "-" has not begun, "run" runs, "wait" waits for a restart, a number is an exit code.
    fn record(states: &[(&str, &str)]) -> PodRecord {
        let mut record = PodRecord::new(Timestamp::UNIX_EPOCH);
        for (name, state) in states {
            let own = record.container(name);
            own.attempts = u32::from(*state != "-");
            match *state {
                "-" => {}
                "run" => {
                    own.current = Some(instance());
                    own.started = true;
                    own.ready = true;
                }
                "wait" => {
                    own.end(Termination::lost(&instance(), Timestamp::UNIX_EPOCH));
                    own.waiting = Some(Waiting::new("CrashLoopBackOff", ""));
                }
                code => {
                    let mut end = Termination::lost(&instance(), Timestamp::UNIX_EPOCH);
                    end.exit_code = code.parse().expect("an exit code");
                    own.end(end);
                }
            }
        }
        record
    }

    #[test]
    fn phases_are_kubernetes_own() {
        type States = &'static [(&'static str, &'static str)];
        let cases: [(&str, &[&str], States, &str); 11] = [
            ("Always", &[], &[("a", "-"), ("b", "run")], "Pending"),
            ("Always", &[], &[("a", "run"), ("b", "run")], "Running"),
            ("Always", &[], &[("a", "wait"), ("b", "run")], "Running"),
            ("Always", &[], &[("a", "0"), ("b", "0")], "Running"),
            ("OnFailure", &[], &[("a", "0"), ("b", "1")], "Running"),
            ("OnFailure", &[], &[("a", "0"), ("b", "0")], "Succeeded"),
            ("Never", &[], &[("a", "0"), ("b", "1")], "Failed"),
            ("Never", &[], &[("a", "run"), ("b", "1")], "Running"),
            (
                "Never",
                &["i"],
                &[("i", "1"), ("a", "-"), ("b", "-")],
                "Failed",
            ),
            (
                "Always",
                &["i"],
                &[("i", "wait"), ("a", "-"), ("b", "-")],
                "Pending",
            ),
            (
                "Always",
                &["i"],
                &[("i", "0"), ("a", "run"), ("b", "run")],
                "Running",
            ),
        ];
        for (policy, init, states, expected) in cases {
            let spec = spec(policy, init, &["a", "b"]);
            assert_eq!(
                phase(Some(&spec), &record(states)),
                expected,
                "{policy} {states:?}"
            );
        }
    }
}
