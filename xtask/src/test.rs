//! `cargo xtask test`: installs what is missing, runs the tests and says truthfully how many passed and failed.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{
    build_ebpf, cargo, command, machine, progress::Progress, setup, up, vm, workspace::Workspace,
};

/// Which tests to run.
#[derive(Args)]
#[command(after_help = "\
The kernel tests throw 200,000 random packets at the programs and at a model of them. For a long run set
PORTOLAN_DIFFERENTIAL_PACKETS=10000000; PORTOLAN_DIFFERENTIAL_SEED repeats the run that a failure names.")]
pub struct Options {
    /// The kinds to run; unless told otherwise unit, kernel and e2e, and some of the kernel tests in one virtual machine
    #[arg(value_enum)]
    kinds: Vec<Kind>,
    /// Writes the results of the tests in virtual machines as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Writes what the tests in virtual machines found down: instruction counts, and the README's table of kernels
    #[arg(long)]
    record: bool,
}

/// Kinds of tests, by what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Kind {
    /// Functions and modules, and the control plane without nodes
    Unit,
    /// Packets, namespaces and containers on this machine's kernel, as root
    Kernel,
    /// A real cluster with kubectl
    E2e,
    /// The kernel tests in virtual machines
    Vm,
    /// All of them
    All,
}

/// What test runs came to.
#[derive(Debug, Default, PartialEq)]
pub struct Totals {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were left out.
    pub ignored: u64,
}

/// The command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let kinds = options.expand();
    if kinds.iter().any(|kind| *kind > Kind::Unit) {
        machine::require_root("test")?;
    }
    let progress = Progress::new();
    setup::ensure(workspace, &progress)?;
    if kinds.contains(&Kind::Unit) || kinds.contains(&Kind::E2e) {
        setup::ensure_clients(workspace, &progress)?;
    }
    let step = progress.step("build");
    up::build(workspace, false)?;
    step.done("");

    let mut totals = Totals::default();
    let mut broken = Vec::new();
    for kind in kinds {
        let begun = Instant::now();
        progress.say(&format!("\n== {} tests", kind.name()));
        for selection in kind.selections(workspace)? {
            let (counted, succeeded) = run_tests(workspace, &selection)?;
            // A run that failed without a failed test did not compile, or crashed.
            if !succeeded && counted.failed == 0 {
                broken.push(format!("cargo test {}", selection.join(" ")));
            }
            totals.add(&counted);
        }
        if kind == Kind::Vm {
            let plan = vm::Plan {
                junit: options.junit.clone(),
                findings: vm::Findings::compared_unless(options.record),
                ..vm::Plan::new(&vm::MATRIX)
            };
            totals.add(&in_machines(workspace, &progress, &plan)?);
        }
        progress.say(&format!(
            "== {} tests took {:.0} s",
            kind.name(),
            begun.elapsed().as_secs_f64()
        ));
    }
    if options.kinds.is_empty() {
        totals.add(&in_one_machine(
            workspace,
            &progress,
            options.junit.as_deref(),
        )?);
    }
    finish(&totals, &broken);
    Ok(())
}

/// The kernel tests in virtual machines.
fn in_machines(workspace: &Workspace, progress: &Progress, plan: &vm::Plan) -> Result<Totals> {
    let mut totals = Totals::default();
    for report in vm::run_tests(workspace, progress, plan)? {
        totals.add(&report.totals());
    }
    Ok(totals)
}

/// Some of the kernel tests in one virtual machine: another kernel than this machine's, and control groups of version 2
/// alone, in about a minute.
fn in_one_machine(
    workspace: &Workspace,
    progress: &Progress,
    junit: Option<&Path>,
) -> Result<Totals> {
    progress.say("\n== kernel tests in one virtual machine");
    if !setup::archive::is_debian() {
        progress
            .say("left out: the kernels of virtual machines are Debian's, and this is not Debian");
        return Ok(Totals {
            ignored: 1,
            ..Totals::default()
        });
    }
    let plan = vm::Plan {
        tests: vm::SELECTION.map(str::to_owned).to_vec(),
        junit: junit.map(Path::to_owned),
        findings: vm::Findings::Left,
        // An emulated kernel verifies slowly where the machine has other work.
        limit: Duration::from_mins(10),
        ..vm::Plan::new(&[vm::STABLE])
    };
    in_machines(workspace, progress, &plan)
}

