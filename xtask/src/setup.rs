//! `cargo xtask setup`: installs what is missing and says what and why; when nothing is missing, it does nothing.
//!
//! Everything comes from the distribution's own archive or, for the eBPF linker, from crates.io; the kubectls that the tests
//! run come from the Python package index.

pub mod archive;
mod kubectl;
mod kubectls;
pub mod linker;
mod packages;
pub mod qemu;
pub mod suites;

use std::time::Instant;

use anyhow::Result;

use crate::{progress::Progress, workspace::Workspace};

/// The command.
pub fn run(workspace: &Workspace) -> Result<()> {
    let progress = Progress::new();
    let installed = [
        ensure(workspace, &progress)?,
        ensure_clients(workspace, &progress)?,
    ];
    if !installed.contains(&true) {
        progress.say(&format!(
            "nothing to install, checked in {:.2} s",
            progress.elapsed().as_secs_f64()
        ));
    }
    Ok(())
}

/// Brings everything in place that building, running and testing need. Whether anything was missing.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    let started = Instant::now();
    let installed = [
        packages::ensure(workspace, progress)?,
        linker::ensure(workspace, progress)?,
        kubectl::ensure(workspace, progress)?,
    ]
    .contains(&true);
    if installed {
        progress.say(&format!(
            "setup is complete after {:.0} s",
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(installed)
}

/// The same for what only tests need: clients of the API as they are, old and new.
pub fn ensure_clients(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    let installed = [
        packages::ensure_clients(workspace, progress)?,
        kubectls::ensure(workspace, progress)?,
    ];
    Ok(installed.contains(&true))
}

/// The same for what only the benchmark needs.
pub fn ensure_for_bench(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    packages::ensure_for_bench(workspace, progress)
}
