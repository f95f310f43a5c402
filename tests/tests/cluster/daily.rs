//! What people do with running pods every day, with the oldest and the newest kubectl: copy files, attach,
//! run commands in a terminal, read logs across restarts, look at use and events.

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{
    Cluster,
    cluster::{all_words, target_folder},
    wait_for,
};
use serde_json::{Value, json};

use crate::{commands::pod, inside::busybox, life::Stage};

/// The oldest kubectl that is served, and the newest.
pub const ENDS: [&str; 2] = ["1.20", "1.36"];

/// A kubectl of one version, talking to the cluster.
pub fn kubectl(cluster: &Cluster, version: &str) -> Result<Command> {
    let path = target_folder()?.join(format!("tools/kubectls/kubectl-{version}"));
    ensure!(
        path.exists(),
        "this test needs {}: `cargo xtask setup` unpacks it",
        path.display()
    );
    let mut command = Command::new(path);
    command.env("KUBECONFIG", cluster.kubeconfig());
    Ok(command)
}

/// Runs it to its end.
pub fn run(cluster: &Cluster, version: &str, arguments: &[&str]) -> Result<Output> {
    kubectl(cluster, version)?
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run kubectl {version} {arguments:?}"))
}

/// Runs it, and it must succeed; returns its stdout.
pub fn succeed(cluster: &Cluster, version: &str, arguments: &[&str]) -> Result<String> {
    let output = run(cluster, version, arguments)?;
    ensure!(
        output.status.success(),
        "kubectl {version} {arguments:?}: {}",
        all_words(&output)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The machine's own static busybox, as these commands of a container whose image has none.
fn tools(container: &mut Value) -> Result<Value> {
    let busybox = busybox()?;
    let names = [
        "sh", "tar", "test", "sleep", "cat", "stty", "wc", "nc", "touch", "dd", "yes", "head",
    ];
    let mounts = names.map(|name| json!({"name": "tools", "mountPath": format!("/bin/{name}")}));
    container["volumeMounts"] = Value::from(mounts.to_vec());
    let scratch = json!({"name": "scratch", "mountPath": "/tmp"});
    container["volumeMounts"]
        .as_array_mut()
        .context("a list")?
        .push(scratch);
    Ok(json!([
        {"name": "tools", "hostPath": {"path": busybox, "type": "File"}},
        {"name": "scratch", "emptyDir": {}},
    ]))
}

/// A pod of one container that runs a script, with a folder /tmp; `more` is merged into the container.
pub fn scripted(name: &str, script: &str, more: &Value) -> Result<Value> {
    let mut container = json!({
        "name": "main",
        "image": "localhost/portolan-demo:1",
        "command": ["/bin/sh", "-c", script],
    });
    let volumes = tools(&mut container)?;
    let fields = more.as_object().context("an object")?;
    for (field, value) in fields {
        container[field] = value.clone();
    }
    let mut manifest: Value = serde_json::from_str(&pod(name, &json!([container])))?;
    manifest["spec"]["volumes"] = volumes;
    Ok(manifest)
}

/// Starts such a pod.
fn start(cluster: &Cluster, name: &str, script: &str, more: &Value) -> Result<()> {
    cluster.apply(&scripted(name, script, more)?.to_string())?;
    cluster.wait_for_pods(&format!("app={name}"), 1)?;
    Ok(())
}

fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    let arguments = ["delete", "pod", name, "--grace-period=0", "--force"];
    cluster.kubectl(&arguments).map(drop)
}

/// A program in a terminal of its own, as script(1) gives it; what it wrote is also in `typescript`.
fn in_terminal(cluster: &Cluster, version: &str, words: &str, typescript: &str) -> Result<Command> {
    let path = kubectl(cluster, version)?.get_program().to_owned();
    let words = words.replace("kubectl", &path.to_string_lossy());
    let mut script = Command::new("script");
    script
        .args(["-qefc", &words, typescript])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(script)
}

/// Files and folders go in and come back as they were; what is not there is told.
pub fn files_are_copied_both_ways(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    start(&cluster, "files", "sleep 600", &json!({}))?;
    let folder = tempfile::tempdir().context("a folder")?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let content: Vec<u8> = (0..300_000_u32)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect();
    fs::create_dir(at("tree")).context("a folder")?;
    fs::write(at("tree/large"), &content).context("written")?;
    fs::write(at("tree/small"), "text\n").context("written")?;
    for version in ENDS {
        let there = format!("/tmp/tree-{version}");
        succeed(
            &cluster,
            version,
            &["cp", &at("tree"), &format!("files:{there}")],
        )?;
        let count = [
            "exec",
            "files",
            "--",
            "/bin/wc",
            "-c",
            &format!("{there}/large"),
        ];
        let counted = succeed(&cluster, version, &count)?;
        ensure!(counted.starts_with("300000 "), "{counted}");
        let back = at(&format!("back-{version}"));
        succeed(&cluster, version, &["cp", &format!("files:{there}"), &back])?;
        ensure!(fs::read(format!("{back}/large"))? == content, "{back}");
        ensure!(fs::read(format!("{back}/small"))? == b"text\n", "{back}");
        // Of what is absent in the pod kubectl tells only if tar's words come before its empty archive; of a folder that is
        // absent it always does.
        let absent = run(
            &cluster,
            version,
            &["cp", &at("tree/small"), "files:/tmp/absent/small"],
        )?;
        ensure!(
            !absent.status.success() && all_words(&absent).contains("No such file or directory"),
            "{absent:?}"
        );
    }
    remove(&cluster, "files")
}

/// A terminal attached to a shell; its end ends kubectl. `run -i` passes the exit code on.
pub fn terminals_are_attached(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for version in ENDS {
        let terminal = json!({"stdin": true, "tty": true, "command": ["/bin/sh"]});
        start(&cluster, "shell", "", &terminal)?;
        let words = "kubectl attach -it shell";
        let mut attached = in_terminal(&cluster, version, words, "/dev/null")?
            .stdin(Stdio::piped())
            .spawn()
            .context("run script")?;
        let mut stdin = attached.stdin.take().context("a pipe")?;
        stdin.write_all(b"echo 4$((1+1)); exit 5\n")?;
        let output = attached.wait_with_output()?;
        drop(stdin);
        ensure!(all_words(&output).contains("42"), "{version}: {output:?}");
        remove(&cluster, "shell")?;

        let image = "--image=localhost/portolan-demo:1";
        let once = [
            "run",
            "once",
            "-i",
            "--rm",
            "--restart=Never",
            image,
            "--",
            "exit",
            "3",
        ];
        let ended = run(&cluster, version, &once)?;
        ensure!(ended.status.code() == Some(3), "{version}: {ended:?}");
    }
    Ok(())
}

/// A terminal that changes its size in the middle of a command, whose exit code comes through.
pub fn terminals_change_their_size(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    start(&cluster, "sized", "sleep 600", &json!({}))?;
    let folder = tempfile::tempdir().context("a folder")?;
    for version in ENDS {
        let seen = folder.path().join(version).display().to_string();
        let words = format!(
            "stty rows 33 cols 77; (until grep -q 'rea[d]y' {seen}; do sleep 0.1; done; stty -F /dev/tty rows 44 cols 99) & \
             timeout --foreground 60 kubectl exec -it sized -- /bin/sh -c 'stty size; trap \"stty size; exit 7\" WINCH; echo rea\"\"dy; \
             while :; do sleep 0.1; done'"
        );
        let output = in_terminal(&cluster, version, &words, &seen)?
            .stdin(Stdio::null())
            .output()
            .context("run script")?;
        let told = all_words(&output);
        ensure!(
            told.contains("33 77") && told.contains("44 99"),
            "{version}: {output:?}"
        );
        ensure!(output.status.code() == Some(7), "{version}: {output:?}");
    }
    remove(&cluster, "sized")
}

/// A run that has ended, the one that goes on, both containers, several pods, what was said lately, and followed to its end.
pub fn logs_go_across_restarts(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let script = "n=$(cat /tmp/n 2> /dev/null || echo 0); echo run $n; echo $((n+1)) > /tmp/n; \
                  until [ -e /tmp/end$n ]; do sleep 0.1; done; echo end $n";
    for (at, version) in ENDS.iter().enumerate() {
        let name = format!("runs{at}");
        let mut manifest = scripted(&name, script, &json!({}))?;
        let mut second = manifest["spec"]["containers"][0].clone();
        second["name"] = json!("second");
        second["command"] = json!(["/bin/sh", "-c", "echo second; exec sleep 600"]);
        let containers = manifest["spec"]["containers"].as_array_mut();
        containers.context("containers")?.push(second);
        cluster.apply(&manifest.to_string())?;
        cluster.wait_for_pods(&format!("app={name}"), 1)?;
        let following = kubectl(&cluster, version)?
            .args(["logs", "-f", &name, "-c", "main"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run kubectl logs -f")?;
        let touch = ["exec", &name, "-c", "main", "--", "/bin/touch", "/tmp/end0"];
        succeed(&cluster, version, &touch)?;
        let followed = following.wait_with_output()?;
        let followed = String::from_utf8_lossy(&followed.stdout).into_owned();
        ensure!(
            followed.ends_with("run 0\nend 0\n"),
            "{version}: {followed}"
        );
        let logs =
            |arguments: &[&str]| succeed(&cluster, version, &[&["logs"][..], arguments].concat());
        wait_for("the next run", Duration::from_secs(30), || {
            let now = run(&cluster, version, &["logs", &name, "-c", "main"])?;
            let words = all_words(&now);
            Ok(if words == "run 1\n" {
                Ok(())
            } else {
                Err(words)
            })
        })?;
        let previous = logs(&[&name, "-c", "main", "--previous"])?;
        ensure!(
            previous.ends_with("run 0\nend 0\n"),
            "{version}: {previous}"
        );
        let all = logs(&["-l", &format!("app={name}"), "--all-containers"])?;
        ensure!(
            all.contains("run 1") && all.contains("second"),
            "{version}: {all}"
        );
        let late = logs(&[&name, "-c", "second", "--since-time=2099-01-01T00:00:00Z"])?;
        ensure!(late.is_empty(), "{version}: {late}");
        let since = logs(&[&name, "-c", "second", "--since=1h"])?;
        ensure!(since == "second\n", "{version}: {since}");
        let absent = run(&cluster, version, &["logs", &name, "-c", "absent"])?;
        ensure!(
            all_words(&absent).contains("container absent is not valid for pod"),
            "{version}: {absent:?}"
        );
        remove(&cluster, &name)?;
    }
    Ok(())
}

/// What nodes, pods and containers use, and what happened to them.
pub fn use_and_events_are_shown(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    start(
        &cluster,
        "used",
        "while :; do :; done",
        &json!({"resources": {"limits": {"cpu": "50m"}}}),
    )?;
    for version in ENDS {
        let nodes = wait_for("measurements", Duration::from_mins(1), || {
            let top = run(&cluster, version, &["top", "nodes"])?;
            let words = all_words(&top);
            Ok(if words.contains("n1 ") && words.contains("n2 ") {
                Ok(words)
            } else {
                Err(words)
            })
        })?;
        ensure!(
            nodes.starts_with("NAME   CPU(cores)   CPU"),
            "{version}: {nodes}"
        );
        let top = ["top", "pods", "--containers", "-l", "app=used"];
        let containers = wait_for("the pod's measurements", Duration::from_mins(1), || {
            let top = run(&cluster, version, &top)?;
            let words = all_words(&top);
            Ok(if words.contains("main") {
                Ok(words)
            } else {
                Err(words)
            })
        })?;
        let lines: Vec<Vec<&str>> = containers
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        ensure!(
            lines[0] == ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"],
            "{version}: {containers}"
        );
        ensure!(lines[1][..2] == ["used", "main"], "{version}: {containers}");
        let cpu = lines[1][2]
            .strip_suffix('m')
            .and_then(|text| text.parse::<u32>().ok());
        ensure!(
            cpu.is_some_and(|cpu| (1..=100).contains(&cpu)),
            "{version}: {containers}"
        );
    }
    for events in [
        succeed(
            &cluster,
            ENDS[0],
            &["get", "events", "--field-selector=involvedObject.name=used"],
        )?,
        succeed(&cluster, ENDS[1], &["events", "--for=pod/used"])?,
    ] {
        for reason in ["Pulled", "Created", "Started"] {
            ensure!(events.contains(reason), "{reason}: {events}");
        }
    }
    remove(&cluster, "used")
}
