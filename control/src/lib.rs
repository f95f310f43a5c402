//! The control plane: API server, scheduler, controllers and route distribution, in one process without state of its
//! own.
//!
//! ```text
//! kubectl, agents -- TLS --> http --> api (engine) --> store (embedded file, or etcd)
//!          agents -- gRPC -> grpc      ^    |  watches
//!                             ^        |    v
//!                             |     controllers, scheduler, allocation
//!                             '---- routing (table, generations)
//! ```
//!
//! # Invariants
//! - Whatever is acknowledged is in the store. The process may be killed at any time and started again.
//! - Every write of an object goes through [`api`], whoever asks; only the certificate authority, the allocations and
//!   the nodes' keys lie beside the objects in the store.
//! - Of several servers one leads: what the cluster does by itself ([`leadership`]) is done there, and every write of it carries
//!   a compare on the leader's key.
//! - [`routing`], [`scheduler`] and [`controllers`] know no HTTP, no gRPC and no store backend: [`run`] joins the parts.
//! - A node hears of routes only what its certificate lets it; who a caller is comes from TLS alone.
//! - What one client does not read holds up nobody: watchers and followers pull at their own pace.
//!
//! # How to inspect it
//! `/readyz?verbose` says what is not ready; `RUST_LOG=portolan_control=debug` shows generations, acks and watches that
//! end. "every node has the routing table" in the log is the time from an endpoint's change to the last node's maps.
//!
//! # How to test it
//! `cargo test -p portolan-control`. The store's suite runs on a real etcd too and says so when there is none.
//! `PORTOLAN_WATCH_RUNS=200 cargo test --test watches` is the long run of what compares watchers with the store's history
//! while servers and members of etcd die.

#![forbid(unsafe_code)]

pub mod allocation;
pub mod api;
pub mod backups;
mod bootstrap;
pub mod cli;
pub mod controllers;
pub mod grpc;
pub mod http;
pub mod leadership;
mod opening;
pub mod pki;
mod random;
pub mod resource;
pub mod routing;
pub mod run;
pub mod scheduler;
mod server_join;
pub mod store;
pub mod token_client;
