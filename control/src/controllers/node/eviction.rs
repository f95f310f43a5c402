//! Pods leave nodes whose taints they do not bear, when their toleration ends.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::plan::{self, Eviction};
use crate::{
    api::ObjectKey,
    controllers::{
        Context,
        cache::{Change, key_of},
        client::Precondition,
        events::{Regarding, Severity},
        informers::BY_NODE,
        meta, pods,
        resources::PODS,
        worker::{Controller, Error, Outcome},
    },
};

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let on_node = Arc::clone(&informers.pods);
    Controller::new("taint-eviction", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.pods, |change: &Change<Pod>| {
        let before = change.old.as_deref().and_then(pods::node);
        let is_new_here = change.new.as_deref().and_then(pods::node) != before;
        change.key().filter(|_| is_new_here).into_iter().collect()
    })
    .watch(&informers.nodes, move |change: &Change<Node>| {
        let Some(node) = &change.new else {
            return Vec::new();
        };
        let before = change.old.as_deref().map(taints);
        if before.as_ref() == Some(&taints(node)) {
            return Vec::new();
        }
        let pods = on_node.cache().find(BY_NODE, meta::name(&node.metadata));
        pods.iter().map(|pod| key_of(&pod.metadata)).collect()
    })
}

fn taints(node: &Node) -> Vec<k8s_openapi::api::core::v1::Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
    taints.unwrap_or_default()
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(pod) = informers.pods.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    if meta::is_terminating(&pod.metadata) {
        return Ok(Outcome::Done);
    }
    let node = pods::node(&pod).and_then(|node| {
        informers.nodes.cache().get(&ObjectKey {
            namespace: None,
            name: node.to_owned(),
        })
    });
    let Some(node) = node else {
        return Ok(Outcome::Done);
    };
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
    let now = context.clock.now();
    match plan::eviction(&tolerations.unwrap_or_default(), &taints(&node), now) {
        Eviction::None => Ok(Outcome::Done),
        Eviction::In(left) => Ok(Outcome::After(left)),
        Eviction::Now => {
            let precondition = Precondition {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            };
            context
                .client
                .delete(PODS, key, precondition, None, None)
                .await?;
            let namespace = key.namespace.as_deref().unwrap_or_default();
            context.events.record(
                Regarding::object(pod.as_ref()),
                Severity::Normal,
                "TaintManagerEviction",
                format!("Marking for deletion Pod {namespace}/{}", key.name),
            );
            Ok(Outcome::Done)
        }
    }
}
