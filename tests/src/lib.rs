//! What end-to-end tests are made of: a cluster that `cargo xtask up` starts, kubectl, load, and looks at the machine.
//!
//! The tests themselves are in `tests/cluster`; they share one cluster after the other, so they run one by one.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod daemon;
pub mod kubectl;
pub mod load;
pub mod machine;
pub mod wait;

pub use cluster::Cluster;
pub use load::{From, Load};
pub use wait::wait_for;
