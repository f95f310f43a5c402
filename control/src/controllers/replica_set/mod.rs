//! ReplicaSets: as many pods from the template as asked for, never one twice.

mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{apps::v1::ReplicaSet, core::v1::Pod};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, key_of},
    expectations::Expectations,
    meta,
    pod_control::{Failure, Owner},
    resources::REPLICA_SETS,
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::{ObjectKey, PatchKind};

pub use plan::{Plan, plan};

/// How long the cache may take to show what was written before that is looked at again.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let expectations = Arc::new(Expectations::default());
    let shared = Arc::clone(context);
    let sets = Arc::clone(&informers.replica_sets);
    let of_pod = controller_key("ReplicaSet");
    Controller::new("replicaset", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let expectations = Arc::clone(&expectations);
        async move { reconcile(&context, &expectations, &key).await }
    })
    .watch(&informers.replica_sets, own_key)
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let mut keys = of_pod(change);
        if let Some(pod) = &change.new
            && meta::controller_of(&pod.metadata).is_none()
        {
            keys.extend(matching_sets(
                &sets.cache().in_namespace(meta::namespace(&pod.metadata)),
                pod,
            ));
        }
        keys
    })
}

/// The sets that might adopt a pod.
fn matching_sets(sets: &[Arc<ReplicaSet>], pod: &Pod) -> Vec<ObjectKey> {
    sets.iter()
        .filter(|set| {
            set.spec
                .as_ref()
                .is_some_and(|spec| meta::matches(&spec.selector, pod.metadata.labels.as_ref()))
        })
        .map(|set| key_of(&set.metadata))
        .collect()
}

async fn reconcile(
    context: &Context,
    expectations: &Expectations,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(set) = informers.replica_sets.cache().get(key) else {
        expectations.forget(key);
        return Ok(Outcome::Done);
    };
    let pods = informers.pods.cache();
    if !expectations.are_met(key, pods) {
        // The change that meets them comes back here by itself, unless it is one that a new list swallowed.
        return Ok(Outcome::After(CATCH_UP));
    }
    let candidates = owner(&set).candidates(context);
    let now = context.clock.now();
    let plan = plan(&set, &candidates, now);
    let failure = execute(context, expectations, &set, &plan).await?;
    let words = failure
        .as_ref()
        .map(|failure| (failure.reason, failure.message.clone()));
    let status = plan::status(&set, &plan.active, words, now);
    let before = set.status.clone().unwrap_or_default();
    owner(&set).write_status(context, &before, &status).await?;
    match (failure, plan.look_again) {
        (Some(failure), _) => Err(failure.error),
        (None, Some(delay)) => Ok(Outcome::After(delay)),
        (None, None) => Ok(Outcome::Done),
    }
}

/// The set as its pods see it.
fn owner(set: &ReplicaSet) -> Owner<'_> {
    Owner {
        resource: REPLICA_SETS,
        api_version: "apps/v1",
        kind: "ReplicaSet",
        metadata: &set.metadata,
    }
}

/// Carries out a plan. Pods that can't be made or deleted come back as a [`Failure`] that belongs into the status;
/// adoption is tried again before anything is counted.
async fn execute(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
    plan: &Plan,
) -> Result<Option<Failure>, Error> {
    let owner = owner(set);
    for pod in &plan.adopt {
        owner.adopt(context, pod).await?;
    }
    for pod in &plan.release {
        owner.release(context, pod).await?;
    }
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone());
    let pods = vec![owner.pod_of(template); plan.create];
    if let Some(failure) = owner.create(context, expectations, pods).await {
        return Ok(Some(failure));
    }
    Ok(owner.delete(context, expectations, &plan.delete).await)
}

/// Patches the number of replicas asked for, and annotations, of a set that is still at this version.
pub(super) async fn patch_set(
    context: &Context,
    set: &ReplicaSet,
    patch: Value,
) -> Result<Value, Error> {
    let key = key_of(&set.metadata);
    let mut patch = patch;
    patch["metadata"]["resourceVersion"] = json!(set.metadata.resource_version);
    context
        .client
        .patch(REPLICA_SETS, &key, None, PatchKind::Merge, patch)
        .await
}
