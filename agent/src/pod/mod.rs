//! Pods: from a PodSpec to running containers and back to a PodStatus.
//!
//! The manager is told what should run ([`PodCommand`]) and tells what does ([`PodReport`]). It knows no API server:
//! `cluster` carries commands from it and reports to it, and the dataplane listens to the same reports, so that a dead
//! container's backend is withdrawn on its own node before the cluster has heard of it.

mod backoff;
mod closing;
mod conditions;
mod container;
mod ending;
mod environment;
mod handler;
mod hooks;
mod last_words;
mod launch;
mod manager;
mod node;
mod outbox;
mod probe;
mod pulling;
mod pulls;
mod quantity;
mod record;
mod references;
mod sandbox;
mod status;
mod teardown;
mod tokens;
mod users;
mod volumes;
mod worker;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::mpsc;

use crate::runtime::bundle::Bundle;

pub use environment::EnvironmentError;
pub use manager::{Manager, ManagerError};
pub use references::{ReferenceError, References};
pub use teardown::teardown;
pub use tokens::{Token, TokenRequest};

/// What the manager must know of its node.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder; pods, images and logs lie in it.
    pub state_dir: PathBuf,
    /// The cgroup under which all of the node's containers run, relative to each hierarchy's mount: "portolan/n1".
    pub cgroup_root: PathBuf,
    /// spec.nodeName.
    pub node_name: String,
    /// status.hostIPs, IPv4 first.
    pub node_addresses: Vec<IpAddr>,
    /// The node's resolv.conf(5): pods whose dnsPolicy is Default see what it says.
    pub resolv_conf: PathBuf,
    /// What `resourceFieldRef: limits.*` means for a container without limits.
    pub capacity: Capacity,
    /// The program that has the `shim` subcommand: [`Config::SELF`], except in tests.
    pub executable: PathBuf,
}

impl Config {
    /// The running program, also after its file was replaced.
    pub const SELF: &str = "/proc/self/exe";

    /// Where pods are remembered: one folder a uid.
    pub fn pods_dir(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    /// The files of one run of a container.
    pub fn bundle(&self, uid: &str, id: &str) -> Bundle {
        record::PodDir::at(self.pods_dir().join(uid)).bundle(id)
    }

    /// Container logs: NAMESPACE_POD_UID/CONTAINER/RESTART.log, in CRI format.
    pub fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// The image store.
    pub fn images_dir(&self) -> PathBuf {
        images_dir(&self.state_dir)
    }
}

/// The image store of an agent whose folder is `state_dir`.
pub fn images_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("images")
}

/// The node's allocatable resources.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// In thousandths of a core.
    pub cpu_millis: u64,
    /// In bytes.
    pub memory_bytes: u64,
    /// Processes and threads that one container may have: a fork bomb takes no more.
    pub container_pids: i64,
}

/// What a new manager found running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adoption {
    /// Containers that ran on while there was no agent.
    pub containers: usize,
    /// How long it took to take all of them over.
    pub elapsed: Duration,
}

/// A pod as it stands on the node, for `portolan-agent status`.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PodSnapshot {
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
    /// The bind-mounted network namespace; absent for hostNetwork and before the network is made.
    pub netns: Option<PathBuf>,
    /// status.podIPs.
    pub addresses: Vec<IpAddr>,
    /// Those that run.
    pub containers: Vec<ContainerSnapshot>,
}

/// A running container, for `portolan-agent status`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ContainerSnapshot {
    /// Its name in the pod.
    pub name: String,
    /// The first process of it, as the node sees it.
    pub pid: i32,
    /// Without "portolan://".
    pub id: String,
    /// containerStatuses[].restartCount.
    pub restarts: i32,
}

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
    /// A container of the pod has ended just now. How, and what comes of it, its status will say in a moment.
    Died {
        /// Whose.
        pod: PodRef,
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

/// The names of a pod.
fn pod_ref(pod: &Pod) -> PodRef {
    let metadata = &pod.metadata;
    PodRef {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
    }
}

/// A container of a pod by its name, init containers too.
fn container_named<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    let mut all = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    all.find(|container| container.name == name)
}

/// As messages name pods: "web_default(5f6c...)".
fn full_name(pod: &Pod) -> String {
    let pod = pod_ref(pod);
    format!("{}_{}({})", pod.name, pod.namespace, pod.uid)
}

/// An error and its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    text
}
