//! What controllers ask of pods.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

use super::{clock, meta};

/// A condition of a pod's status.
pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == kind)
}

/// Whether a pod's Ready condition is True.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when a pod is ready; `None` when it is not, or does not say.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    Some(ready.last_transition_time.as_ref()?.0)
}

/// Whether a pod has been ready for `min_ready`, or how long that still takes; `None` when it is not ready.
pub fn available_in(pod: &Pod, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready.is_zero() {
        return Some(Duration::ZERO);
    }
    let since = ready_since(pod)?;
    Some(min_ready.saturating_sub(clock::elapsed(since, now)))
}

/// status.phase, or "".
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether all of a pod's containers have ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether a pod counts as a replica: neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !meta::is_terminating(&pod.metadata)
}

/// The node that a pod is bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|node| !node.is_empty())
}

/// How often the pod's containers were restarted.
pub fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref())
        .map_or(0, |statuses| {
            statuses
                .iter()
                .map(|status| status.restart_count)
                .max()
                .unwrap_or(0)
        })
}
