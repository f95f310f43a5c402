//! Machines that can't take part: tokens, full disks, missing rights. The command's own words say why.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libseccomp::{ScmpAction, ScmpFilterContext, ScmpSyscall};
use portolan_tests::{
    Cluster,
    cluster::{OUTSIDE, all_words, target_folder},
    daemon,
    load::in_namespace,
    wait_for,
};
use tempfile::TempDir;

use crate::life::Stage;

/// An agent of another machine, which joins as a node of a name.
fn agent(cluster: &Cluster, name: &str, namespace: &Path, folder: &Path) -> Command {
    let mut command = in_namespace(namespace);
    command
        .args(["timeout", "15"])
        .arg(cluster.program("portolan-agent"))
        .args(["run", "--node-name", name])
        .args(["--server", "https://10.89.0.1:6443"])
        .args(["--uplink", "eth0", "--node-ip", "10.89.0.201"])
        .args(["--cgroup-root", &format!("portolan/{name}")])
        .arg("--join-token-file")
        .arg(folder.join("token"))
        .arg("--state-dir")
        .arg(folder.join("state"));
    command
}

/// Runs an agent that must give up: beyond the fabric, with a state folder of its own.
fn run_agent(cluster: &Cluster, token: &str) -> Result<Output> {
    let folder = tempfile::tempdir().context("make a folder")?;
    fs::write(folder.path().join("token"), token).context("write the token")?;
    let output = agent(cluster, "intruder", Path::new(OUTSIDE), folder.path())
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

fn create_token(cluster: &Cluster, options: &[&str]) -> Result<String> {
    let made = Command::new(cluster.program("portolan-control"))
        .args(["token", "create", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .args(options)
        .output()
        .context("run portolan-control token create")?;
    ensure!(made.status.success(), "{}", all_words(&made));
    Ok(String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

/// A token whose time is over before it is used.
pub fn an_expired_token_is_refused(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let token = create_token(&cluster, &["--ttl", "1s"])?;
    // Its second must pass, and nothing tells when.
    std::thread::sleep(Duration::from_millis(1500));
    let words = all_words(&run_agent(&cluster, &token)?);
    ensure!(words.contains("expired"), "{words}");
    Ok(())
}

/// A third machine on the fabric, which goes when this does.
struct Guest {
    folder: TempDir,
}

impl Guest {
    const NAMESPACE: &str = "/run/netns/portolan-guest";

    fn new() -> Result<Self> {
        let folder = tempfile::tempdir().context("make a folder")?;
        let guest = Self { folder };
        fs::write(Self::NAMESPACE, "").context("make a namespace's file")?;
        run(Command::new("unshare").args([&format!("--net={}", Self::NAMESPACE), "true"]))?;
        for command in [
            "-n portolan-fabric link add guest type veth peer name eth0 netns portolan-guest",
            "-n portolan-fabric link set guest master br0 up",
            "-n portolan-guest address add 10.89.0.201/24 dev eth0",
            "-n portolan-guest link set eth0 up",
        ] {
            run(Command::new("ip").args(command.split(' ')))?;
        }
        Ok(guest)
    }

    /// Ends what its agent left, as somebody does who takes a node out of the cluster.
    fn tear_down(&self, cluster: &Cluster) -> Result<()> {
        let state = self.folder.path().join("state");
        run(in_namespace(Path::new(Self::NAMESPACE))
            .arg(cluster.program("portolan-agent"))
            .args(["teardown", "--state-dir"])
            .arg(state))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(Self::NAMESPACE)) {
            eprintln!("{error:#}");
        }
        if let Err(error) = fs::remove_file(Self::NAMESPACE) {
            eprintln!("remove {}: {error}", Self::NAMESPACE);
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        all_words(&output)
    );
    Ok(())
}

/// A token for one node lets one node in and no other.
pub fn a_used_up_token_is_refused(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let token = create_token(&cluster, &["--uses", "1"])?;
    let guest = Guest::new()?;
    let folder = guest.folder.path();
    fs::write(folder.join("token"), &token).context("write the token")?;
    let mut first = agent(&cluster, "guest", Path::new(Guest::NAMESPACE), folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("run an agent")?;
    let joined = wait_for("the guest to be ready", Duration::from_secs(10), || {
        let nodes = cluster.kubectl(&["get", "node", "guest", "--ignore-not-found"])?;
        Ok(if nodes.contains(" Ready ") {
            Ok(())
        } else {
            Err(nodes)
        })
    });
    daemon::end(first.id())?;
    first.wait().context("wait for the agent")?;
    guest.tear_down(&cluster)?;
    cluster.kubectl(&["delete", "node", "guest", "--ignore-not-found"])?;
    joined?;
    let words = all_words(&run_agent(&cluster, &token)?);
    ensure!(words.contains("used up"), "{words}");
    Ok(())
}

/// A kernel without bpf(2): told before the node joins, with nothing made.
pub fn a_missing_kernel_feature_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let token = create_token(&cluster, &["--uses", "1"])?;
    // Children of the thread inherit what it may not call.
    let output = std::thread::scope(|scope| {
        let without_bpf = || {
            let errno = ScmpAction::Errno(nix::libc::ENOSYS);
            let mut filter = ScmpFilterContext::new(ScmpAction::Allow)?;
            filter.add_rule(errno, ScmpSyscall::from_name("bpf")?)?;
            filter.load()?;
            run_agent(&cluster, &token)
        };
        scope
            .spawn(without_bpf)
            .join()
            .expect("the thread panics on nothing")
    })?;
    let words = all_words(&output);
    ensure!(
        words.contains("this kernel has no") && words.contains("Linux"),
        "{words}"
    );
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
