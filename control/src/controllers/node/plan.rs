//! What a node's heartbeat says about it; no IO.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, NodeCondition, Taint},
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::controllers::clock;

/// How long a node may be silent.
pub const GRACE: Duration = Duration::from_secs(40);
/// Keeps pods away from a node that says it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Keeps pods away from a node that says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// Keeps pods away from a node that someone cordoned.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// The conditions that keep pods away while they are True, and the taints that say so.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// What a round comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Conditions that become Unknown.
    pub conditions: Vec<NodeCondition>,
    /// The node's taints, when they change.
    pub taints: Option<Vec<Taint>>,
    /// Whether the node's pods count as ready.
    pub is_ready: bool,
    /// When the node will have been silent for too long.
    pub look_again: Option<Duration>,
}

/// Plans a round for a node that was last heard at `heard`.
pub fn plan(node: &Node, heard: Timestamp, now: Timestamp) -> Plan {
    let silence = clock::elapsed(heard, now);
    let is_silent = silence >= GRACE;
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let mut plan = Plan {
        look_again: (!is_silent).then(|| GRACE.saturating_sub(silence)),
        ..Plan::default()
    };
    if is_silent {
        plan.conditions = unknown(&conditions, now);
    }
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready");
    let ready = match ready.map(|ready| ready.status.as_str()) {
        _ if is_silent => "Unknown",
        Some(status) => status,
        // It has only just come and will say something before its grace is over.
        None => "Joining",
    };
    plan.is_ready = ready == "True";
    plan.taints = taints(node, ready, now);
    plan
}

/// The conditions that a node answers for, all Unknown; only those that change.
fn unknown(conditions: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let now = Some(Time(clock::whole_seconds(now)));
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .iter()
        .filter_map(|kind| {
            let current = conditions.iter().find(|condition| condition.type_ == *kind);
            if current.is_some_and(|current| current.status == "Unknown") {
                return None;
            }
            let (reason, message) = match current {
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => (
                    "NodeStatusNeverUpdated",
                    "Kubelet never posted node status.",
                ),
            };
            Some(NodeCondition {
                type_: (*kind).to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: current
                    .and_then(|current| current.last_heartbeat_time.clone())
                    .or_else(|| now.clone()),
                last_transition_time: now.clone(),
            })
        })
        .collect()
}

/// The taints that a node should have for what it says.
fn wanted(node: &Node, ready: &str) -> Vec<(&'static str, &'static str)> {
    let mut wanted: Vec<(&'static str, &'static str)> = match ready {
        "True" => vec![],
        "Unknown" => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
        "Joining" => vec![(NOT_READY, "NoSchedule")],
        _ => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
    };
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    for (condition, key) in PRESSURES {
        let mut all = conditions.into_iter().flatten();
        if all.any(|found| found.type_ == condition && found.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    wanted
}

/// The taints that go with what the node says, and the time on those that evict; `None` when they are so already.
fn taints(node: &Node, ready: &str, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let wanted = wanted(node, ready);
    let is_ours = |taint: &Taint| {
        [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str())
            || PRESSURES.iter().any(|(_, key)| taint.key == *key)
    };
    let mut taints: Vec<Taint> = current
        .iter()
        .filter(|taint| {
            let as_pair = (taint.key.as_str(), taint.effect.as_str());
            !is_ours(taint) || wanted.contains(&as_pair)
        })
        .cloned()
        .collect();
    for (key, effect) in &wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == *key && taint.effect == *effect)
        {
            taints.push(Taint {
                key: (*key).to_owned(),
                effect: (*effect).to_owned(),
                ..Taint::default()
            });
        }
    }
    // Tolerations count from here, so the time must be in the object and not in anyone's memory.
    for taint in &mut taints {
        if taint.time_added.is_none() && (taint.effect == "NoExecute" || is_ours(taint)) {
            taint.time_added = Some(Time(clock::whole_seconds(now)));
        }
    }
    (taints != current).then_some(taints)
}

/// What taints that evict mean for a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// Nothing.
    None,
    /// It may stay this much longer.
    In(Duration),
    /// It goes.
    Now,
}

/// Whether a pod has to leave a node with these taints, and when: at the earliest of its tolerations' ends.
pub fn eviction(
    tolerations: &[k8s_openapi::api::core::v1::Toleration],
    taints: &[Taint],
    now: Timestamp,
) -> Eviction {
    let mut earliest: Option<Duration> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let bearing: Vec<_> = tolerations
            .iter()
            .filter(|toleration| crate::scheduler::filter::tolerates(toleration, taint))
            .collect();
        if bearing.is_empty() {
            return Eviction::Now;
        }
        let Some(seconds) = bearing
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min()
        else {
            continue;
        };
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        // Without a time yet the lifecycle controller is about to write one; then this is asked again.
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let left = allowed.saturating_sub(clock::elapsed(since, now));
        earliest = Some(earliest.map_or(left, |earliest| earliest.min(left)));
    }
    match earliest {
        None => Eviction::None,
        Some(left) if left.is_zero() => Eviction::Now,
        Some(left) => Eviction::In(left),
    }
}
