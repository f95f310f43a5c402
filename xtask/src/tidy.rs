//! `cargo xtask tidy`: formatting, lints, layout rules and licences. Every fault is shown, not just the first.

mod layout;
mod licences;
mod packages;
mod sources;

use anyhow::{Context, Result, bail};

use crate::{
    build_ebpf::{self, Toolchain},
    cargo, command,
    progress::Progress,
    workspace::Workspace,
};

/// A name, and what finds the faults.
type Check<'a> = (&'a str, &'a dyn Fn() -> Result<Vec<String>>);

/// The command.
pub fn run(workspace: &Workspace) -> Result<()> {
    let progress = Progress::new();
    let metadata = packages::Metadata::load(workspace)?;
    let sources = sources::Sources::read(workspace)?;
    let checks: [Check<'_>; 7] = [
        ("formatting", &|| formatting(workspace)),
        ("layout", &|| Ok(layout::check(&sources))),
        ("words", &|| Ok(sources::words(&sources))),
        ("dependencies", &|| Ok(metadata.directions())),
        ("licences", &|| licences::check(workspace, &metadata)),
        ("lints", &|| Ok(lints(workspace))),
        ("kernel lints", &|| kernel_lints(workspace, &progress)),
    ];
    let mut count = 0;
    for (name, check) in checks {
        let step = progress.step(name);
        let faults = check().with_context(|| format!("check {name}"))?;
        count += faults.len();
        if faults.is_empty() {
            step.done("");
        }
        for fault in faults {
            progress.say(&format!("  {fault}"));
        }
    }
    if count > 0 {
        bail!("{count} faults");
    }
    Ok(())
}

fn formatting(workspace: &Workspace) -> Result<Vec<String>> {
    let output = cargo::as_user()
        .current_dir(workspace.root())
        .args(["fmt", "--all", "--check", "--", "--files-with-diff"])
        .output()
        .context("cannot run cargo fmt")?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let mut faults: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|file| format!("{file} is not formatted: cargo fmt --all"))
        .collect();
    if faults.is_empty() {
        faults.push(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(faults)
}

fn lints(workspace: &Workspace) -> Vec<String> {
    let mut clippy = cargo::as_user();
    clippy.current_dir(workspace.root()).args([
        "clippy",
        "--quiet",
        "--all-targets",
        "--",
        "-Dwarnings",
    ]);
    match command::run(&mut clippy) {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!("{error:#}")],
    }
}

/// The kernel programs can only be linted by a clippy that belongs to their compiler, and a distribution's has none.
fn kernel_lints(workspace: &Workspace, progress: &Progress) -> Result<Vec<String>> {
    if build_ebpf::detect(workspace) != Some(Toolchain::Nightly) {
        progress.say("  the compiler of the kernel programs has no clippy: they are only built");
        build_ebpf::build(workspace)?;
        return Ok(Vec::new());
    }
    Ok(match build_ebpf::clippy(workspace) {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!("{error:#}")],
    })
}
