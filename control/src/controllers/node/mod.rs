//! Nodes come and go silent: heartbeats become conditions and taints, taints evict pods, and the pods of a node that is
//! not ready leave their Services at once.

mod eviction;
mod plan;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::try_join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use serde_json::json;

use super::{
    Context,
    cache::{Change, key_of},
    clock,
    events::{Regarding, Severity, seconds},
    informers::BY_NODE,
    meta, pods,
    resources::{NODES, PODS},
    worker::{Controller, Error, Outcome, own_key},
};
use crate::api::{ObjectKey, PatchKind};

pub use eviction::controller as eviction_controller;
pub use plan::{GRACE, Plan, plan};

const LEASES_OF_NODES: &str = "kube-node-lease";

/// Nodes are looked at this often; when nobody looked for twice as long, this process itself was asleep.
const LOOK: Duration = Duration::from_secs(10);

/// When each node was last heard: the moment at which this process saw its heartbeat, as clocks of nodes may differ.
#[derive(Default)]
struct Heartbeats {
    state: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// By node: its sign of life, and since when it is this one.
    signs: HashMap<String, (String, Timestamp)>,
    /// When any node was looked at last.
    looked: Option<Timestamp>,
}

impl Heartbeats {
    /// The moment at which the node's sign of life was first seen as it is now.
    fn heard(&self, node: &str, sign: &str, now: Timestamp) -> Timestamp {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let looked = state.looked.replace(now).unwrap_or(now);
        if clock::elapsed(looked, now) >= LOOK * 2 {
            // Whoever sleeps hears nothing: no node is to blame for a silence that was our own.
            for (_, since) in state.signs.values_mut() {
                *since = now;
            }
        }
        let entry = state
            .signs
            .entry(node.to_owned())
            .or_insert_with(|| (sign.to_owned(), now));
        if entry.0 != sign {
            *entry = (sign.to_owned(), now);
        }
        entry.1
    }

    fn forget(&self, node: &str) {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .signs
            .remove(node);
    }
}

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let heartbeats = Arc::new(Heartbeats::default());
    Controller::new("node-lifecycle", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let heartbeats = Arc::clone(&heartbeats);
        async move { reconcile(&context, &heartbeats, &key).await }
    })
    .watch(&informers.nodes, own_key)
    .watch(&informers.leases, |change: &Change<Lease>| {
        change
            .key()
            .filter(|key| key.namespace.as_deref() == Some(LEASES_OF_NODES))
            .map(|key| ObjectKey {
                namespace: None,
                name: key.name,
            })
            .into_iter()
            .collect()
    })
    // A pod may be bound to a node, or say that it is ready, after the node fell silent.
    .watch(&informers.pods, |change: &Change<Pod>| {
        let ready = change.new.as_deref().filter(|pod| pods::is_ready(pod));
        ready
            .and_then(pods::node)
            .map(|node| ObjectKey {
                namespace: None,
                name: node.to_owned(),
            })
            .into_iter()
            .collect()
    })
}

/// A node's sign of life: its lease, and its own status.
fn sign_of(node: &Node, lease: Option<&Lease>) -> String {
    let renewed = lease
        .and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref())
        .map(|time| time.0.to_string())
        .unwrap_or_default();
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let heartbeat = conditions
        .and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"))
        .filter(|ready| ready.status != "Unknown")
        .and_then(|ready| ready.last_heartbeat_time.as_ref())
        .map(|time| time.0.to_string())
        .unwrap_or_default();
    format!("{renewed} {heartbeat}")
}

async fn reconcile(
    context: &Context,
    heartbeats: &Heartbeats,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(node) = informers.nodes.cache().get(key) else {
        heartbeats.forget(&key.name);
        return Ok(Outcome::Done);
    };
    let lease = informers.leases.cache().get(&ObjectKey {
        namespace: Some(LEASES_OF_NODES.to_owned()),
        name: key.name.clone(),
    });
    let now = context.clock.now();
    let heard = heartbeats.heard(&key.name, &sign_of(&node, lease.as_deref()), now);
    let plan = plan(&node, heard, now);
    execute(context, &node, &plan).await?;
    Ok(plan.look_again.map_or(Outcome::Done, |delay| {
        Outcome::After(delay.clamp(Duration::from_millis(100), LOOK))
    }))
}

async fn execute(context: &Context, node: &Node, plan: &Plan) -> Result<(), Error> {
    let key = key_of(&node.metadata);
    if !plan.is_ready {
        mark_pods_not_ready(context, &key.name).await?;
    }
    if !plan.conditions.is_empty() {
        let version = node.metadata.resource_version.clone();
        let patch = json!({
            "metadata": {"resourceVersion": version},
            "status": {"conditions": plan.conditions},
        });
        let client = &context.client;
        client
            .patch(NODES, &key, Some("status"), PatchKind::Strategic, patch)
            .await?;
        let message = format!("Node {} status is now: NodeNotReady", key.name);
        context.events.record(
            Regarding::object(node),
            Severity::Normal,
            "NodeNotReady",
            message,
        );
        // The taints follow when the cache shows the node as it is now.
        return Ok(());
    }
    if let Some(taints) = &plan.taints {
        let patch = json!({"spec": {"taints": taints}});
        let version = node.metadata.resource_version.as_deref();
        context
            .client
            .merge_at(NODES, &key, None, version, patch)
            .await?;
    }
    Ok(())
}

/// Takes the pods of a node out of their Services. The node says again that they are ready when it is back.
async fn mark_pods_not_ready(context: &Context, node: &str) -> Result<(), Error> {
    let on_node = context.informers.pods.cache().find(BY_NODE, node);
    let now = context.clock.now();
    let ready = on_node.iter().filter(|pod| pods::is_ready(pod));
    try_join_all(ready.map(|pod| mark_not_ready(context, pod, now))).await?;
    Ok(())
}

async fn mark_not_ready(context: &Context, pod: &Pod, now: Timestamp) -> Result<(), Error> {
    let patch = json!({"metadata": {"uid": meta::uid(&pod.metadata)}, "status": {"conditions": [{
        "type": "Ready",
        "status": "False",
        "lastTransitionTime": seconds(now),
    }]}});
    let key = key_of(&pod.metadata);
    let client = &context.client;
    let patched = client
        .patch(PODS, &key, Some("status"), PatchKind::Strategic, patch)
        .await;
    match patched {
        Err(error) if error.code() == Some(404) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            context.events.record(
                Regarding::object(pod),
                Severity::Warning,
                "NodeNotReady",
                "Node is not ready".to_owned(),
            );
            Ok(())
        }
    }
}
