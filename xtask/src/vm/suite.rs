//! The project's own kernel tests, in VMs: which they are, what they need, and how they are run.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{
    Plan,
    facts::{self, Facts},
    guest::{self, End, Job},
    last_words,
    libtest::{self, Case, Outcome, Program},
    payload::Payload,
    tools,
};
use crate::{build_ebpf, cargo, command, progress::Progress, test::Totals, workspace::Workspace};

/// The test programs that run unless others are named: all that depends on the kernel, and no more than an emulated CPU does
/// in three minutes. Most of the time goes to verifying the programs anew for each test.
/// Beside a program, what its tests' names must contain.
const DEFAULT: [(&str, &str); 9] = [
    ("verifier", ""),
    ("packets", "row"),
    ("sockets", "reach"),
    ("socket_hooks", "reach"),
    ("bench", "ipvs"),
    ("containers", ""),
    ("devices", "netkit"),
    ("lifecycle", "killed_shim"),
    ("network", ""),
];
/// In place of a name: all that there are.
pub const ALL: &str = "all";

/// What needs a newer kernel than the oldest: a program, what its tests' names contain, and since when the kernel has it.
/// That an older one has no such hooks is tested by `verifier`.
const SINCE: [(&str, &str, (u32, u32)); 5] = [
    ("containers", "", (5, 12)),
    ("lifecycle", "", (5, 12)),
    ("socket_hooks", "", (5, 18)),
    ("ways", "sockets::", (5, 18)),
    ("upgrade", "nothing_is_lost_by_socket_hooks", (5, 18)),
];

/// The test programs that depend on the kernel: all of the dataplane's, and these of the agent's.
const DATAPLANE: &str = "dataplane/tests";
const AGENT: [&str; 5] = ["bpffs", "containers", "devices", "lifecycle", "network"];

/// Programs of ours that the tests start; building the tests builds them.
const PROGRAMS: [&str; 2] = ["portolan-agent", "portolan-lb"];

/// Programs of this machine that the tests start.
const TOOLS: [&str; 10] = [
    "bash", "bridge", "ethtool", "ip", "ipvsadm", "nsenter", "ping", "sysctl", "tar", "tc",
];

/// Files of this machine that the tests read: without certificates a client of registries does not even start.
const FILES: [&str; 1] = ["/etc/ssl/certs/ca-certificates.crt"];

/// How many random packets the differential test throws: an emulated CPU is slow, and the machine's own kernel gets more.
const RANDOM_PACKETS: u32 = 10_000;

/// Where a job leaves files for us.
const RESULTS: &str = "/results";

/// How the tests went on one kernel.
pub struct Report {
    /// As it was asked for: "6.12".
    pub kernel: String,
    /// As `uname -r` says it.
    pub release: String,
    /// The test programs.
    pub programs: Vec<Program>,
    /// What the tests found out of the kernel.
    pub facts: Facts,
}

/// The built tests.
pub struct Suite {
    payload: Payload,
}

impl Suite {
    /// Builds the tests that a plan names, or those that run unless told otherwise.
    pub fn build(workspace: &Workspace, progress: &Progress, plan: &Plan) -> Result<Self> {
        let only = &plan.tests;
        let mut names = crate::test::test_targets(workspace, DATAPLANE)?;
        names.extend(AGENT.map(str::to_owned));
        if let Some(unknown) = only
            .iter()
            .find(|name| *name != ALL && !names.contains(name))
        {
            bail!(
                "no kernel test is called {unknown}: there are {}, and {ALL}",
                names.join(", ")
            );
        }
        if only.is_empty() {
            names.retain(|name| DEFAULT.iter().any(|(program, _)| program == name));
        } else if !only.iter().any(|name| name == ALL) {
            names.retain(|name| only.contains(name));
        }
        build_ebpf::build(workspace)?;
        let step = progress.step("kernel tests");
        let built = compile(workspace, &names)?;
        let mut payload = Payload::new()?;
        for program in &built {
            payload.add_program(&program.display().to_string())?;
        }
        equip(&mut payload, workspace)?;
        let tests = built.iter().filter_map(|path| {
            let file = path.file_name()?.to_str()?;
            let (name, _) = file.rsplit_once('-')?;
            Some((name.to_owned(), path.clone()))
        });
        let filter = |name: &str| {
            let own = DEFAULT.iter().find(|(program, _)| *program == name);
            match (&plan.filter, own) {
                (Some(filter), _) => filter.replace('\'', ""),
                (None, Some((_, filter))) if only.is_empty() => (*filter).to_owned(),
                _ => String::new(),
            }
        };
        let tests: Vec<_> = tests
            .map(|(name, path)| (filter(&name), name, path))
            .collect();
        let job = job(&build_ebpf::object(workspace), &tests);
        payload.add_text("/portolan-job", &job, 0o755);
        step.done(&names.join(" "));
        Ok(Self { payload })
    }

    /// Runs the tests on a kernel.
    pub fn run(
        &self,
        workspace: &Workspace,
        progress: &Progress,
        kernel: &str,
        limit: Duration,
        refresh: bool,
    ) -> Result<Report> {
        let (qemu, booted) = tools(workspace, progress, kernel, refresh)?;
        let step = progress.step(&format!("tests on {kernel}"));
        let mut output = Vec::new();
        let ended = guest::run(
            workspace,
            &qemu,
            Job {
                kernel: &booted,
                modules: &[],
                payload: &self.payload,
                limit,
                stdout: Box::new(&mut output),
                stderr: Box::new(io::stderr()),
            },
        )?;
        let mut programs = libtest::parse(&String::from_utf8_lossy(&output));
        if let Some(why) = fault(&ended.end, limit) {
            let text = format!(
                "{why}; the last of its console:\n{}",
                last_words(&ended.console)
            );
            programs.push(Program {
                name: "machine".to_owned(),
                cases: vec![Case {
                    program: "machine".to_owned(),
                    name: "ends well".to_owned(),
                    outcome: Outcome::Failed(text),
                }],
                seconds: None,
            });
        }
        let report = Report {
            kernel: kernel.to_owned(),
            facts: Facts::read(&ended.results)?,
            release: booted.release,
            programs,
        };
        step.done(&format!(
            "{}, by {}",
            report.summary(),
            ended.accelerator.name()
        ));
        Ok(report)
    }
}

