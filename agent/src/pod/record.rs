//! What is remembered of a pod on disk, so that a new agent goes on where the last one stopped.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodCondition;
use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use crate::{
    network::PodNetworkStatus,
    runtime::bundle::{Bundle, Exit},
};

/// A pod's past.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodRecord {
    /// status.startTime.
    pub since: Timestamp,
    /// Once the pod has its namespaces and network.
    pub network: Option<PodNetworkStatus>,
    /// Whether everything that containers share is ready.
    pub sandbox: bool,
    /// When the pod was told to end.
    pub ending_since: Option<Timestamp>,
    /// By container name, init containers too: names are unique in a pod.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// As last told, for their transition times.
    pub conditions: Vec<PodCondition>,
    /// Why the node has ended the pod for good.
    #[serde(default)]
    pub failed: Option<Failure>,
}

/// Why a pod is failed, whatever its containers do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// status.reason: "DeadlineExceeded", "Evicted".
    pub reason: String,
    /// status.message.
    pub message: String,
}

impl PodRecord {
    /// Of a pod that the node hears of for the first time.
    pub fn new(now: Timestamp) -> PodRecord {
        PodRecord {
            since: now,
            network: None,
            sandbox: false,
            ending_since: None,
            containers: BTreeMap::new(),
            conditions: Vec::new(),
            failed: None,
        }
    }

    /// A container's record, made when there is none.
    pub fn container(&mut self, name: &str) -> &mut ContainerRecord {
        self.containers.entry(name.to_owned()).or_default()
    }
}

/// A container's past and present.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// How often it was made.
    pub attempts: u32,
    /// While it is being started, or runs.
    pub current: Option<Instance>,
    /// How it ended last, and before that.
    pub ends: Vec<Termination>,
    /// Why it does not run although it should.
    pub waiting: Option<Waiting>,
    /// Between restarts.
    pub backoff: Backoff,
    /// Between pulls, and the time of the last failure.
    pub pull: Backoff,
    /// When the image could not be had.
    pub pull_failed: Option<PullFailure>,
    /// What its readiness probe says; without one, whether it runs.
    pub ready: bool,
    /// Whether its startup probe has succeeded; without one, whether it runs.
    pub started: bool,
}

/// The last failure to get an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullFailure {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub message: String,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Unique on the node.
    pub id: String,
    /// The image's name as normalised.
    pub image: String,
    /// repository@digest.
    pub image_id: String,
    /// Once it runs and its postStart hook has ended.
    pub started_at: Option<Timestamp>,
    /// What asks it to end.
    pub stop_signal: i32,
    /// Once it is to end.
    #[serde(default)]
    pub stopping: Option<Stopping>,
}

/// How far the end of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// When it is killed.
    pub deadline: Timestamp,
    /// Whether it was asked to end. Before, its preStop hook runs and others may have to end first.
    pub is_signalled: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// Of the container that ran; absent when nothing is known of it.
    pub id: String,
    /// The image's name as normalised.
    pub image: String,
    /// repository@digest.
    pub image_id: String,
    /// What it returned, or 128 and the signal's number.
    pub exit_code: i32,
    /// What killed it.
    pub signal: Option<i32>,
    /// "Completed", "Error", "OOMKilled", "StartError", "ContainerStatusUnknown".
    pub reason: String,
    /// What it said itself, or why it did not start.
    pub message: Option<String>,
    /// Absent when it never ran.
    pub started_at: Option<Timestamp>,
    /// When.
    pub finished_at: Timestamp,
}

impl Termination {
    /// Of a run whose end was seen.
    pub fn seen(instance: &Instance, exit: &Exit, message: Option<String>) -> Termination {
        let reason = match exit {
            Exit { code: 0, .. } => "Completed",
            Exit {
                oom_killed: true, ..
            } => "OOMKilled",
            _ => "Error",
        };
        Termination {
            exit_code: exit.code,
            signal: exit.signal,
            message,
            started_at: Some(exit.started_at),
            finished_at: exit.finished_at,
            ..Termination::unseen(instance, reason, exit.finished_at)
        }
    }

    /// Of a run that ended while nobody looked.
    pub fn lost(instance: &Instance, now: Timestamp) -> Termination {
        Termination {
            message: Some("The container could not be located when the pod was terminated".into()),
            ..Termination::unseen(instance, "ContainerStatusUnknown", now)
        }
    }

    /// Of a container that could not be started.
    pub fn not_started(instance: &Instance, message: String, now: Timestamp) -> Termination {
        Termination {
            exit_code: 128,
            message: Some(message),
            started_at: None,
            ..Termination::unseen(instance, "StartError", now)
        }
    }

    fn unseen(instance: &Instance, reason: &str, now: Timestamp) -> Termination {
        Termination {
            id: instance.id.clone(),
            image: instance.image.clone(),
            image_id: instance.image_id.clone(),
            exit_code: 137,
            signal: None,
            reason: reason.into(),
            message: None,
            started_at: instance.started_at,
            finished_at: now,
        }
    }
}

/// Why a container does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// "CrashLoopBackOff", "ErrImagePull", ...
    pub reason: String,
    /// For users.
    pub message: Option<String>,
}

impl Waiting {
    /// With a message.
    pub fn new(reason: &str, message: impl Into<String>) -> Waiting {
        Waiting {
            reason: reason.into(),
            message: Some(message.into()),
        }
    }
}

impl ContainerRecord {
    /// containerStatuses[].restartCount.
    pub fn restarts(&self) -> i32 {
        i32::try_from(self.attempts.saturating_sub(1)).unwrap_or(i32::MAX)
    }

    /// How it ended last.
    pub fn last_end(&self) -> Option<&Termination> {
        self.ends.first()
    }

    /// Its current run is over.
    pub fn end(&mut self, termination: Termination) {
        self.current = None;
        self.ready = false;
        self.started = false;
        self.ends.insert(0, termination);
        self.ends.truncate(2);
    }
}

/// The files of one pod.
#[derive(Clone, Debug)]
pub struct PodDir {
    root: PathBuf,
}

impl PodDir {
    /// The folder `root` of a pod, whether it exists or not.
    pub fn at(root: PathBuf) -> PodDir {
        PodDir { root }
    }

    /// The folder.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// The pod's object as last heard of.
    pub fn object(&self) -> crate::runtime::bundle::Document<k8s_openapi::api::core::v1::Pod> {
        crate::runtime::bundle::Document::new(self.root.join("pod.json"))
    }

    /// What is remembered.
    pub fn record(&self) -> crate::runtime::bundle::Document<PodRecord> {
        crate::runtime::bundle::Document::new(self.root.join("record.json"))
    }

    /// The folders of its containers.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// The folder of one container.
    pub fn bundle(&self, id: &str) -> Bundle {
        Bundle::at(self.containers().join(id))
    }

    /// A namespace file: "ipc", "uts".
    pub fn namespace(&self, kind: &str) -> PathBuf {
        self.root.join("ns").join(kind)
    }

    /// What the pod's containers see as /dev/shm.
    pub fn shm(&self) -> PathBuf {
        self.root.join("shm")
    }

    /// A file that every container of the pod sees in /etc: "hosts", "hostname", "resolv.conf".
    pub fn etc(&self, name: &str) -> PathBuf {
        self.root.join("etc").join(name)
    }

    /// The folder of a volume.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }
}
