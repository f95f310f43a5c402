//! What every node must know to route: services with their endpoints, and the nodes themselves.
//!
//! ```text
//! Api list+watch -> Index (objects) -> Table (ports, endpoints, nodes) -> Publisher: generation n, what changed
//!                                                                           \-> followers: snapshot or delta, ack
//! ```
//!
//! A generation counts within an epoch, which is one life of one server. Nothing is published before all that it is
//! made from has been listed once: a table without a service tells the nodes to forget that service.

mod compile;
mod index;
mod latency;
pub mod options;
mod publisher;
mod source;
mod table;

#[cfg(test)]
mod golden;

pub use index::{Input, Key};
pub use latency::{Latency, Programming};
pub use publisher::{Change, Published, Publisher, Subscription};
pub use source::run;
pub use table::{
    Algorithm, Distribution, Endpoint, Frontend, FrontendKind, NodeEntry, Options, Protocol,
    ReturnPath, ServicePort, Table, TrafficPolicy,
};
