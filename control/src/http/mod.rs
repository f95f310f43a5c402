//! The API over HTTP: TLS with optional client certificates, HTTP/1.1 and h2, Kubernetes' paths, media types and words.
//! gRPC services share the port: what comes as `application/grpc` goes to their router.

mod body;
mod connection;
mod discovery;
mod handlers;
mod health;
mod identity;
mod listing;
mod metrics;
mod negotiate;
mod openapi;
mod query;
mod respond;
mod route;
mod streams;
mod table;
mod usage;

pub use connection::{Error, serve};
pub use health::{Check, Health};
pub use streams::agents::Agents;

use std::sync::Arc;

use crate::api::engine::Engine;
use crate::routing::Programming;
use crate::store::Store;

/// What answers requests.
#[derive(Clone)]
pub struct Server {
    /// The API.
    pub engine: Arc<Engine>,
    /// What must hold for the server to be ready.
    pub health: Health,
    /// The nodes' agents.
    pub agents: Agents,
    /// What is known of how soon nodes have their routes.
    pub programming: Arc<Programming>,
    /// The store as it is on the disk, for backups.
    pub store: Option<Arc<dyn Store>>,
    documents: openapi::Documents,
}

impl Server {
    /// A server of an engine.
    pub fn new(
        engine: Arc<Engine>,
        health: Health,
        agents: Agents,
        programming: Arc<Programming>,
    ) -> Self {
        Self {
            engine,
            health,
            agents,
            programming,
            store: None,
            documents: openapi::Documents::default(),
        }
    }
}

#[cfg(test)]
mod tests;
