//! `cargo xtask vm`: runs a command, or the kernel tests, in a virtual machine for each kernel.

mod accelerator;
mod catalogue;
mod counts;
mod cpio;
mod facts;
mod guest;
mod junit;
mod kernel;
mod libtest;
mod modules;
mod payload;
mod suite;
mod table;
mod vmlinux;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command,
    progress::Progress,
    setup::{self, qemu::Qemu},
    workspace::Workspace,
};
use counts::Counts;
use guest::{End, Ended, Job};
use kernel::Kernel;
use libtest::{Case, Outcome, Program};
use payload::Payload;
pub use suite::Report;
use suite::Suite;

/// The kernels that are tested unless told otherwise: the oldest that the kernel programs load in, those of Debian's later
/// releases, the newest.
pub const MATRIX: [&str; 4] = ["5.10", "6.1", STABLE, "newest"];
/// The newest of Debian's stable releases.
pub const STABLE: &str = "6.12";
/// The test programs that say most in the shortest time.
pub const SELECTION: [&str; 4] = ["verifier", "packets", "sockets", "containers"];
/// How many seconds a machine may run.
const LIMIT: u64 = 180;
/// How many of a console's last lines are shown.
const LAST_LINES: usize = 40;
/// What we end with when a machine hangs, as timeout(1) does.
const HUNG: i32 = 124;
/// What we end with when there is no exit code because the kernel crashed or the machine was lost.
const NO_CODE: i32 = 125;

/// What to run in which kernels.
#[derive(Args)]
pub struct Options {
    /// A kernel of Debian's by its first two numbers (6.12), or "newest"; may be given several times
    #[arg(long = "kernel", value_name = "KERNEL", required = true)]
    kernels: Vec<String>,
    /// The kernel tests of this program (ways), or "all", in place of those that run by default; may be given several times
    #[arg(long = "test", value_name = "PROGRAM", conflicts_with = "command")]
    tests: Vec<String>,
    /// Of those, the tests whose names contain this
    #[arg(long, value_name = "PART", conflicts_with = "command")]
    filter: Option<String>,
    /// Writes the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Writes down in the repository what the kernel tests found: instruction counts, and of all kernels together the README's table
    #[arg(long, conflicts_with_all = ["command", "tests", "filter"])]
    record: bool,
    /// Ends a machine that runs longer, after showing its console
    #[arg(long, value_name = "SECONDS", default_value_t = LIMIT)]
    limit: u64,
    /// A file or folder that the command needs, put into the VM where it lies here; may be given several times
    #[arg(long = "with", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Takes what the command leaves in /results into this folder; of several kernels, into a folder of each
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// A kernel module to load beside the usual ones; may be given several times
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Fetches the kernels anew, the newest of their series
    #[arg(long)]
    refresh: bool,
    /// The command, a program of this machine with its arguments; without one, the kernel tests run. With several kernels the first failure's exit code is
    /// ours; 124 is a machine that hung, 125 a kernel that crashed
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The command. It ends the process with the exit code of what ran.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let progress = Progress::new();
    if options.command.is_empty() {
        let plan = Plan {
            kernels: options.kernels.clone(),
            tests: options.tests.clone(),
            filter: options.filter.clone(),
            limit: Duration::from_secs(options.limit),
            refresh: options.refresh,
            junit: options.junit.clone(),
            findings: Findings::compared_unless(options.record),
        };
        let reports = run_tests(workspace, &progress, &plan)?;
        if reports.iter().flat_map(Report::cases).any(Case::has_failed) {
            std::process::exit(1);
        }
        return Ok(());
    }
    let payload = payload_of(&options.command, &options.files)?;
    let mut first_failure = 0;
    let mut results = Vec::new();
    for name in &options.kernels {
        let (qemu, kernel) = tools(workspace, &progress, name, options.refresh)?;
        let ended = guest::run(
            workspace,
            &qemu,
            Job {
                kernel: &kernel,
                modules: &options.modules,
                payload: &payload,
                limit: Duration::from_secs(options.limit),
                stdout: Box::new(io::stdout()),
                stderr: Box::new(io::stderr()),
            },
        )?;
        if let Some(folder) = &options.results {
            let folder = match options.kernels.len() {
                1 => folder.clone(),
                _ => folder.join(name),
            };
            unpack(&ended.results, &folder)?;
        }
        let code = report(&progress, &kernel, &ended, options.limit);
        if first_failure == 0 {
            first_failure = code;
        }
        results.push((
            kernel.release,
            vec![own_case(&options.command, code, &ended)],
        ));
    }
    write_junit(options.junit.as_deref(), &results)?;
    if first_failure != 0 {
        std::process::exit(first_failure);
    }
    Ok(())
}

/// A user's command as a test.
fn own_case(command: &[String], code: i32, ended: &Ended) -> Program {
    let outcome = match code {
        0 => Outcome::Passed,
        _ => Outcome::Failed(format!(
            "{:?}; the last of its console:\n{}",
            ended.end,
            last_words(&ended.console)
        )),
    };
    let name = command.join(" ");
    Program {
        cases: vec![Case {
            program: name.clone(),
            name: name.clone(),
            outcome,
        }],
        name,
        seconds: Some(ended.took.as_secs_f64()),
    }
}

fn write_junit(path: Option<&Path>, results: &[(String, Vec<Program>)]) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    fs::write(path, junit::document(results)).with_context(|| format!("write {}", path.display()))
}

/// Which kernel tests to run where, and what to make of them.
pub struct Plan {
    /// The kernels, in this order.
    pub kernels: Vec<String>,
    /// The test programs; those that run by default, if there are none.
    pub tests: Vec<String>,
    /// What tests' names must contain.
    pub filter: Option<String>,
    /// A machine that has not ended by then is ended.
    pub limit: Duration,
    /// Whether kernels are fetched anew.
    pub refresh: bool,
    /// Where results go as JUnit XML.
    pub junit: Option<PathBuf>,
    /// What becomes of what the tests found.
    pub findings: Findings,
}

