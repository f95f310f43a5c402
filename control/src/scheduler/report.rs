//! What users see of the scheduler: events, and the `PodScheduled` condition of a pod that fits nowhere.

use serde_json::json;

use super::{Misfit, Scheduler, demand::Demand};
use crate::{
    api::PatchKind,
    controllers::{
        events::{Regarding, Severity, seconds},
        meta, pods,
        resources::PODS,
        worker::chain,
    },
};

fn regarding(demand: &Demand) -> Regarding {
    Regarding {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        namespace: demand.key.namespace.clone(),
        name: demand.key.name.clone(),
        uid: demand.uid.clone(),
    }
}

impl Scheduler {
    pub(super) fn say_bound(&self, demand: &Demand, node: &str) {
        let namespace = demand.key.namespace.as_deref().unwrap_or_default();
        self.events.record(
            regarding(demand),
            Severity::Normal,
            "Scheduled",
            format!(
                "Successfully assigned {namespace}/{} to {node}",
                demand.key.name
            ),
        );
    }

    pub(super) fn say_rejected(&self, demand: &Demand, cause: &str) {
        self.events.record(
            regarding(demand),
            Severity::Warning,
            "FailedScheduling",
            format!("binding rejected: {cause}"),
        );
    }

    /// Writes why a pod fits nowhere, once for each reason.
    pub(super) async fn say_misfit(&self, demand: &Demand, misfit: &Misfit) {
        let message = misfit.to_string();
        self.events.record(
            regarding(demand),
            Severity::Warning,
            "FailedScheduling",
            message.clone(),
        );
        let Some(pod) = self.context.informers.pods.cache().get(&demand.key) else {
            return;
        };
        let is_said = pods::condition(&pod, "PodScheduled").is_some_and(|condition| {
            condition.status == "False" && condition.message.as_ref() == Some(&message)
        });
        if is_said || meta::uid(&pod.metadata) != demand.uid {
            return;
        }
        let since = pods::condition(&pod, "PodScheduled")
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map_or_else(|| self.context.clock.now(), |time| time.0);
        let patch = json!({"metadata": {"uid": demand.uid}, "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": seconds(since),
        }]}});
        let patched = self
            .client
            .patch(
                PODS,
                &demand.key,
                Some("status"),
                PatchKind::Strategic,
                patch,
            )
            .await;
        match patched {
            Ok(_) => {}
            // It is gone, and so is the question.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {}
            Err(error) => {
                tracing::warn!(pod = ?demand.key, cause = chain(&error), "can't write why it waits");
            }
        }
    }
}
