//! The program as a user runs it: what it says, and how it ends, when something is not as it should be. Needs root.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

mod world;

use world::Namespace;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_portolan-agent"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace()
}

/// `run` in a namespace, for a control plane that is not there.
fn run_command(namespace: &Namespace, state: &Path, uplink: &str) -> Command {
    let object = state.join("object.o");
    fs::write(&object, "").expect("a file in place of the object");
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace.path().display()))
        .arg(env!("CARGO_BIN_EXE_portolan-agent"))
        .args(words(
            "run --node-name n1 --server https://127.0.0.1:1 --node-ip 10.89.0.11",
        ))
        .args(["--uplink", uplink, "--state-dir"])
        .arg(state)
        .arg("--ebpf-object")
        .arg(object);
    command
}

fn fails(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().expect("the program starts");
    let said = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

/// Ends a process with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a process is left behind: {error}");
        }
    }
}

#[test]
fn queries_say_when_no_agent_runs() {
    let state = tempfile::tempdir().expect("a temporary directory");
    for query in ["services", "flows", "drops", "status", "services --json"] {
        let said = fails(
            program()
                .args(words(query))
                .arg("--state-dir")
                .arg(state.path()),
        );
        let expected = format!("error: no agent is running on {}\n", state.path().display());
        assert_eq!(said, expected, "{query}");
    }
}

#[test]
fn run_names_what_is_missing() {
    let namespace = Namespace::new("cli");
    namespace.ip("link add eth0 type veth peer name other");
    let state = tempfile::tempdir().expect("a temporary directory");
    let run = |uplink: &str| run_command(&namespace, state.path(), uplink);

    let said = fails(&mut run("eth7"));
    assert!(
        said.contains("there is no interface eth7 in this network namespace"),
        "{said}"
    );
    let mut without_object = run("eth0");
    fs::remove_file(state.path().join("object.o")).expect("removed");
    let said = fails(&mut without_object);
    assert!(
        said.contains("object.o is missing; without --ebpf-object the agent uses its own"),
        "{said}"
    );
    let said = fails(&mut run("eth0"));
    assert!(
        said.contains("name a file with a join token (--join-token-file)"),
        "{said}"
    );
    let said = fails(run("eth0").args(["--join-token-file", "/nowhere/token"]));
    assert!(
        said.contains("read the join token from /nowhere/token: No such file"),
        "{said}"
    );
    let token = state.path().join("token");
    fs::write(&token, "abc").expect("written");
    let said = fails(run("eth0").arg("--join-token-file").arg(&token));
    assert!(said.contains("the join token is malformed"), "{said}");
    assert!(!state.path().join("pki").exists());
}

#[test]
fn a_second_agent_on_a_state_directory_is_refused() {
    let namespace = Namespace::new("cli");
    namespace.ip("link add eth0 type veth peer name other");
    let state = tempfile::tempdir().expect("a temporary directory");
    let token = state.path().join("token");
    fs::write(&token, format!("a.b.{}", "0".repeat(64))).expect("written");
    let mut first = run_command(&namespace, state.path(), "eth0");
    first
        .arg("--join-token-file")
        .arg(&token)
        .stderr(Stdio::piped());
    let mut first = Running(first.spawn().expect("the program starts"));
    let stderr = first.0.stderr.take().expect("piped");
    let mut lines = BufReader::new(stderr).lines();
    let line = lines.next().expect("a line").expect("text");
    assert!(line.contains("not joined yet"), "{line}");

    let said = fails(&mut run_command(&namespace, state.path(), "eth0"));
    let expected = format!(
        "an agent runs on {} already (process ",
        state.path().display()
    );
    assert!(said.contains(&expected), "{said}");
    let said = fails(
        program()
            .args(["teardown", "--state-dir"])
            .arg(state.path()),
    );
    assert!(said.contains("stop the agent first"), "{said}");
    drop(first);
    let torn_down = program()
        .args(["teardown", "--state-dir"])
        .arg(state.path())
        .output();
    assert!(torn_down.expect("the program starts").status.success());
}

#[test]
fn there_is_nothing_to_tear_down_where_no_agent_ran() {
    let state = tempfile::tempdir().expect("a temporary directory");
    for directory in [state.path(), Path::new("/nowhere")] {
        let output = program()
            .args(["teardown", "--state-dir"])
            .arg(directory)
            .output();
        assert!(output.expect("the program starts").status.success());
    }
}
