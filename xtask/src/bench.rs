//! `cargo xtask bench`: builds portolan-lb, brings what the other paths need, and runs `portolan-lb bench`.
//!
//! With `--against REV` another commit is built in a folder of its own, and both run by turns: A B A B.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{build_ebpf, cargo, command, machine, progress::Progress, setup, workspace::Workspace};

/// What to measure.
#[derive(Args)]
pub struct Options {
    /// Another commit to compare with
    #[arg(long)]
    against: Option<String>,
    /// What `portolan-lb bench` is given: names of benchmarks, --services, --json, --html, --compare ...
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    machine::require_root("bench")?;
    let progress = Progress::new();
    setup::ensure(workspace, &progress)?;
    setup::ensure_for_bench(workspace, &progress)?;
    let step = progress.step("build");
    build_ebpf::build(workspace)?;
    let ours = build(workspace.root(), workspace.target())?;
    step.done("");
    let (revision, rest) = options.split();
    match revision {
        None => bench(workspace, &ours, &rest),
        Some(revision) => against(workspace, &progress, &ours, &revision, &rest),
    }
}

impl Options {
    /// The commit to compare with, wherever it stands among the arguments, and the arguments without it.
    fn split(&self) -> (Option<String>, Vec<String>) {
        let mut revision = self.against.clone();
        let mut rest = Vec::new();
        let mut arguments = self.rest.iter();
        while let Some(argument) = arguments.next() {
            if argument == "--against" {
                revision = arguments.next().cloned();
            } else {
                rest.push(argument.clone());
            }
        }
        (revision, rest)
    }
}

/// Builds the program of a tree. The selection is the one of `up` and `test`, so that nothing is compiled twice.
fn build(tree: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = cargo::as_user();
    cargo
        .current_dir(tree)
        .args(["build", "--quiet", "--bin", "portolan-lb", "--target-dir"])
        .arg(target);
    command::output(&mut cargo)?;
    Ok(target.join("debug/portolan-lb"))
}

fn bench(workspace: &Workspace, program: &Path, arguments: &[String]) -> Result<()> {
    let mut bench = Command::new(program);
    bench
        .arg("bench")
        .args(arguments)
        .env("PATH", workspace.path_variable()?);
    command::run(&mut bench)
}

/// Builds another commit, and runs it and ours by turns; the last run says what changed.
fn against(
    workspace: &Workspace,
    progress: &Progress,
    ours: &Path,
    revision: &str,
    arguments: &[String],
) -> Result<()> {
    let tree = workspace.target().join("bench/tree");
    let target = workspace.target().join("bench/target");
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(workspace.root()).args(arguments);
        command::output(&mut git)
    };
    let path = tree.to_string_lossy().into_owned();
    // A tree that an interrupted run left behind.
    drop(git(&["worktree", "remove", "--force", &path]));
    git(&["worktree", "add", "--quiet", "--detach", &path, revision])
        .with_context(|| format!("check {revision} out"))?;
    let step = progress.step(revision);
    let theirs = build_tree(&tree, &target);
    let compared = theirs.and_then(|theirs| {
        step.done("built");
        by_turns(workspace, [&theirs, ours], arguments)
    });
    git(&["worktree", "remove", "--force", &path])?;
    compared
}

/// Another tree's own xtask knows how its kernel programs are built.
fn build_tree(tree: &Path, target: &Path) -> Result<PathBuf> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let mut ebpf = cargo::as_user();
    ebpf.current_dir(tree)
        .args(["run", "--quiet", "--package", "xtask", "--target-dir"])
        .arg(target)
        .args(["--", "build-ebpf"]);
    command::output(&mut ebpf)?;
    build(tree, target)
}

fn by_turns(workspace: &Workspace, programs: [&Path; 2], arguments: &[String]) -> Result<()> {
    let results = workspace.target().join("bench");
    for round in 1..=2 {
        for (name, program) in ["a", "b"].iter().zip(programs) {
            let json = results.join(format!("{name}{round}.json"));
            let mut all = arguments.to_vec();
            all.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
            if *name == "b" {
                let old = results.join(format!("a{round}.json"));
                all.extend(["--compare".to_owned(), old.to_string_lossy().into_owned()]);
            }
            bench(workspace, program, &all)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_commit_may_stand_anywhere() {
        let rest = ["xdp/hit", "--against", "main", "--flows", "1"].map(str::to_owned);
        let options = Options {
            against: None,
            rest: rest.to_vec(),
        };
        let (revision, rest) = options.split();
        assert_eq!(revision.as_deref(), Some("main"));
        assert_eq!(rest, ["xdp/hit", "--flows", "1"]);
    }
}
