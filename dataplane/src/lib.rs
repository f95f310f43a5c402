//! The dataplane: loads and attaches the kernel programs, owns their maps and turns services into map contents.
//!
//! It knows services, backends and devices; no Kubernetes type, no gRPC, no container. aya's types stay inside.

mod allocation;
mod backends;
mod choice;
mod config;
mod dataplane;
mod error;
mod flows;
mod frontends;
mod maps;
pub mod model;
mod pods;
mod programs;
mod records;
mod services;
mod sys;

pub use config::{Capacity, Config, PodInterface, Swept, Transmit};
pub use dataplane::Dataplane;
pub use error::Error;
pub use programs::Run;

/// Leaves the checksums of what an interface sends to the device, or has the stack complete them.
///
/// XDP sees packets as they were sent. Where veths stand for wires, a wire's far end must complete checksums, or the
/// uplink's XDP leaves its packets to tcx.
pub fn offload_checksums(interface: &str, offload: bool) -> Result<(), Error> {
    sys::offload_checksums(interface, offload).map_err(|source| Error::System {
        operation: "set checksum offload of",
        object: interface.to_owned(),
        source,
    })
}
