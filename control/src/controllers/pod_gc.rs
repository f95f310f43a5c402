//! Pods that no node will ever finish: bound to a node that is gone, or deleted before they had one.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::{
    Context,
    cache::{Change, key_of},
    client::Precondition,
    clock,
    events::seconds,
    informers::BY_NODE,
    meta, pods,
    resources::{NODES, PODS},
    worker::{Controller, Error, Outcome},
};
use crate::api::{ObjectKey, PatchKind};

/// How long after a pod was made a missing node may still be one that is about to show.
const QUARANTINE: Duration = Duration::from_secs(40);

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let on_node = Arc::clone(&informers.pods);
    Controller::new("pod-gc", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.pods, |change: &Change<Pod>| {
        let state = |pod: &Pod| {
            (
                pods::node(pod).map(str::to_owned),
                meta::is_terminating(&pod.metadata),
            )
        };
        let is_news = change.new.as_deref().map(state) != change.old.as_deref().map(state);
        change.key().filter(|_| is_news).into_iter().collect()
    })
    .watch(&informers.nodes, move |change: &Change<Node>| {
        let Some(gone) = change.old.as_deref().filter(|_| change.new.is_none()) else {
            return Vec::new();
        };
        let pods = on_node.cache().find(BY_NODE, meta::name(&gone.metadata));
        pods.iter().map(|pod| key_of(&pod.metadata)).collect()
    })
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(pod) = informers.pods.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    let Some(node) = pods::node(&pod) else {
        if meta::is_terminating(&pod.metadata) {
            remove(context, &pod).await?;
        }
        return Ok(Outcome::Done);
    };
    let node = ObjectKey {
        namespace: None,
        name: node.to_owned(),
    };
    if informers.nodes.cache().get(&node).is_some() {
        return Ok(Outcome::Done);
    }
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let age = created.map_or(QUARANTINE, |created| {
        clock::elapsed(created, context.clock.now())
    });
    if age < QUARANTINE {
        return Ok(Outcome::After(QUARANTINE.saturating_sub(age)));
    }
    // The cache may be behind, and a pod that is removed is gone for good.
    if context.client.live(NODES, &node).await?.is_some() {
        return Ok(Outcome::After(QUARANTINE));
    }
    if !pods::is_finished(&pod) {
        mark_failed(context, &pod).await?;
    }
    remove(context, &pod).await?;
    Ok(Outcome::Done)
}

async fn mark_failed(context: &Context, pod: &Pod) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": meta::uid(&pod.metadata)}, "status": {
        "phase": "Failed",
        "conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists",
            "lastTransitionTime": seconds(context.clock.now()),
        }],
    }});
    let key = key_of(&pod.metadata);
    let client = &context.client;
    match client
        .patch(PODS, &key, Some("status"), PatchKind::Strategic, patch)
        .await
    {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}

async fn remove(context: &Context, pod: &Pod) -> Result<(), Error> {
    let precondition = Precondition {
        uid: pod.metadata.uid.clone(),
        resource_version: None,
    };
    let key = key_of(&pod.metadata);
    context
        .client
        .delete(PODS, &key, precondition, Some(0), None)
        .await
}
