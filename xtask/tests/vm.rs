//! `cargo xtask vm` as its user meets it: what runs in a VM, and what a user is told when it goes wrong.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// The kernel that most of these boot.
const KERNEL: &str = "6.12";

fn vm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("vm")
        .args(arguments)
        .output()
        .expect("xtask can be run")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Fails if a machine that this process started is still running, or its files are still there.
fn nothing_is_left(xtask: &str) {
    let runs = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("target has tmp")
        .join("vm/runs");
    for entry in fs::read_dir("/proc").expect("there is /proc").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = text(&line);
        assert!(
            !(line.contains("qemu-system") && line.contains(xtask)),
            "still running: {line}"
        );
    }
    assert!(!runs.join(xtask).exists(), "{xtask} is left");
}

#[test]
fn a_users_own_program_runs_with_its_arguments_and_its_exit_code_is_ours() {
    let folder = std::env::temp_dir().join(format!("portolan-vm-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let script = folder.join("my-test");
    fs::write(
        &script,
        "#!/bin/sh\nuname -r\necho \"$1\"\ncat \"$2\"\necho complaint >&2\necho found > /results/report\nexit 3\n",
    )
    .expect("a file");
    let data = folder.join("data");
    fs::write(&data, "from a file\n").expect("a file");
    assert!(
        Command::new("chmod")
            .arg("+x")
            .arg(&script)
            .status()
            .expect("chmod runs")
            .success()
    );
    let data = data.display().to_string();
    let output = vm(&[
        "--kernel",
        KERNEL,
        "--with",
        &data,
        "--results",
        &folder.join("results").display().to_string(),
        "--",
        &script.display().to_string(),
        "it's $HOME",
        &data,
    ]);
    let report = fs::read_to_string(folder.join("results/report"));
    fs::remove_dir_all(&folder).expect("ours");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let mut lines = stdout.lines();
    assert!(
        lines
            .next()
            .is_some_and(|release| release.starts_with(KERNEL)),
        "{stdout}"
    );
    assert_eq!(lines.collect::<Vec<_>>(), ["it's $HOME", "from a file"]);
    assert!(stderr.contains("complaint"), "{stderr}");
    assert_eq!(report.expect("a result"), "found\n");
}

#[test]
fn a_crash_of_the_kernel_is_shown_and_is_no_pass() {
    let crash = "echo c > /proc/sysrq-trigger; exit 0";
    let output = vm(&["--kernel", KERNEL, "--", "sh", "-c", crash]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("crashed"), "{stderr}");
    assert!(stderr.contains("sysrq"), "its last lines: {stderr}");
}

#[test]
fn a_machine_that_hangs_is_ended_and_leaves_nothing() {
    let child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([
            "vm", "--kernel", KERNEL, "--limit", "8", "--", "sleep", "1000",
        ])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("xtask can be run");
    let run = format!("{}-0", child.id());
    let output = child.wait_with_output().expect("it ends");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{stderr}");
    assert!(stderr.contains("did not end within 8 s"), "{stderr}");
    assert!(stderr.contains("the last of its console"), "{stderr}");
    nothing_is_left(&run);
}

#[test]
fn bad_input_is_told_before_anything_boots() {
    for (arguments, expected) in [
        (&["--kernel", "4.9", "--", "true"][..], "5.10, 6.1, 6.12, "),
        (&["--kernel", "../6.12", "--", "true"], "newest"),
        (
            &["--kernel", KERNEL, "--", "/no/such/program"],
            "/no/such/program",
        ),
        (
            &["--kernel", KERNEL, "--", "/etc/passwd"],
            "no executable file",
        ),
        (
            &["--kernel", KERNEL, "--with", "/no/such/file", "--", "true"],
            "/no/such/file",
        ),
        (
            &["--kernel", KERNEL, "--module", "nonesuch", "--", "true"],
            "no module nonesuch",
        ),
        (&["--kernel", KERNEL, "--test", "nonesuch"], "there are "),
        (&["--", "true"], "--kernel"),
    ] {
        let output = vm(arguments);
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr.contains(expected), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("console"), "it booted: {stderr}");
    }
}