/// What becomes of the verifier's counts and of the kernels' features that tests found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Findings {
    /// Nothing: not all programs were looked at.
    Left,
    /// The counts are compared with those that are written down.
    Compared,
    /// They are written down anew; if all kernels ran, so is the README's table.
    Recorded,
}

impl Findings {
    /// Compared, unless they are to be recorded.
    pub fn compared_unless(recorded: bool) -> Self {
        if recorded {
            Self::Recorded
        } else {
            Self::Compared
        }
    }
}

impl Plan {
    /// The kernel tests on these kernels.
    pub fn new(kernels: &[&str]) -> Self {
        Self {
            kernels: kernels.iter().map(|name| (*name).to_owned()).collect(),
            tests: Vec::new(),
            filter: None,
            limit: Duration::from_secs(LIMIT),
            refresh: false,
            junit: None,
            findings: Findings::Compared,
        }
    }
}

/// Runs the kernel tests, one kernel after the other.
pub fn run_tests(workspace: &Workspace, progress: &Progress, plan: &Plan) -> Result<Vec<Report>> {
    // One of the tests compares with what `bench` brings.
    let is_compared = |test: &String| matches!(test.as_str(), "bench" | suite::ALL);
    if plan.tests.is_empty() || plan.tests.iter().any(is_compared) {
        setup::ensure_for_bench(workspace, progress)?;
    }
    let suite = Suite::build(workspace, progress, plan)?;
    let counts = Counts::read(workspace)?;
    let mut reports = Vec::new();
    for kernel in &plan.kernels {
        let mut report = suite.run(workspace, progress, kernel, plan.limit, plan.refresh)?;
        if plan.findings == Findings::Compared && !report.facts.instructions.is_empty() {
            report.add(counts.test(&report));
        }
        report.show_failures();
        reports.push(report);
    }
    let results: Vec<(String, Vec<Program>)> = reports
        .iter()
        .map(|report| (report.release.clone(), report.programs.clone()))
        .collect();
    write_junit(plan.junit.as_deref(), &results)?;
    if plan.findings == Findings::Recorded {
        counts.record(workspace, &reports)?;
        // A table of some kernels would take the others out.
        if MATRIX
            .iter()
            .all(|name| plan.kernels.iter().any(|kernel| kernel == name))
        {
            table::write(workspace, &reports)?;
        }
    }
    Ok(reports)
}

/// Brings qemu and a kernel in place; two of us do not do so at once.
fn tools(
    workspace: &Workspace,
    progress: &Progress,
    kernel: &str,
    refresh: bool,
) -> Result<(Qemu, Kernel)> {
    let path = workspace.target().join("vm");
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    let path = path.join("lock");
    let lock = File::create(&path)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("lock {}", path.display()))?;
    let qemu = setup::qemu::ensure(workspace, progress)?;
    let kernel = Kernel::ensure(workspace, progress, kernel, refresh)?;
    drop(lock);
    Ok((qemu, kernel))
}

/// Everything that a command needs.
fn payload_of(command: &[String], files: &[PathBuf]) -> Result<Payload> {
    let mut payload = Payload::new()?;
    let Some((program, arguments)) = command.split_first() else {
        bail!("there is no command");
    };
    for file in files {
        let place = std::path::absolute(file)?;
        payload.add_file(&place, file)?;
    }
    let program = payload.add_program(program)?;
    payload.add_text("/portolan-job", &job(&program, arguments), 0o755);
    Ok(payload)
}

/// Unpacks what a job left in /results; a machine that was lost has left nothing.
fn unpack(results: &[u8], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    if results.is_empty() {
        return Ok(());
    }
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "-C"]).arg(folder);
    command::output_with_input(&mut tar, results).map(drop)
}

/// The script that a VM runs.
fn job(program: &Path, arguments: &[String]) -> String {
    let words: Vec<String> = std::iter::once(program.display().to_string())
        .chain(arguments.iter().cloned())
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    format!("#!/bin/sh\nexec {}\n", words.join(" "))
}

/// Says how a machine ended, and what we would end with.
fn report(progress: &Progress, kernel: &Kernel, ended: &Ended, limit: u64) -> i32 {
    let (release, accelerator) = (&kernel.release, ended.accelerator.name());
    let took = ended.took.as_secs_f64();
    let (what, code) = match &ended.end {
        End::Exit(code) => {
            progress.say(&format!(
                "{release}: exit code {code} after {took:.1} s by {accelerator}"
            ));
            return *code;
        }
        End::Hung => (format!("did not end within {limit} s and was ended"), HUNG),
        End::Crashed => ("crashed".to_owned(), NO_CODE),
        End::Lost(why) => (format!("was lost: {why}"), NO_CODE),
    };
    progress.say(&format!(
        "{release} {what}, after {took:.1} s by {accelerator}; the last of its console:\n{}",
        last_words(&ended.console)
    ));
    code
}

/// The end of a console; of a crash, its beginning too.
fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let crash = lines.iter().position(|line| guest::is_crash(line));
    let begin = lines.len().saturating_sub(LAST_LINES);
    let begin = crash.map_or(begin, |crash| begin.min(crash.saturating_sub(10)));
    lines[begin..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let arguments = ["a b".to_owned(), "it's $HOME".to_owned()];
        assert_eq!(
            job(Path::new("/bin/echo"), &arguments),
            "#!/bin/sh\nexec '/bin/echo' 'a b' 'it'\\''s $HOME'\n"
        );
    }
}
