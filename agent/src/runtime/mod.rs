//! Containers: from a description to a running process, its log and its end, through libcontainer.
//!
//! ```text
//! ContainerConfig --spec--> config.json --Launcher--> shim --libcontainer--> container
//!                                            ^          |
//!                                            `- adopt --'  (by lock, pid and start time)
//! ```
//!
//! libcontainer's types never leave this module, and libcontainer never runs in the agent itself: see [`shim`].

pub mod bundle;
pub mod cgroup;
pub mod container;
pub mod cpu;
mod devices;
pub mod log;
pub mod memory;
pub mod mount;
pub mod process;
pub mod shim;
pub mod spec;
pub mod sys;
pub mod terminal;

use std::{ffi::OsString, process::ExitCode};

/// The `shim` subcommand, to be called before any thread exists. `args` is what follows "shim".
pub fn shim_main(args: &[OsString]) -> ExitCode {
    shim::main(args)
}
