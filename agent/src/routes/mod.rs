//! From the control plane's routing table to the dataplane's maps.
//!
//! ```text
//!   gRPC stream --> Follower --> Table (checked, persisted) --> DataplaneThread --> maps --> ack
//!   PodReport  --> Withdrawals -----------------------------^        (a dead pod leaves at once)
//!                     nodes of the table --> network::NodeNetwork (routes to their pods)
//! ```
//!
//! - A generation older than the agent's own is refused; a delta on another base ends the stream, and the next one
//!   begins with a snapshot.
//! - Nothing is deleted from the maps that an earlier agent left until the control plane has spoken once.
//! - The last table is on disk (STATE/routes.json) and is served from there while the control plane is away.
//! - One thread owns the dataplane. Work comes to it in small jobs, so that a withdrawal never waits for a whole table.

#![forbid(unsafe_code)]

mod convert;
mod engine;
mod follow;
mod health;
mod store;
mod table;
mod view;
mod withdrawal;

pub use convert::{ConvertError, EndpointRoute, NodeRoute, ServiceRoute};
pub use engine::{DataplaneStopped, DataplaneThread, Maps, Opening};
pub use follow::{FollowConfig, Follower, RouteStatus};
pub use health::answer_health_checks;
pub use store::TableStore;
pub use table::{Change, Table, UpdateError};
pub use view::Here;
pub use withdrawal::{Action, Withdrawals};
