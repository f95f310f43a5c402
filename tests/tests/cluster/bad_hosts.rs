//! Machines that can't take part: tokens, full disks, missing rights. The command's own words say why.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{
    Cluster,
    cluster::{OUTSIDE, all_words, target_folder},
    load::in_namespace,
};

use crate::life::Stage;

/// Runs an agent that must give up: beyond the fabric, with a state folder of its own.
fn run_agent(cluster: &Cluster, token: &str) -> Result<Output> {
    let folder = tempfile::tempdir().context("make a folder")?;
    let file = folder.path().join("token");
    fs::write(&file, token).context("write the token")?;
    let output = in_namespace(Path::new(OUTSIDE))
        .args(["timeout", "15"])
        .arg(cluster.program("portolan-agent"))
        .args([
            "run",
            "--node-name",
            "intruder",
            "--server",
            "https://10.89.0.1:6443",
        ])
        .args([
            "--uplink",
            "eth0",
            "--node-ip",
            "10.89.0.200",
            "--cgroup-root",
            "portolan/intruder",
        ])
        .arg("--join-token-file")
        .arg(&file)
        .arg("--state-dir")
        .arg(folder.path().join("state"))
        .output()
        .context("run an agent")?;
    ensure!(
        !output.status.success(),
        "it gives up: {}",
        all_words(&output)
    );
    ensure!(
        output.status.code() != Some(124),
        "at once: {}",
        all_words(&output)
    );
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"])?;
    ensure!(!nodes.contains("intruder"), "{nodes}");
    let pins = folder.path().join("state/bpf");
    ensure!(
        !pins.exists() || fs::read_dir(&pins).is_ok_and(|mut pins| pins.next().is_none()),
        "no pins are left"
    );
    Ok(output)
}

/// Another secret than the token's.
pub fn a_wrong_token_is_refused(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let good = fs::read_to_string(cluster.state().join("join-token")).context("read the token")?;
    let mut parts: Vec<&str> = good.trim().split('.').collect();
    ensure!(parts.len() == 3, "a token has three parts");
    parts[1] = "0000000000000000";
    let output = run_agent(&cluster, &parts.join("."))?;
    let words = all_words(&output);
    ensure!(words.contains("token"), "{words}");
    let output = run_agent(&cluster, "no token at all")?;
    ensure!(
        all_words(&output).contains("token"),
        "{}",
        all_words(&output)
    );
    Ok(())
}

/// A token whose time is over before it is used.
pub fn an_expired_token_is_refused(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let made = Command::new(cluster.program("portolan-control"))
        .args(["token", "create", "--ttl", "1s", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .output()
        .context("run portolan-control token create")?;
    ensure!(made.status.success(), "{}", all_words(&made));
    // Its second must pass, and nothing tells when.
    std::thread::sleep(Duration::from_millis(1500));
    let output = run_agent(&cluster, String::from_utf8_lossy(&made.stdout).trim())?;
    let words = all_words(&output);
    ensure!(words.contains("token"), "{words}");
    Ok(())
}

/// An image that does not fit: the import says so and leaves none.
pub fn a_full_disk_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let folder = tempfile::tempdir().context("make a folder")?;
    let run = |program: &str, arguments: &[&str]| -> Result<Output> {
        Command::new(program)
            .args(arguments)
            .arg(folder.path())
            .output()
            .with_context(|| format!("run {program}"))
    };
    let mounted = run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs"])?;
    ensure!(mounted.status.success(), "{}", all_words(&mounted));
    let image = |verb: &[&str]| {
        Command::new(cluster.program("portolan-agent"))
            .arg("image")
            .args(verb)
            .arg("--state-dir")
            .arg(folder.path())
            .output()
            .context("run portolan-agent image")
    };
    let archive = target_folder()?.join("portolan-demo.tar");
    let imported = image(&[
        "import",
        "--name=localhost/full:1",
        &archive.to_string_lossy(),
    ]);
    let listed = image(&["list"]);
    run("umount", &[])?;
    let imported = imported?;
    let words = all_words(&imported);
    ensure!(
        !imported.status.success() && words.contains("No space left on device"),
        "{words}"
    );
    let listed = listed?;
    ensure!(
        !all_words(&listed).contains("localhost/full"),
        "{}",
        all_words(&listed)
    );
    Ok(())
}

/// `up` and the agent say that they need root before they do anything.
pub fn who_is_not_root_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    // Copies where anybody may look, whoever owns the source tree.
    let folder = tempfile::tempdir().context("make a folder")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))
        .context("open the folder")?;
    for (program, arguments) in [
        ("xtask", &["up"][..]),
        ("xtask", &["down"][..]),
        (
            "portolan-agent",
            &[
                "run",
                "--node-name",
                "x",
                "--server",
                "https://127.0.0.1:6443",
                "--join-token-file",
                "/dev/null",
                "--state-dir",
                "/tmp/portolan-nobody",
                "--uplink",
                "eth0",
                "--node-ip",
                "10.0.0.1",
            ][..],
        ),
    ] {
        let copy = folder.path().join(program);
        fs::copy(cluster.program(program), &copy).with_context(|| format!("copy {program}"))?;
        let output = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "timeout",
                "15",
            ])
            .arg(&copy)
            .args(arguments)
            .current_dir("/")
            .output()
            .context("run setpriv")?;
        let words = all_words(&output);
        ensure!(
            !output.status.success() && words.contains("root"),
            "{program}: {words}"
        );
    }
    ensure!(
        !Path::new("/tmp/portolan-nobody").exists(),
        "nothing half-made is left"
    );
    Ok(())
}
