//! What all workers share: the node, its image store, its network, and where reports go.
#![forbid(unsafe_code)]

use std::{io, sync::Arc};

use super::{
    Config, EventSeverity, PodRef, PodReport, References, outbox::Outbox, pulls::Images,
    record::PodDir,
};
use crate::{
    network::PodNetwork,
    runtime::{bundle::Bundle, cgroup, container::Launcher, mount},
};

/// The node as workers see it.
pub struct Node {
    /// Where everything lies.
    pub config: Config,
    /// Makes pod networks.
    pub network: Arc<dyn PodNetwork>,
    /// Reads what pods refer to.
    pub references: Arc<dyn References>,
    /// Starts containers.
    pub launcher: Launcher,
    /// Images.
    pub images: Images,
    /// Reports.
    pub outbox: Outbox,
}

impl Node {
    /// The files of a pod.
    pub fn pod_dir(&self, uid: &str) -> PodDir {
        PodDir::at(self.config.pods_dir().join(uid))
    }

    /// The control group of a pod.
    pub fn pod_cgroup(&self, uid: &str) -> std::path::PathBuf {
        self.config.cgroup_root.join(format!("pod{uid}"))
    }

    /// Tells users something about a pod.
    pub fn event(
        &self,
        pod: &PodRef,
        severity: EventSeverity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let message = message.into();
        tracing::info!(
            namespace = pod.namespace,
            pod = pod.name,
            reason,
            message,
            "event"
        );
        self.outbox.put(PodReport::Event {
            pod: pod.clone(),
            severity,
            reason,
            message,
        });
    }

    /// Removes all that is left of a container that does not run; blocks.
    pub fn clear_container(&self, uid: &str, bundle: &Bundle) -> io::Result<()> {
        let Some(id) = bundle.path().file_name() else {
            return Ok(());
        };
        cgroup::remove(&self.pod_cgroup(uid).join(id))?;
        mount::unmount_all(bundle.path())?;
        crate::runtime::bundle::remove_tree(bundle.path())
    }
}

/// Runs what blocks beside the event loop.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
