//! The cluster, as a node sees it through the Kubernetes API: its own Node and Lease, its pods, their Events.
//!
//! ```text
//!   pods bound to the node  --watch-->  PodCommand  -->  pod::Manager
//!   pod::Manager  -->  PodReport  -->  Reporter  --PATCH status, DELETE-->  API
//!                                      Recorder  --Events-->               API
//!   Heartbeat  --Lease every 10 s, Node status when it changed-->          API
//! ```
//!
//! - Each writer holds the newest state of what it writes and tries until it is written; a control plane that is away
//!   loses nothing but the states in between.
//! - A write names the uid that it means: the successor of the same name is never touched.
//! - This is the only module that knows kube's client.

#![forbid(unsafe_code)]

use std::{future::Future, time::Duration};

pub use kube::Client;

mod client;
mod events;
mod heartbeat;
mod machine;
mod node;
mod pods;
mod references;
mod reporter;
mod status_patch;

pub use client::client;
pub use events::{EventSubject, Recorder};
pub use heartbeat::Heartbeat;
pub use machine::{Machine, MachineError, Pressure};
pub use node::{NodeFacts, pod_cidrs, register};
pub use pods::follow_pods;
pub use references::ApiReferences;
pub use reporter::{Reporter, ReporterInput};

use crate::errors::chain;

/// How long a single request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The client can't be set up with what the node has.
    #[error("set up the client for {server}")]
    Client {
        /// The control server.
        server: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The API said no, or nothing.
    #[error("{operation} {object}")]
    Request {
        /// "patch status of pod".
        operation: &'static str,
        /// "default/web-1".
        object: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// No answer came in time.
    #[error("{operation} {object}: no answer in {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut {
        /// "patch status of pod".
        operation: &'static str,
        /// "default/web-1".
        object: String,
    },
}

impl ClusterError {
    /// The API's HTTP status code, if it was the API that said no.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Request {
                source: kube::Error::Api(status),
                ..
            } => Some(status.code),
            _ => None,
        }
    }

    /// Whether the object is gone, or another one has its name.
    fn is_gone(&self) -> bool {
        matches!(self.code(), Some(404 | 409))
    }

    /// Whether the API understood and will never accept it.
    fn is_final(&self) -> bool {
        matches!(self.code(), Some(400 | 405 | 413 | 415 | 422))
    }

    /// The error with its causes, for a log line.
    fn chain(&self) -> String {
        chain(self)
    }
}

/// Awaits one request, for no longer than a request may take.
async fn request<T>(
    operation: &'static str,
    object: &str,
    work: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ClusterError::Request {
            operation,
            object: object.to_owned(),
            source,
        }),
        Err(_) => Err(ClusterError::TimedOut {
            operation,
            object: object.to_owned(),
        }),
    }
}
