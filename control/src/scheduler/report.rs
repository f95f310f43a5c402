//! What users see of the scheduler: events, and the `PodScheduled` condition of a pod that fits nowhere.

use serde_json::{Value, json};

use super::{Misfit, Scheduler, demand::Demand, preempt::Preemption};
use crate::{
    api::PatchKind,
    controllers::{
        client::Precondition,
        events::{Regarding, Severity, seconds},
        meta, pods,
        resources::PODS,
        worker::{Error, chain},
    },
};

/// Who says so.
const COMPONENT: &str = "default-scheduler";

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

    /// Writes why a pod fits nowhere, once for each reason, and the node where others make way for it.
    pub(super) async fn say_misfit(&self, demand: &Demand, misfit: &Misfit, node: Option<&str>) {
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
        let status = pod.status.as_ref();
        let nominated = status.and_then(|status| status.nominated_node_name.as_deref());
        let is_said = is_said && (node.is_none() || node == nominated);
        if is_said || meta::uid(&pod.metadata) != demand.uid {
            return;
        }
        let since = pods::condition(&pod, "PodScheduled")
            .filter(|condition| condition.status == "False")
            .and_then(|condition| condition.last_transition_time.as_ref())
            .map_or_else(|| self.context.clock.now(), |time| time.0);
        let mut patch = json!({"metadata": {"uid": demand.uid}, "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": seconds(since),
        }]}});
        if let Some(node) = node {
            patch["status"]["nominatedNodeName"] = json!(node);
        }
        match self.patch_status(demand, patch).await {
            Ok(_) => {}
            // It is gone, and so is the question.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {}
            Err(error) => {
                tracing::warn!(pod = ?demand.key, cause = chain(&error), "can't write why it waits");
            }
        }
    }

    async fn patch_status(&self, demand: &Demand, patch: Value) -> Result<Value, Error> {
        let kind = PatchKind::Strategic;
        self.client
            .patch(PODS, &demand.key, Some("status"), kind, patch)
            .await
    }

    /// Deletes a pod that makes way for another, and says so in its status and in an event.
    pub(super) async fn evict(
        &self,
        victim: &Demand,
        preemption: &Preemption,
    ) -> Result<(), Error> {
        let patch = json!({"metadata": {"uid": victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{COMPONENT}: preempting to accommodate a higher priority pod"),
            "lastProbeTime": null,
            "lastTransitionTime": seconds(self.context.clock.now()),
        }]}});
        match self.patch_status(victim, patch).await {
            Ok(_) => {}
            // It is gone, or another has its name now.
            Err(error) if matches!(error.code(), Some(404 | 409)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let precondition = Precondition {
            uid: Some(victim.uid.clone()),
            resource_version: None,
        };
        self.client
            .delete(PODS, &victim.key, precondition, None, None)
            .await?;
        let (uid, node) = (&preemption.demand.uid, &preemption.node);
        self.events.record(
            regarding(victim),
            Severity::Normal,
            "Preempted",
            format!("Preempted by pod {uid} on node {node}"),
        );
        Ok(())
    }
}