/// The last line is the one that says it all.
fn finish(totals: &Totals, broken: &[String]) {
    for run in broken {
        println!("{run} did not come to its end");
    }
    let failed = totals.failed + u64::try_from(broken.len()).expect("few runs");
    let ignored = match totals.ignored {
        0 => String::new(),
        count => format!(", {count} skipped"),
    };
    println!("\n{} passed, {failed} failed{ignored}", totals.passed);
    if failed > 0 || totals.passed == 0 {
        std::process::exit(1);
    }
}

impl Options {
    fn expand(&self) -> BTreeSet<Kind> {
        let ordinary = [Kind::Unit, Kind::Kernel, Kind::E2e];
        if self.kinds.is_empty() {
            return ordinary.into();
        }
        if self.kinds.contains(&Kind::All) {
            return ordinary.into_iter().chain([Kind::Vm]).collect();
        }
        self.kinds.iter().copied().collect()
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Kernel => "kernel",
            Self::E2e => "e2e",
            Self::Vm => "vm",
            Self::All => "all",
        }
    }

    /// What `cargo test` is told. Always the whole workspace: another selection of packages would select other features
    /// of what they depend on, and compile all of it again.
    fn selections(self, workspace: &Workspace) -> Result<Vec<Vec<String>>> {
        let folders: &[&str] = match self {
            Self::Unit => &["control/tests", "control/wire/tests", "ebpf/abi/tests"],
            Self::Kernel => &["dataplane/tests", "agent/tests"],
            Self::E2e => &["tests/tests"],
            Self::Vm => &["xtask/tests"],
            Self::All => &[],
        };
        let mut named = Vec::new();
        for folder in folders {
            for name in test_targets(workspace, folder)? {
                named.extend(["--test".to_owned(), name]);
            }
        }
        let mut selections = Vec::new();
        if self == Self::Unit {
            named.extend(["--lib".to_owned(), "--bins".to_owned()]);
        }
        if !named.is_empty() {
            selections.push(named);
        }
        Ok(selections)
    }
}

/// The integration tests in a folder: each file, and each folder with a main.rs.
pub fn test_targets(workspace: &Workspace, folder: &str) -> Result<Vec<String>> {
    let folder = workspace.root().join(folder);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        let is_target = if path.is_dir() {
            path.join("main.rs").exists()
        } else {
            path.extension().is_some_and(|extension| extension == "rs")
        };
        if is_target {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Runs one `cargo test`, showing and counting what it says.
fn run_tests(workspace: &Workspace, selection: &[String]) -> Result<(Totals, bool)> {
    let mut cargo = cargo::as_user();
    cargo
        .current_dir(workspace.root())
        .args(["test", "--no-fail-fast"])
        .args(selection)
        .env("PATH", workspace.path_variable()?)
        .env(build_ebpf::OBJECT_VARIABLE, build_ebpf::object(workspace))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = cargo
        .spawn()
        .with_context(|| format!("cannot run {}", command::line(&cargo)))?;
    let mut totals = Totals::default();
    let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("read what the tests say")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(counted) = Totals::parse(&line) {
            totals.add(&counted);
        }
    }
    let status = child.wait().context("wait for cargo test")?;
    Ok((totals, status.success()))
}

impl Totals {
    /// Reads "test result: ok. 3 passed; 0 failed; 1 ignored; ...".
    fn parse(line: &str) -> Option<Self> {
        let counts = line.strip_prefix("test result: ")?;
        let count = |what: &str| -> Option<u64> {
            let before = &counts[..counts.find(what)?];
            before.split_whitespace().next_back()?.parse().ok()
        };
        Some(Self {
            passed: count(" passed;")?,
            failed: count(" failed;")?,
            ignored: count(" ignored;")?,
        })
    }

    fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runners_own_closing_line_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.5s";
        let expected = Totals {
            passed: 12,
            failed: 3,
            ignored: 1,
        };
        assert_eq!(Totals::parse(line), Some(expected));
        assert_eq!(Totals::parse("12 passed; 3 failed"), None);
    }

    #[test]
    fn bare_is_everything_but_virtual_machines() {
        let kinds = |kinds: &[Kind]| Options {
            kinds: kinds.to_vec(),
            junit: None,
            record: false,
        };
        let ordinary = BTreeSet::from([Kind::Unit, Kind::Kernel, Kind::E2e]);
        assert_eq!(kinds(&[]).expand(), ordinary);
        assert!(kinds(&[Kind::All]).expand().is_superset(&ordinary));
        assert!(kinds(&[Kind::All]).expand().contains(&Kind::Vm));
        assert_eq!(kinds(&[Kind::Unit]).expand(), BTreeSet::from([Kind::Unit]));
    }
}
