//! Nodes as the scheduler sees them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::demand::{Amounts, offer};
use crate::controllers::meta;

/// A node.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// metadata.name.
    pub name: String,
    /// metadata.labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints, and those that its condition amounts to.
    pub taints: Vec<Taint>,
    /// Whether someone cordoned it.
    pub unschedulable: bool,
    /// What it offers.
    pub offered: Amounts,
    /// How many pods it offers to run.
    pub offered_pods: i64,
}

impl NodeState {
    /// A node with nothing on it yet.
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let allocatable =
            status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let (offered, offered_pods) = offer(allocatable);
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let spec = node.spec.as_ref();
        Self {
            name: meta::name(&node.metadata).to_owned(),
            labels,
            taints: taints(node),
            unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            offered,
            offered_pods,
        }
    }

    /// Whether both are the same to the scheduler.
    pub fn offers_the_same(&self, other: &Self) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.offered == other.offered
            && self.offered_pods == other.offered_pods
    }
}

/// A node's taints. One that is not ready counts as tainted even before a controller has written that down.
fn taints(node: &Node) -> Vec<Taint> {
    let mut taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let key = match ready.map(|ready| ready.status.as_str()) {
        Some("True") => return taints,
        Some("Unknown") => "node.kubernetes.io/unreachable",
        _ => "node.kubernetes.io/not-ready",
    };
    if !taints.iter().any(|taint| taint.key == key) {
        taints.push(Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints
}
