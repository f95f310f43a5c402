//! What agents say to the control plane over gRPC: how a node joins, and how it hears of routes.
//!
//! Handlers check, call the domain and convert. Who calls is known from TLS: the HTTP layer puts [`Caller`] into the
//! request's extensions.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use portolan_wire::v1::join_server::JoinServer;
use portolan_wire::v1::routes_server::RoutesServer;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;

use crate::api::{Api, Caller};
use crate::pki::Authority;
use crate::routing::Publisher;
use crate::store::Store;

mod convert;
mod follow;
mod join;
mod members;
pub mod token;

pub use members::Members;

/// What the services work with.
pub struct Services {
    /// Where tokens and leases are.
    pub api: Arc<dyn Api>,
    /// Where it is kept which key each node joined with.
    pub store: Arc<dyn Store>,
    /// Who signs node certificates.
    pub authority: Arc<Authority>,
    /// The keys of what is encrypted in the store, for servers that join.
    pub key_file: Option<PathBuf>,
    /// Where routes come from.
    pub publisher: Arc<Publisher>,
    /// Ends every stream.
    pub shutdown: CancellationToken,
}

/// The services as a router for the TLS port.
pub fn router(services: Services) -> Router {
    let members = Members::new(Arc::clone(&services.api), services.store);
    let join = join::Service::new(services.api, services.authority, members, services.key_file);
    let follow = follow::Service::new(services.publisher, services.shutdown);
    Routes::new(JoinServer::new(join))
        .add_service(RoutesServer::new(follow))
        .into_axum_router()
}

/// Who sent a request.
fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, Box<Status>> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Box::new(Status::internal("the connection has no identity")))
}

#[cfg(test)]
mod tests;
