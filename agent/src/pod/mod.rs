//! Pods: from a PodSpec to running containers and back to a PodStatus.
//!
//! The manager is told what should run ([`PodCommand`]) and tells what does ([`PodReport`]). It knows no API server:
//! `cluster` carries commands from it and reports to it, and the dataplane listens to the same reports, so that a dead
//! container's backend is withdrawn on its own node before the cluster has heard of it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::mpsc;

/// What the manager is told.
#[derive(Clone, Debug)]
pub enum PodCommand {
    /// The pods bound to this node, all of them: what is not named is stopped and cleared away. Sent once the first
    /// list has come, so that an agent without a control plane stops nothing.
    Sync(Vec<Arc<Pod>>),
    /// A pod is new or has changed; one with a deletionTimestamp is to end within its grace period.
    Apply(Arc<Pod>),
    /// The pod's object is gone: whatever is left of it goes at once. By uid.
    Remove(String),
}

/// What the manager tells.
#[derive(Clone, Debug)]
pub enum PodReport {
    /// The pod's status changed.
    Status {
        /// Whose.
        pod: PodRef,
        /// As Kubernetes shows it: phase, conditions, containerStatuses, podIPs.
        status: Box<PodStatus>,
    },
    /// Something a user should read in `kubectl describe pod`.
    Event {
        /// Whose.
        pod: PodRef,
        /// "Normal" or "Warning".
        severity: EventSeverity,
        /// "Pulled", "Created", "Started", "Failed", "BackOff", "Killing", ...
        reason: &'static str,
        /// In Kubernetes' words.
        message: String,
    },
    /// A pod with a deletionTimestamp has ended and nothing of it is left on the node: its object may go.
    Terminated {
        /// Whose.
        pod: PodRef,
    },
}

/// Names one incarnation of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct PodRef {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
}

/// The two types of Event that Kubernetes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSeverity {
    /// "Normal".
    Normal,
    /// "Warning".
    Warning,
}

/// The manager's two ends.
pub struct PodChannels {
    /// To the manager.
    pub commands: mpsc::Sender<PodCommand>,
    /// From the manager.
    pub reports: mpsc::Receiver<PodReport>,
}