impl Report {
    /// The first two numbers of the kernel's release, whatever name it was asked for by: "6.12".
    pub fn series(&self) -> String {
        let numbers: Vec<&str> = self.release.splitn(3, '.').take(2).collect();
        numbers.join(".")
    }

    /// All tests.
    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        self.programs.iter().flat_map(|program| &program.cases)
    }

    /// How many passed and failed.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for case in self.cases() {
            match case.outcome {
                Outcome::Passed => totals.passed += 1,
                Outcome::Failed(_) => totals.failed += 1,
                Outcome::Ignored => totals.ignored += 1,
            }
        }
        totals
    }

    fn summary(&self) -> String {
        let Totals { passed, failed, .. } = self.totals();
        format!("{}: {passed} passed, {failed} failed", self.release)
    }

    /// Adds a test of ours.
    pub fn add(&mut self, case: Case) {
        let name = case.program.clone();
        if let Some(program) = self
            .programs
            .iter_mut()
            .find(|program| program.name == name)
        {
            program.cases.push(case);
        }
    }

    /// Shows what failed, and what it said.
    pub fn show_failures(&self) {
        for case in self.cases() {
            if let Outcome::Failed(text) = &case.outcome {
                println!(
                    "---- {} {}::{} ----\n{text}\n",
                    self.release, case.program, case.name
                );
            }
        }
    }
}

/// Adds what the tests start and read.
fn equip(payload: &mut Payload, workspace: &Workspace) -> Result<()> {
    for tool in TOOLS {
        payload.add_program(tool)?;
    }
    for file in FILES.map(Path::new).iter().filter(|file| file.exists()) {
        payload.add_file(file, file)?;
    }
    for object in build_ebpf::objects(workspace)? {
        payload.add_file(&object, &object)?;
    }
    for program in PROGRAMS {
        let path = workspace.target().join("debug").join(program);
        // A selection of tests may need none of them.
        if path.exists() {
            payload.add_program(&path.display().to_string())?;
        }
    }
    Ok(())
}

/// What is wrong with how a machine ended. Failed tests are told one by one.
fn fault(end: &End, limit: Duration) -> Option<String> {
    match end {
        End::Exit(0) => None,
        End::Exit(code) => Some(format!("the job ended with {code}")),
        End::Hung => Some(format!(
            "the machine did not end within {} s",
            limit.as_secs()
        )),
        End::Crashed => Some("the kernel crashed".to_owned()),
        End::Lost(why) => Some(format!("the machine was lost: {why}")),
    }
}

/// The script that runs the tests, one program after the other: each with what its tests' names must contain.
fn job(object: &Path, tests: &[(String, String, PathBuf)]) -> String {
    let mut script = format!(
        "#!/bin/sh\nexport PORTOLAN_EBPF_OBJECT='{}' PORTOLAN_FACTS={RESULTS}/{} RUST_BACKTRACE=0\n\
         export PORTOLAN_DIFFERENTIAL_PACKETS={RANDOM_PACKETS}\n\
         kernel=$(uname -r | awk -F. '{{ print $1 * 1000 + $2 }}')\n\
         run() {{\n\
         \x20   echo \"{}\"\n\
         \x20   read begun _ < /proc/uptime\n\
         \x20   program=$2; shift 2\n\
         \x20   \"$program\" \"$@\" 2>&1\n\
         \x20   code=$?\n\
         \x20   read ended _ < /proc/uptime\n\
         \x20   echo\n\
         \x20   echo \"{}\"\n\
         }}\n",
        object.display(),
        facts::FILE,
        libtest::begins("$1"),
        libtest::ends(
            "$code",
            "$(echo \"$ended $begun\" | awk '{ printf \"%.2f\", $1 - $2 }')"
        ),
    );
    let runs = tests.iter().map(|(filter, name, path)| {
        let run = format!("run {name} '{}' '{filter}'", path.display());
        match SINCE.iter().find(|(program, ..)| program == name) {
            Some((_, prefix, (major, minor))) => format!(
                "if [ $kernel -ge {} ]; then {run}; else {run} --skip '{prefix}'; fi\n",
                major * 1000 + minor
            ),
            None => run + "\n",
        }
    });
    script.extend(runs);
    script + "exit 0\n"
}

/// One line of what cargo says in JSON.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// Builds test programs, in the selection that `cargo xtask test` builds, so that nothing is compiled twice.
fn compile(workspace: &Workspace, names: &[String]) -> Result<Vec<PathBuf>> {
    let mut cargo = cargo::as_user();
    cargo
        .current_dir(workspace.root())
        .args([
            "test",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ])
        .args(names.iter().flat_map(|name| ["--test", name]))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = cargo
        .output()
        .with_context(|| format!("cannot run {}", command::line(&cargo)))?;
    if !output.status.success() {
        bail!("the kernel tests do not compile");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut built: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.profile.as_ref().is_some_and(|profile| profile.test))
        .filter_map(|message| message.executable)
        .collect();
    built.sort();
    Ok(built)
}
