//! Pod address ranges: every node gets its own when it comes and gives it back when it goes.

use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::{
    Context,
    events::{Regarding, Severity},
    resources::NODES,
    worker::{Controller, Error, Outcome, own_key},
};
use crate::{
    allocation::{self, Allocations},
    api::ObjectKey,
};

/// The row. One worker, so that the first node has the first range.
pub fn controller(context: &Arc<Context>, allocations: &Arc<Allocations>) -> Controller<ObjectKey> {
    let shared = Arc::clone(context);
    let allocations = Arc::clone(allocations);
    Controller::new("node-ipam", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        let allocations = Arc::clone(&allocations);
        async move { reconcile(&context, &allocations, &key).await }
    })
    .workers(1)
    .watch(&context.informers.nodes, own_key)
}

async fn reconcile(
    context: &Context,
    allocations: &Allocations,
    key: &ObjectKey,
) -> Result<Outcome, Error> {
    let cidrs = &allocations.pod_cidrs;
    let failed = |source: allocation::Error| Error::Allocation {
        action: format!("allocate pod CIDRs for node {}", key.name),
        source,
    };
    let Some(node) = context.informers.nodes.cache().get(key) else {
        if context.client.live(NODES, key).await?.is_none() {
            cidrs.release(&key.name).await.map_err(failed)?;
        }
        return Ok(Outcome::Done);
    };
    let ranges = ranges_of(&node);
    if !ranges.is_empty() {
        if let Some(holder) = cidrs.hold(&key.name, &ranges).await.map_err(failed)? {
            let message = format!(
                "the pod CIDR {} is held by node {}",
                holder.item, holder.owner
            );
            say(context, &node, message);
        }
        return Ok(Outcome::Done);
    }
    let ranges = match cidrs.allocate(&key.name).await {
        Ok(ranges) => ranges,
        Err(error) => {
            say(context, &node, error.to_string());
            return Err(failed(error));
        }
    };
    let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    let patch = json!({"spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
    let version = node.metadata.resource_version.as_deref();
    context
        .client
        .merge_at(NODES, key, None, version, patch)
        .await?;
    Ok(Outcome::Done)
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_ref());
    let texts = listed.into_iter().flatten();
    texts.filter_map(|text| text.parse().ok()).collect()
}

fn say(context: &Context, node: &Node, message: String) {
    let regarding = Regarding::object(node);
    context
        .events
        .record(regarding, Severity::Warning, "CIDRNotAvailable", message);
}
