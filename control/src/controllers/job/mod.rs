//! Jobs: pods that run to their end, as many as asked for, each end counted once.

mod indexes;
mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, key_of, revision_of},
    client::Precondition,
    clock,
    events::{Regarding, Severity},
    expectations::Expectations,
    informers::BY_CONTROLLER,
    meta,
    pod_control::{Owner, gone_is_fine},
    resources::{JOBS, PODS},
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::ObjectKey;
use plan::{FINALIZER, Plan, is_finished, plan};

pub use plan::has;

/// How long the cache may take to show what was written before that is looked at again.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let expectations = Arc::new(Expectations::default());
    let shared = Arc::clone(context);
    Controller::new("job", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let expectations = Arc::clone(&expectations);
        async move { reconcile(&context, &expectations, &key).await }
    })
    .watch(&context.informers.jobs, own_key)
    .watch(&context.informers.pods, controller_key("Job"))
    .watch(&context.informers.pods, orphan_key)
}

/// A pod whose Job is gone may still wait to be counted by it.
fn orphan_key(change: &Change<Pod>) -> Vec<ObjectKey> {
    let waiting = change
        .new
        .iter()
        .filter(|pod| meta::is_terminating(&pod.metadata));
    let named = waiting.filter_map(|pod| {
        let labels = pod.metadata.labels.as_ref()?;
        Some(ObjectKey {
            namespace: pod.metadata.namespace.clone(),
            name: labels.get("batch.kubernetes.io/job-name")?.clone(),
        })
    });
    named.collect()
}

fn owner(job: &Job) -> Owner<'_> {
    Owner {
        resource: JOBS,
        api_version: "batch/v1",
        kind: "Job",
        metadata: &job.metadata,
    }
}

async fn reconcile(
    context: &Context,
    expectations: &Expectations,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let Some(job) = context.informers.jobs.cache().get(key) else {
        expectations.forget(key);
        return free_orphans(context, key).await;
    };
    let pods = context.informers.pods.cache();
    let revision = revision_of(&job.metadata);
    if !expectations.are_met(key, pods) || !expectations.is_current(key, revision) {
        return Ok(Outcome::After(CATCH_UP));
    }
    let own = pods.find(BY_CONTROLLER, meta::uid(&job.metadata));
    if meta::is_terminating(&job.metadata) {
        free(context, &own).await?;
        return Ok(Outcome::Done);
    }
    let now = context.clock.now();
    let plan = plan(&job, &own, now);
    execute(context, expectations, &job, &plan).await?;
    let before = job.status.clone().unwrap_or_default();
    if is_finished(&before) {
        return expire(context, &job).await;
    }
    Ok(plan.look_again.map_or(Outcome::Done, Outcome::After))
}

async fn execute(
    context: &Context,
    expectations: &Expectations,
    job: &Job,
    plan: &Plan,
) -> Result<(), Error> {
    let owner = owner(job);
    let mut failure = owner.delete(context, expectations, &plan.delete).await;
    if failure.is_none() {
        let pods = plan.create.iter().map(|index| pod_of(job, *index));
        failure = owner.create(context, expectations, pods.collect()).await;
    }
    // Counted first, then let go: whoever dies in between has the uids in the status.
    let before = job.status.clone().unwrap_or_default();
    let written = owner.write_status(context, &before, &plan.status).await?;
    if let Some(revision) = written {
        expectations.wrote(&owner.key(), revision);
    }
    free(context, &plan.counted).await?;
    if let Some((reason, message)) = &plan.news {
        let severity = match *reason {
            "Completed" | "Suspended" | "Resumed" => Severity::Normal,
            _ => Severity::Warning,
        };
        let (regarding, message) = (Regarding::object(job), message.clone());
        context.events.record(regarding, severity, reason, message);
    }
    failure.map_or(Ok(()), |failure| Err(failure.error))
}

/// A pod of a Job: it stays until it is counted, and knows its index if it has one.
fn pod_of(job: &Job, index: Option<u32>) -> Value {
    let template = job.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = owner(job).pod_of(template);
    let metadata = &mut pod["metadata"];
    let mut finalizers = metadata["finalizers"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    finalizers.push(json!(FINALIZER));
    metadata["finalizers"] = json!(finalizers);
    let Some(index) = index else {
        return pod;
    };
    let name = meta::name(&job.metadata);
    metadata["generateName"] = json!(format!("{name}-{index}-"));
    for place in ["annotations", "labels"] {
        if !metadata[place].is_object() {
            metadata[place] = json!({});
        }
        metadata[place][indexes::KEY] = json!(index.to_string());
    }
    pod["spec"]["hostname"] = json!(format!("{name}-{index}"));
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let variable = json!({"name": "JOB_COMPLETION_INDEX", "value": index.to_string()});
            match container["env"].as_array_mut() {
                Some(env) => env.push(variable),
                None => container["env"] = json!([variable]),
            }
        }
    }
    pod
}

/// Takes the finalizer off pods.
async fn free(context: &Context, pods: &[Arc<Pod>]) -> Result<(), Error> {
    for pod in pods {
        let finalizers = pod.metadata.finalizers.as_deref().unwrap_or_default();
        if !finalizers.iter().any(|name| name == FINALIZER) {
            continue;
        }
        let left: Vec<&String> = finalizers
            .iter()
            .filter(|name| *name != FINALIZER)
            .collect();
        let patch = json!({"metadata": {"uid": pod.metadata.uid, "finalizers": left}});
        let version = pod.metadata.resource_version.as_deref();
        let key = key_of(&pod.metadata);
        let patched = context
            .client
            .merge_at(PODS, &key, None, version, patch)
            .await;
        gone_is_fine(patched)?;
    }
    Ok(())
}

/// Lets go of the pods of a Job that is gone.
async fn free_orphans(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let pods = context.informers.pods.cache();
    let all = pods.in_namespace(key.namespace.as_deref().unwrap_or_default());
    let named = all.into_iter().filter(|pod| {
        let labels = pod.metadata.labels.as_ref();
        let name = labels.and_then(|labels| labels.get("batch.kubernetes.io/job-name"));
        name == Some(&key.name) && meta::is_terminating(&pod.metadata)
    });
    free(context, &named.collect::<Vec<_>>()).await?;
    Ok(Outcome::Done)
}

/// Deletes a finished Job when its time is over.
async fn expire(context: &Context, job: &Job) -> Result<Outcome, Error> {
    let spec = job.spec.as_ref();
    let Some(seconds) = spec.and_then(|spec| spec.ttl_seconds_after_finished) else {
        return Ok(Outcome::Done);
    };
    let status = job.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref());
    let ended = conditions.unwrap_or_default().iter().find_map(|condition| {
        let ends = matches!(condition.type_.as_str(), "Complete" | "Failed");
        let at = condition.last_transition_time.as_ref()?.0;
        (ends && condition.status == "True").then_some(at)
    });
    let Some(ended) = ended else {
        return Ok(Outcome::Done);
    };
    let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let left = life.saturating_sub(clock::elapsed(ended, context.clock.now()));
    if !left.is_zero() {
        return Ok(Outcome::After(left));
    }
    let precondition = Precondition {
        uid: job.metadata.uid.clone(),
        resource_version: job.metadata.resource_version.clone(),
    };
    let key = key_of(&job.metadata);
    context
        .client
        .delete(JOBS, &key, precondition, None, Some("Background"))
        .await?;
    Ok(Outcome::Done)
}
