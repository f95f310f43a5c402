//! The cluster's programs, killed without warning and started anew.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{Cluster, wait_for};

/// How `up` notes which process it has started.
#[derive(Deserialize, Serialize)]
struct Record {
    pid: u32,
    start: u64,
}

/// A program that was killed, with what it takes to start it anew.
pub struct Killed {
    name: String,
    command_line: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    record: PathBuf,
}

impl Cluster {
    /// Kills "control" or a node's agent as a crash would.
    pub fn kill(&self, name: &str) -> Result<Killed> {
        let record = self.state().join(format!("run/{name}.json"));
        let text = fs::read(&record).with_context(|| format!("read {}", record.display()))?;
        let Record { pid, start } = serde_json::from_slice(&text).context("read a record")?;
        ensure!(
            start_time(pid) == Some(start),
            "{name} does not run any more"
        );
        let killed = Killed {
            name: name.to_owned(),
            command_line: words(pid, "cmdline")?,
            environment: words(pid, "environ")?
                .iter()
                .filter_map(|variable| variable.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            log: self.state().join(format!("logs/{name}.log")),
            record,
        };
        kill(pid)?;
        wait_for("a killed program's end", Duration::from_secs(5), || {
            Ok(match start_time(pid) {
                Some(now) if now == start => Err("it is still there".to_owned()),
                _ => Ok(()),
            })
        })?;
        Ok(killed)
    }
}

impl Killed {
    /// Starts the program as `up` had started it.
    pub fn start(self) -> Result<()> {
        let log = fs::File::options()
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))?;
        let namespace = format!("/run/netns/portolan-{}", self.name);
        let mut command = Command::new("setsid");
        if PathBuf::from(&namespace).exists() {
            command.args(["nsenter", &format!("--net={namespace}"), "--"]);
        }
        let child = command
            .args(&self.command_line)
            .env_clear()
            .envs(self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {} anew", self.name))?;
        let record = Record {
            pid: child.id(),
            start: start_time(child.id()).context("it runs")?,
        };
        let text = serde_json::to_vec(&record).context("write a record")?;
        fs::write(&self.record, text).with_context(|| format!("write {}", self.record.display()))
    }
}

/// Kills a process that is known by its number alone, such as a container's.
pub fn kill(pid: u32) -> Result<()> {
    let number = i32::try_from(pid).context("process numbers are small")?;
    signal::kill(Pid::from_raw(number), Signal::SIGKILL).with_context(|| format!("kill {pid}"))
}

/// Asks a process to end.
pub fn end(pid: u32) -> Result<()> {
    let number = i32::try_from(pid).context("process numbers are small")?;
    signal::kill(Pid::from_raw(number), Signal::SIGTERM).with_context(|| format!("end {pid}"))
}

/// When a process started, in clock ticks since boot, if it still runs.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything; the state comes after its bracket.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    (fields.next()? != "Z")
        .then(|| fields.nth(18)?.parse().ok())
        .flatten()
}

fn words(pid: u32, file: &str) -> Result<Vec<String>> {
    let bytes =
        fs::read(format!("/proc/{pid}/{file}")).with_context(|| format!("read its {file}"))?;
    Ok(bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect())
}
