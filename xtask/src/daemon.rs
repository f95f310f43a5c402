//! Starts programs that outlive xtask, and ends them again: by number and start time, never by name.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    cluster::{Cluster, MARK, remove_file_if_there},
    command,
    machine::ProcessId,
};

/// How long a program may take to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(8);

/// Starts a program in a session of its own, its words going to logs/NAME.log, and writes down which process it is.
pub fn start(cluster: &Cluster, name: &str, program: &Command) -> Result<ProcessId> {
    for folder in [cluster.logs(), cluster.daemons()] {
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let path = cluster.logs().join(format!("{name}.log"));
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let mut session = Command::new("setsid");
    session
        .arg(program.get_program())
        .args(program.get_args())
        .env(MARK, cluster.state())
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the log file")?)
        .stderr(log);
    for (key, value) in program.get_envs() {
        match value {
            Some(value) => session.env(key, value),
            None => session.env_remove(key),
        };
    }
    let child = session
        .spawn()
        .with_context(|| format!("cannot start {}", command::line(program)))?;
    // setsid and nsenter execute the program in their own place, so the child's number is the program's.
    let process = ProcessId::of(child.id())
        .with_context(|| format!("{name} ended at once: see {}", path.display()))?;
    let record = cluster.daemons().join(format!("{name}.json"));
    let text = serde_json::to_vec(&process).context("write down a process")?;
    fs::write(&record, text).with_context(|| format!("write {}", record.display()))?;
    Ok(process)
}

/// The process that was started under this name, if it still runs.
pub fn find(cluster: &Cluster, name: &str) -> Result<Option<ProcessId>> {
    let record = cluster.daemons().join(format!("{name}.json"));
    match fs::read(&record) {
        Ok(text) => {
            let process: ProcessId = serde_json::from_slice(&text)
                .with_context(|| format!("understand {}", record.display()))?;
            Ok(process.is_alive().then_some(process))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", record.display())),
    }
}

/// The names of all that was started.
pub fn names(cluster: &Cluster) -> Result<Vec<String>> {
    let folder = cluster.daemons();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|file| file.strip_suffix(".json").map(str::to_owned))
        .collect())
}

/// Fails with the end of its log when a program that should run has ended.
pub fn require_alive(cluster: &Cluster, name: &str, process: &ProcessId) -> Result<()> {
    if process.is_alive() {
        return Ok(());
    }
    bail!("{name} has ended:\n{}", log_tail(cluster, name));
}

/// The last lines that a program wrote.
pub fn log_tail(cluster: &Cluster, name: &str) -> String {
    let path = cluster.logs().join(format!("{name}.log"));
    match fs::read_to_string(&path) {
        Ok(text) => format!("{}:\n{}", path.display(), command::tail(&text, 20)),
        Err(error) => format!("{}: {error}", path.display()),
    }
}

/// Ends programs, together: asked first, killed when they don't listen. Returns once none is left.
pub fn stop(processes: &[ProcessId]) -> Result<()> {
    for (signal, patience) in [("TERM", PATIENCE), ("KILL", Duration::from_secs(5))] {
        for process in processes {
            // Checked right before: the number may long belong to someone else.
            if process.is_alive() {
                send(signal, process);
            }
        }
        if wait_until(patience, || !processes.iter().any(ProcessId::is_alive)) {
            return Ok(());
        }
    }
    let stubborn: Vec<String> = processes
        .iter()
        .filter(|process| process.is_alive())
        .map(|process| format!("{} ({})", process.pid, process.command_line()))
        .collect();
    bail!("these processes survived SIGKILL: {}", stubborn.join(", "))
}

/// Kills processes at once.
pub fn kill(processes: &[ProcessId]) {
    for process in processes {
        if process.is_alive() {
            send("KILL", process);
        }
    }
}

fn send(signal: &str, process: &ProcessId) {
    // The shell's own kill: no package brings the program on every machine. It fails only when the process has just
    // ended, which the caller finds out by looking.
    command::succeeds(Command::new("sh").args([
        "-c",
        "kill -s \"$0\" \"$1\"",
        signal,
        &process.pid.to_string(),
    ]));
}

/// Removes the notes of programs that have been stopped.
pub fn forget(cluster: &Cluster, name: &str) -> Result<()> {
    remove_file_if_there(Path::new(&cluster.daemons().join(format!("{name}.json"))))
}

/// Waits for a condition; false when it did not come true in time.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ignores_requests_is_killed() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "trap '' TERM; echo ready; while :; do sleep 0.05; done",
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut ready = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut ready)
            .expect("the trap is set");
        let process = ProcessId::of(child.id()).expect("it runs");
        let begun = Instant::now();
        stop(std::slice::from_ref(&process)).expect("it ends");
        assert!(begun.elapsed() >= PATIENCE, "it was asked first");
        assert!(!process.is_alive());
        child.wait().expect("its parent reaps it");
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("30").spawn().expect("sleep runs");
        let real = ProcessId::of(child.id()).expect("it runs");
        let earlier = ProcessId {
            start: real.start - 1,
            ..real.clone()
        };
        stop(&[earlier]).expect("there is nothing to end");
        assert!(real.is_alive());
        child.kill().expect("end it");
        child.wait().expect("reap it");
    }
}
