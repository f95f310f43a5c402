//! The API over HTTP: TLS with optional client certificates, HTTP/1.1 and h2, Kubernetes' paths, media types and words.
//! gRPC services share the port: what comes as `application/grpc` goes to their router.

mod body;
mod connection;
mod discovery;
mod handlers;
mod health;
mod identity;
mod listing;
mod negotiate;
mod openapi;
mod query;
mod respond;
mod route;
mod table;

pub use connection::{Error, serve};
pub use health::{Check, Health};

use std::sync::Arc;

use crate::api::engine::Engine;

/// What answers requests.
#[derive(Clone)]
pub struct Server {
    /// The API.
    pub engine: Arc<Engine>,
    /// What must hold for the server to be ready.
    pub health: Health,
    documents: openapi::Documents,
}

impl Server {
    /// A server of an engine.
    pub fn new(engine: Arc<Engine>, health: Health) -> Self {
        Self {
            engine,
            health,
            documents: openapi::Documents::default(),
        }
    }
}

#[cfg(test)]
mod tests;
