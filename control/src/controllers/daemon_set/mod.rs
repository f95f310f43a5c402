//! `DaemonSet`s: a pod on every node that wants one.

mod plan;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, key_of},
    expectations::Expectations,
    meta, patch,
    pod_control::Owner,
    resources::DAEMON_SETS,
    revisions,
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::ObjectKey;
use plan::{plan, tolerations};

/// How long the cache may take to show what was written before that is looked at again.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let expectations = Arc::new(Expectations::default());
    let (shared, sets) = (Arc::clone(context), Arc::clone(&informers.daemon_sets));
    let orphans = Arc::clone(&informers.daemon_sets);
    Controller::new("daemonset", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let expectations = Arc::clone(&expectations);
        async move { reconcile(&context, &expectations, &key).await }
    })
    .watch(&informers.daemon_sets, own_key)
    .watch(&informers.controller_revisions, controller_key("DaemonSet"))
    .watch(&informers.pods, controller_key("DaemonSet"))
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let orphan = change
            .new
            .iter()
            .filter(|pod| meta::controller_of(&pod.metadata).is_none());
        orphan
            .flat_map(|pod| {
                let near = orphans.cache().in_namespace(meta::namespace(&pod.metadata));
                let labels = pod.metadata.labels.clone();
                near.into_iter().filter(move |set| {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    selector.is_some_and(|selector| meta::matches(selector, labels.as_ref()))
                })
            })
            .map(|set| key_of(&set.metadata))
            .collect()
    })
    .watch(&informers.nodes, move |change: &Change<Node>| {
        // What decides where daemons run; heartbeats change nothing of it.
        let state = |node: &Node| (node.metadata.labels.clone(), node.spec.clone());
        if change.new.as_deref().map(state) == change.old.as_deref().map(state) {
            return Vec::new();
        }
        let all = sets.cache().all();
        all.iter().map(|set| key_of(&set.metadata)).collect()
    })
}

fn owner(set: &DaemonSet) -> Owner<'_> {
    Owner {
        resource: DAEMON_SETS,
        api_version: "apps/v1",
        kind: "DaemonSet",
        metadata: &set.metadata,
    }
}

async fn reconcile(
    context: &Context,
    expectations: &Expectations,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(set) = informers.daemon_sets.cache().get(key) else {
        expectations.forget(key);
        return Ok(Outcome::Done);
    };
    if !expectations.are_met(key, informers.pods.cache()) {
        return Ok(Outcome::After(CATCH_UP));
    }
    let (owner, spec) = (owner(&set), set.spec.clone().unwrap_or_default());
    if meta::is_terminating(&set.metadata) {
        return Ok(Outcome::Done);
    }
    let claimed = owner.claim(&owner.candidates(context), &spec.selector);
    owner.settle(context, &claimed).await?;
    let wanted = (&spec.template, &spec.selector);
    let revision = revisions::current(context, &owner, wanted).await?;
    let (nodes, now) = (informers.nodes.cache().all(), context.clock.now());
    let plan = plan(&set, &nodes, &claimed.own, (&revision.hash, now));
    let mut failure = owner.delete(context, expectations, &plan.delete).await;
    if failure.is_none() {
        let pods = plan
            .create
            .iter()
            .map(|node| pod_of(&set, node, &revision.hash));
        failure = owner.create(context, expectations, pods.collect()).await;
    }
    let before = set.status.clone().unwrap_or_default();
    let mut status = plan.status;
    status.collision_count = before.collision_count;
    owner.write_status(context, &before, &status).await?;
    revisions::clear(context, &owner, spec.revision_history_limit, |old| {
        let label = |pod: &Arc<Pod>| pod.metadata.labels.as_ref()?.get(revisions::HASH).cloned();
        let own = old
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(revisions::HASH));
        old.metadata.name.as_deref() == Some(&revision.name)
            || claimed.own.iter().any(|pod| label(pod).as_ref() == own)
    })
    .await?;
    match (failure, plan.look_again) {
        (Some(failure), _) => Err(failure.error),
        (None, Some(delay)) => Ok(Outcome::After(delay)),
        (None, None) => Ok(Outcome::Done),
    }
}

/// A pod for a node: the scheduler puts it there and nowhere else.
fn pod_of(set: &DaemonSet, node: &str, hash: &str) -> Value {
    let template = set.spec.as_ref().map(|spec| spec.template.clone());
    let mut pod = owner(set).pod_of(template.clone());
    if !pod["metadata"]["labels"].is_object() {
        pod["metadata"]["labels"] = json!({});
    }
    pod["metadata"]["labels"][revisions::HASH] = json!(hash);
    let spec = template
        .and_then(|template| template.spec)
        .unwrap_or_default();
    pod["spec"]["tolerations"] = json!(tolerations(&spec));
    let here = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let path = "requiredDuringSchedulingIgnoredDuringExecution";
    let affinity = &mut pod["spec"]["affinity"];
    if !affinity.is_object() {
        *affinity = json!({});
    }
    if !affinity["nodeAffinity"].is_object() {
        affinity["nodeAffinity"] = json!({});
    }
    // Labels were looked at when the node was chosen; from here on only the node counts.
    affinity["nodeAffinity"][path] = json!({"nodeSelectorTerms": [{"matchFields": [here]}]});
    patch::without_nulls(pod)
}
