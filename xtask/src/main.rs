//! `cargo xtask`: every developer command, one file each.
//!
//! It depends on none of the project's crates and on few others, so it builds on a machine that has only a Rust
//! toolchain; whatever else the project needs, [`setup`] installs.

#![forbid(unsafe_code)]

mod bench;
mod build_ebpf;
mod cargo;
mod cluster;
mod command;
mod daemon;
mod demo;
mod down;
mod machine;
mod progress;
mod setup;
mod test;
mod tidy;
mod up;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Every developer command of Portolan.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
enum Xtask {
    /// Install what building and running need: Debian packages, the eBPF toolchain, kubectl
    Setup,
    /// Start a cluster on this machine, apply a demo and show it working
    Up(up::Options),
    /// Take the cluster away again, leaving nothing behind
    Down,
    /// Run the tests: unit, kernel and e2e unless told otherwise
    Test(test::Options),
    /// Run a command in a virtual machine with another kernel
    Vm(vm::Options),
    /// Measure what forwarding costs, with the peers beside it in the same run
    Bench(bench::Options),
    /// Check formatting, lints, layout rules and licences
    Tidy,
    /// Build the kernel programs
    BuildEbpf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What failed and why; where in xtask is nobody's concern.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let workspace = Workspace::locate()?;
    match Xtask::parse() {
        Xtask::Setup => setup::run(&workspace),
        Xtask::Up(options) => up::run(&workspace, &options),
        Xtask::Down => down::run(&workspace),
        Xtask::Test(options) => test::run(&workspace, &options),
        Xtask::Vm(options) => vm::run(&workspace, &options),
        Xtask::Bench(options) => bench::run(&workspace, &options),
        Xtask::Tidy => tidy::run(&workspace),
        Xtask::BuildEbpf => build_ebpf::run(&workspace),
    }
}
