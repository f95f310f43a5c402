//! ReplicaSets: as many pods from the template as asked for, never one twice.

mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetStatus},
    core::v1::Pod,
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, key_of},
    client::Precondition,
    events::{Regarding, Severity},
    expectations::{Expectations, Expected},
    informers::{BY_CONTROLLER, ORPHANS},
    meta, patch,
    resources::{PODS, REPLICA_SETS},
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::{ObjectKey, PatchKind, Status};

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
    let mut candidates = pods.find(BY_CONTROLLER, meta::uid(&set.metadata));
    candidates.extend(pods.find(ORPHANS, meta::namespace(&set.metadata)));
    let now = context.clock.now();
    let plan = plan(&set, &candidates, now);
    let failure = execute(context, expectations, &set, &plan).await?;
    let words = failure
        .as_ref()
        .map(|failure| (failure.reason, failure.message.clone()));
    let status = plan::status(&set, &plan.active, words, now);
    write_status(context, &set, status).await?;
    match (failure, plan.look_again) {
        (Some(failure), _) => Err(failure.error),
        (None, Some(delay)) => Ok(Outcome::After(delay)),
        (None, None) => Ok(Outcome::Done),
    }
}

/// What went wrong with pods, for the `ReplicaFailure` condition.
struct Failure {
    reason: &'static str,
    message: String,
    error: Error,
}

/// Carries out a plan. Pods that can't be made or deleted come back as a [`Failure`] that belongs into the status;
/// adoption is tried again before anything is counted.
async fn execute(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
    plan: &Plan,
) -> Result<Option<Failure>, Error> {
    for pod in &plan.adopt {
        adopt(context, set, pod).await?;
    }
    for pod in &plan.release {
        release(context, set, pod).await?;
    }
    if plan.create > 0 {
        return Ok(create(context, expectations, set, plan.create).await);
    }
    if !plan.delete.is_empty() {
        return Ok(delete(context, expectations, set, &plan.delete).await);
    }
    Ok(None)
}

async fn adopt(context: &Context, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
    // The cache may be behind: a set that is being deleted, or was made anew, adopts nothing.
    let key = key_of(&set.metadata);
    let live = context.client.live(REPLICA_SETS, &key).await?;
    let fresh = live.is_some_and(|live| {
        live["metadata"]["uid"].as_str() == set.metadata.uid.as_deref()
            && live["metadata"]["deletionTimestamp"].is_null()
    });
    if !fresh {
        return Ok(());
    }
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(meta::controller_reference(
        "apps/v1",
        "ReplicaSet",
        &set.metadata,
    ));
    set_owners(context, pod, json!(owners)).await
}

async fn release(context: &Context, set: &ReplicaSet, pod: &Pod) -> Result<(), Error> {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != meta::uid(&set.metadata));
    set_owners(context, pod, json!(owners)).await
}

async fn set_owners(context: &Context, pod: &Pod, owners: Value) -> Result<(), Error> {
    let patch = json!({"metadata": {"ownerReferences": owners}});
    let version = pod.metadata.resource_version.as_deref();
    let key = key_of(&pod.metadata);
    match context
        .client
        .merge_at(PODS, &key, None, version, patch)
        .await
    {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Makes pods in growing batches, so that a template that is always refused is refused once and not 500 times.
async fn create(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
    count: usize,
) -> Option<Failure> {
    let mut left = count;
    let mut batch = 1;
    while left > 0 {
        batch = batch.min(left);
        let made = join_all((0..batch).map(|_| create_one(context, expectations, set))).await;
        if let Some(failure) = made.into_iter().find_map(Result::err) {
            return Some(failure);
        }
        left -= batch;
        batch *= 2;
    }
    None
}

async fn create_one(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
) -> Result<(), Failure> {
    let namespace = meta::namespace(&set.metadata);
    match context
        .client
        .create(PODS, Some(namespace), pod_of(set))
        .await
    {
        Ok(pod) => {
            let metadata = &pod["metadata"];
            let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
            let name = text("name");
            expectations.expect(
                &key_of(&set.metadata),
                Expected::Created {
                    key: ObjectKey {
                        namespace: set.metadata.namespace.clone(),
                        name: name.clone(),
                    },
                    uid: text("uid"),
                    revision: text("resourceVersion").parse().unwrap_or(0),
                },
            );
            context.events.record(
                Regarding::object(set),
                Severity::Normal,
                "SuccessfulCreate",
                format!("Created pod: {name}"),
            );
            Ok(())
        }
        // The namespace is being cleared, and the set goes with it.
        Err(source) if is_terminating(&source) => Ok(()),
        Err(source) => {
            let message = source.message.clone();
            context.events.record(
                Regarding::object(set),
                Severity::Warning,
                "FailedCreate",
                format!("Error creating: {message}"),
            );
            Err(Failure {
                reason: "FailedCreate",
                message,
                error: Error::Api {
                    action: format!("create a pod of {namespace}/{}", meta::name(&set.metadata)),
                    source,
                },
            })
        }
    }
}

fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

/// A pod from the set's template.
fn pod_of(set: &ReplicaSet) -> Value {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    patch::without_nulls(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", meta::name(&set.metadata)),
            "namespace": set.metadata.namespace,
            "labels": metadata.labels,
            "annotations": metadata.annotations,
            "finalizers": metadata.finalizers,
            "ownerReferences": [meta::controller_reference("apps/v1", "ReplicaSet", &set.metadata)],
        },
        "spec": template.spec,
    }))
}

async fn delete(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
) -> Option<Failure> {
    let deleted = join_all(
        pods.iter()
            .map(|pod| delete_one(context, expectations, set, pod)),
    )
    .await;
    deleted.into_iter().find_map(Result::err)
}

async fn delete_one(
    context: &Context,
    expectations: &Expectations,
    set: &ReplicaSet,
    pod: &Pod,
) -> Result<(), Failure> {
    let key = key_of(&pod.metadata);
    let precondition = Precondition {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    let deleted = context
        .client
        .delete(PODS, &key, precondition, None, None)
        .await;
    match deleted {
        Ok(()) => {
            let uid = meta::uid(&pod.metadata).to_owned();
            context.events.record(
                Regarding::object(set),
                Severity::Normal,
                "SuccessfulDelete",
                format!("Deleted pod: {}", key.name),
            );
            expectations.expect(&key_of(&set.metadata), Expected::Deleted { key, uid });
            Ok(())
        }
        Err(error) => {
            let message = super::worker::chain(&error);
            context.events.record(
                Regarding::object(set),
                Severity::Warning,
                "FailedDelete",
                format!("Error deleting: {message}"),
            );
            Err(Failure {
                reason: "FailedDelete",
                message,
                error,
            })
        }
    }
}

async fn write_status(
    context: &Context,
    set: &ReplicaSet,
    status: ReplicaSetStatus,
) -> Result<(), Error> {
    let before = set.status.clone().unwrap_or_default();
    let difference = patch::diff(&before, &status).map_err(|source| Error::Json {
        action: "compare the status of a replica set".to_owned(),
        source,
    })?;
    let Some(difference) = difference else {
        return Ok(());
    };
    let key = key_of(&set.metadata);
    let version = set.metadata.resource_version.as_deref();
    let patch = json!({"status": difference});
    let patched = context
        .client
        .merge_at(REPLICA_SETS, &key, Some("status"), version, patch)
        .await;
    match patched {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
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
