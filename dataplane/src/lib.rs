//! The dataplane: loads and attaches the kernel programs, owns their maps and turns services into map contents.
//!
//! It knows services, backends and devices; no Kubernetes type, no gRPC, no container. aya's types stay inside.

mod config;
mod dataplane;
mod error;
pub mod model;

pub use config::{Capacity, Config, PodInterface, Swept, Transmit};
pub use dataplane::Dataplane;
pub use error::Error;
