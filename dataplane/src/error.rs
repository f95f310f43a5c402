//! What can go wrong, each with the object it went wrong on and the kernel's answer.

use std::{io, path::PathBuf};

/// Why the dataplane could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller lacks the capabilities that BPF needs.
    #[error("the dataplane needs root (CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN)")]
    NotPermitted,
    /// The object with the kernel programs is not there.
    #[error("the kernel object {path} is missing: run cargo xtask build-ebpf")]
    ObjectMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be read.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot do something that the dataplane stands on.
    #[error("this kernel has no {feature} (Linux {since} and newer have it)")]
    FeatureMissing {
        /// What is missing.
        feature: &'static str,
        /// The first kernel that has it.
        since: &'static str,
        /// What the kernel said, where it was asked.
        source: Option<io::Error>,
    },
    /// The pinned maps were made by a version of Portolan with another layout.
    #[error(
        "the maps pinned at {path} have layout {found}, this program knows {expected}: remove them by draining the node and running teardown"
    )]
    AbiMismatch {
        /// The folder of the pins.
        path: PathBuf,
        /// The version that the maps say.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// The network interface does not exist in the caller's namespace.
    #[error("there is no network interface {0} in this network namespace")]
    InterfaceMissing(String),
    /// A table has no free place.
    #[error("the table of {table} is full ({capacity} entries)")]
    TableFull {
        /// What the table holds.
        table: &'static str,
        /// How many it can hold.
        capacity: u32,
    },
    /// A service's frontend belongs to another service already.
    #[error("{frontend} belongs to {owner} already")]
    FrontendTaken {
        /// The address and port.
        frontend: String,
        /// The service that has it.
        owner: String,
    },
    /// The service is not one that the dataplane can express.
    #[error("service {name}: {reason}")]
    InvalidService {
        /// Which.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The ring buffer of reports has one reader.
    #[error("packets are being watched already: only one trace or flow log can run at a time")]
    AlreadyWatched,
    /// A system call failed.
    #[error("{operation} {object}")]
    System {
        /// A verb of the domain: "pin map".
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to load a program or to make a map.
    #[error("{operation} {object}")]
    Kernel {
        /// A verb of the domain: "load program".
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// The loader's answer, with the verifier's log.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
