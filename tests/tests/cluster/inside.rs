//! Looking into pods: logs and commands in containers.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, wait_for};
use serde_json::json;

use crate::{commands::pod, life::Stage};

/// The machine's own static busybox, which is lent to pods: the demo's image has no shell.
pub fn busybox() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is set")?;
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("busybox"));
    found
        .find(|file| file.is_file())
        .context("this test needs busybox (Debian: busybox-static)")
}

/// A pod with a shell.
pub fn with_shell(cluster: &Cluster, name: &str, args: &[&str]) -> Result<()> {
    let busybox = busybox()?;
    let mut manifest: serde_json::Value = serde_json::from_str(&pod(
        name,
        &json!([{
            "name": "main",
            "image": "localhost/portolan-demo:1",
            "command": ["/tools/busybox"],
            "args": args,
            "volumeMounts": [{"name": "busybox", "mountPath": "/tools/busybox"}],
        }]),
    ))?;
    let volume = json!({"name": "busybox", "hostPath": {"path": busybox, "type": "File"}});
    manifest["spec"]["volumes"] = json!([volume]);
    cluster.apply(&manifest.to_string())?;
    cluster.wait_for_pods(&format!("app={name}"), 1)?;
    Ok(())
}

/// All of it, the end of it, with times, both containers', and what is still written.
pub fn logs_show_what_containers_write(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let script = "i=0; while [ $i -lt 5 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; exec /tools/busybox sleep 600";
    with_shell(&cluster, "talker", &["sh", "-c", script])?;
    wait_for("all that it wrote", Duration::from_secs(10), || {
        let all = cluster.kubectl(&["logs", "talker"])?;
        let whole = all == "line 0\nline 1\nline 2\nline 3\nline 4\noops\n";
        Ok(if whole { Ok(()) } else { Err(all) })
    })?;
    let tail = cluster.kubectl(&["logs", "talker", "--tail=1"])?;
    ensure!(tail == "oops\n", "{tail}");
    let stamped = cluster.kubectl(&["logs", "talker", "--tail=1", "--timestamps"])?;
    ensure!(
        stamped.starts_with("20") && stamped.ends_with("Z oops\n"),
        "{stamped}"
    );
    let selected =
        cluster.kubectl(&["logs", "-l", "app=talker", "--prefix", "--all-containers"])?;
    ensure!(selected.contains("[pod/talker/main] line 4"), "{selected}");
    let missing = cluster.try_kubectl(&["logs", "talker", "--previous"], "")?;
    let expected = "previous terminated container \"main\" in pod \"talker\" not found";
    ensure!(missing.stderr.contains(expected), "{missing:?}");
    let mut following = cluster
        .kubectl_command()
        .args(["logs", "-f", "talker", "--tail=1"])
        .stdout(Stdio::piped())
        .spawn()
        .context("run kubectl logs -f")?;
    let mut line = String::new();
    let stdout = following.stdout.take().context("a pipe")?;
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line == "oops\n", "{line}");
    cluster.kubectl(&["delete", "pod", "talker"])?;
    let status = following.wait().context("the container's end ends it")?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Output, errors, input, exit codes, a command that there is not, and a terminal.
pub fn exec_runs_commands(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    with_shell(&cluster, "host", &["sleep", "600"])?;
    let exec = |arguments: &[&str]| {
        let mut command = cluster.kubectl_command();
        command.arg("exec").args(arguments);
        command
    };
    let shell = ["host", "--", "/tools/busybox", "sh", "-c"];
    let script = "echo out; echo err >&2; exit 3";
    let both = exec(&[&shell[..], &[script]].concat()).output()?;
    ensure!(both.stdout == b"out\n", "{both:?}");
    let stderr = String::from_utf8_lossy(&both.stderr).into_owned();
    ensure!(stderr.starts_with("err\n"), "{stderr}");
    ensure!(
        stderr.contains("command terminated with exit code 3"),
        "{stderr}"
    );
    ensure!(both.status.code() == Some(3), "{both:?}");

    let mut reading = exec(&["-i", "host", "--", "/tools/busybox", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = reading.stdin.take().context("a pipe")?;
    std::io::Write::write_all(&mut stdin, &vec![b'x'; 300_000])?;
    drop(stdin);
    let counted = reading.wait_with_output()?;
    ensure!(counted.stdout == b"300000\n", "{counted:?}");

    let missing = exec(&["host", "--", "/nothing"]).output()?;
    let told = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(
        told.contains("/nothing") && told.contains("no such file"),
        "{told}"
    );

    // script(1) gives kubectl a terminal of its own.
    let words = "stty rows 33 cols 77; kubectl exec -it host -- /tools/busybox sh -c \
                 'echo $TERM; /tools/busybox stty size'";
    let mut script = std::process::Command::new("script");
    script
        .args(["-qec", words, "/dev/null"])
        .stdin(Stdio::null());
    let output = script.env("KUBECONFIG", cluster.kubeconfig()).output()?;
    let terminal = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        terminal.contains("xterm") && terminal.contains("33 77"),
        "{output:?}"
    );
    cluster.kubectl(&["delete", "pod", "host", "--grace-period=0", "--force"])?;
    Ok(())
}
