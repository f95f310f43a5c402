//! `cargo xtask bench`: builds portolan-lb, brings what the other paths need, and runs `portolan-lb bench`.
//!
//! With `--against REV` another commit is built in a folder of its own, and both run by turns: A B A B. What is reported
//! is ours of both rounds together, and what changed since the other's.
//!
//! `cargo xtask bench control/scheduler` measures the scheduler by itself instead: no kernel, no root, a release build.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
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

/// What the names of benchmarks of the control plane begin with.
const CONTROL: &str = "control/";

/// The command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut rest = options.rest.iter();
    if rest.any(|argument| argument.starts_with(CONTROL)) {
        return control(workspace, options);
    }
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
        // Before anything is built for minutes.
        Some(_)
            if rest
                .iter()
                .any(|argument| argument.starts_with("--compare")) =>
        {
            bail!(
                "--against compares with another commit, --compare with a file: ask for one of them"
            )
        }
        Some(revision) => against(workspace, &progress, &ours, &revision, &rest),
    }
}

/// Builds the control plane's benchmark as users have it, and runs it.
fn control(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.against.is_some() || options.rest.iter().any(|one| one == "--against") {
        bail!("{CONTROL} benchmarks are not compared with another commit yet: keep --json of both");
    }
    let mut bench = cargo::as_user();
    bench
        .current_dir(workspace.root())
        .args(["bench", "--quiet", "--bench", "scheduler", "--"])
        .args(with_whole_paths(&options.rest)?);
    command::run(&mut bench)
}

/// The arguments with the file of --json as it is named from here: cargo runs benchmarks in their package's folder.
fn with_whole_paths(arguments: &[String]) -> Result<Vec<String>> {
    let whole = |path: &str| -> Result<String> {
        let path = std::path::absolute(path).with_context(|| format!("find {path}"))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let mut is_file = false;
    let mut all = Vec::new();
    for argument in arguments {
        all.push(match argument.strip_prefix("--json=") {
            Some(path) => format!("--json={}", whole(path)?),
            None if is_file => whole(argument)?,
            None => argument.clone(),
        });
        is_file = argument == "--json";
    }
    Ok(all)
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
    command::run(bench_command(workspace, program)?.args(arguments))
}

fn bench_command(workspace: &Workspace, program: &Path) -> Result<Command> {
    let mut bench = Command::new(program);
    bench.arg("bench").env("PATH", workspace.path_variable()?);
    Ok(bench)
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
    let theirs = build_tree(workspace, &tree, &target);
    let compared = theirs.and_then(|theirs| {
        step.done("built");
        by_turns(workspace, [&theirs, ours], arguments)
    });
    git(&["worktree", "remove", "--force", &path])?;
    compared
}

/// Another tree's own xtask knows how its kernel programs are built; what it builds them with is ours.
fn build_tree(workspace: &Workspace, tree: &Path, target: &Path) -> Result<PathBuf> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let tools = target.join("tools");
    if !tools.exists() {
        symlink(workspace.tools(), &tools).with_context(|| format!("make {}", tools.display()))?;
    }
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
    let (measuring, reporting) = split_reports(arguments);
    let mut files = [Vec::new(), Vec::new()];
    for round in 1..=2 {
        for ((name, program), files) in ["a", "b"].iter().zip(programs).zip(&mut files) {
            let json = results.join(format!("{name}{round}.json"));
            let mut bench = bench_command(workspace, program)?;
            bench.args(&measuring).arg("--json").arg(&json);
            command::run(bench.stdout(Stdio::null()))?;
            files.push(json.to_string_lossy().into_owned());
        }
    }
    let [theirs, ours] = files.map(|files| files.join(","));
    let mut report = bench_command(workspace, programs[1])?;
    report.args(["--rows", &ours, "--compare", &theirs]);
    command::run(report.args(reporting))
}

/// What says how to measure, and what says where to report.
fn split_reports(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut measuring, mut reporting) = (Vec::new(), Vec::new());
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.split('=').next() {
            Some("--json" | "--html") => {
                reporting.push(argument.clone());
                if !argument.contains('=') {
                    reporting.extend(arguments.next().cloned());
                }
            }
            _ => measuring.push(argument.clone()),
        }
    }
    (measuring, reporting)
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

    #[test]
    fn files_of_the_control_planes_benchmarks_are_named_from_here() {
        let here = std::env::current_dir().expect("a folder");
        let all = ["control/scheduler", "--json", "f", "--json=g"].map(str::to_owned);
        let whole = with_whole_paths(&all).expect("paths");
        let path = |name: &str| here.join(name).to_string_lossy().into_owned();
        assert_eq!(whole[2], path("f"));
        assert_eq!(whole[3], format!("--json={}", path("g")));
    }

    #[test]
    fn only_the_last_of_the_runs_reports() {
        let all = ["tables", "--json", "f", "--html=g", "--repeat", "2"].map(str::to_owned);
        let (measuring, reporting) = split_reports(&all);
        assert_eq!(measuring, ["tables", "--repeat", "2"]);
        assert_eq!(reporting, ["--json", "f", "--html=g"]);
    }
}
