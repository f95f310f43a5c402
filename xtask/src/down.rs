//! `cargo xtask down`: takes away every process, namespace, mount, control group, pin and interface of the cluster, and
//! looks afterwards whether anything is left.
//!
//! The agents know best how to take their pods away, so they are asked first; but whatever a crash has left is found by
//! what the kernel says, without them.

mod leftovers;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    cluster::{self, Cluster, HOST_INTERFACE},
    command,
    daemon::{self, wait_until},
    machine::{self, ProcessId},
    progress::Progress,
    workspace::Workspace,
};

pub use leftovers::Leftovers;

/// How long an agent may take to remove its node's pods.
const TEARDOWN: Duration = Duration::from_secs(20);

/// The command.
pub fn run(workspace: &Workspace) -> Result<()> {
    machine::require_root("down")?;
    let progress = Progress::new();
    let _lock = cluster::lock()?;
    let step = progress.step("down");
    let removed = clear(workspace)?;
    step.done(if removed.is_empty() {
        "there was nothing"
    } else {
        "nothing is left"
    });
    for line in removed.describe() {
        progress.say(&format!("  removed {line}"));
    }
    Ok(())
}

/// Takes away whatever cluster this machine has, this tree's or another's. What there was.
pub fn clear(workspace: &Workspace) -> Result<Leftovers> {
    let own = Cluster::of(workspace);
    let recorded = cluster::Cluster::recorded()?;
    let mut found = Leftovers::default();
    if let Some(other) = recorded.filter(|recorded| *recorded != own) {
        found.add(take_away(workspace, &other)?);
    }
    found.add(take_away(workspace, &own)?);
    Cluster::forget()?;
    Ok(found)
}

fn take_away(workspace: &Workspace, cluster: &Cluster) -> Result<Leftovers> {
    let found = Leftovers::find(cluster)?;
    if !found.is_empty() {
        // Control goes with the agents: nothing new may be scheduled meanwhile.
        stop_daemons(cluster)?;
        let torn_down = teardown_nodes(workspace, cluster);
        sweep(cluster)?;
        if !wait_until(Duration::from_secs(5), || {
            Leftovers::find(cluster).is_ok_and(|left| left.is_empty())
        }) {
            let left = Leftovers::find(cluster)?.describe().join("\n  ");
            bail!("these are still there:\n  {left}");
        }
        // The sweep has made up for it, but an agent that can't clear its node away is a fault to be seen.
        if let Err(error) = torn_down {
            eprintln!("an agent did not clear its node away, so it was done by force: {error:#}");
        }
    }
    remove_state(cluster)?;
    Ok(found)
}

fn stop_daemons(cluster: &Cluster) -> Result<()> {
    let mut running = Vec::new();
    let names = daemon::names(cluster)?;
    // The store goes last: control may still want to write.
    let (stores, others): (Vec<_>, Vec<_>) = names.iter().partition(|name| *name == "etcd");
    for group in [others, stores] {
        for name in &group {
            running.extend(daemon::find(cluster, name)?);
        }
        daemon::stop(&running)?;
        for name in &group {
            daemon::forget(cluster, name)?;
        }
    }
    Ok(())
}

/// Asks the agents to remove what they made, all at once.
fn teardown_nodes(workspace: &Workspace, cluster: &Cluster) -> Result<()> {
    let nodes = cluster.node_states()?;
    thread::scope(|scope| {
        let asked: Vec<_> = nodes
            .iter()
            .map(|(name, state)| {
                scope.spawn(move || teardown_node(workspace, cluster, name, state))
            })
            .collect();
        asked
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a thread of xtask panicked"))?
            })
            .collect::<Result<Vec<()>>>()
            .map(drop)
    })
}

fn teardown_node(workspace: &Workspace, cluster: &Cluster, name: &str, state: &Path) -> Result<()> {
    let program = cluster::agent_program(workspace, cluster)?;
    let namespace = cluster::namespace_file(&format!("portolan-{name}"));
    let mut teardown = if namespace.exists() {
        cluster::in_namespace(&namespace, program)
    } else {
        Command::new(program)
    };
    teardown.arg("teardown").arg("--state-dir").arg(state);
    let log = cluster.logs().join(format!("{name}-teardown.log"));
    fs::create_dir_all(cluster.logs()).context("make the folder of logs")?;
    let file = fs::File::create(&log).with_context(|| format!("open {}", log.display()))?;
    let mut child = teardown
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share the log file")?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot run {}", command::line(&teardown)))?;
    let is_over = wait_until(TEARDOWN, || !matches!(child.try_wait(), Ok(None)));
    if !is_over {
        end(&mut child)?;
        bail!(
            "{name}: teardown took longer than {} s: see {}",
            TEARDOWN.as_secs(),
            log.display()
        );
    }
    let status = child.wait().context("wait for teardown")?;
    if !status.success() {
        let words = fs::read_to_string(&log).unwrap_or_default();
        bail!(
            "{name}: teardown ended with {status}:\n{}",
            command::tail(&words, 10)
        );
    }
    Ok(())
}

fn end(child: &mut Child) -> Result<()> {
    child.kill().context("end teardown")?;
    child.wait().map(drop).context("wait for teardown's end")
}

/// Removes what is left, by what the kernel says.
fn sweep(cluster: &Cluster) -> Result<()> {
    // A supervisor may start another while we kill, so look again; bounded, because each round kills all it sees.
    for _ in 0..5 {
        let left = Leftovers::find(cluster)?;
        if left.processes.is_empty() {
            break;
        }
        daemon::kill(&left.processes);
        wait_until(Duration::from_secs(2), || {
            !left.processes.iter().any(ProcessId::is_alive)
        });
    }
    let left = Leftovers::find(cluster)?;
    // The last mounted may lie on top of an earlier one.
    for mount in left.mounts.iter().rev() {
        if !command::succeeds(Command::new("umount").arg(mount)) {
            command::output(Command::new("umount").arg("--lazy").arg(mount))?;
        }
    }
    for cgroup in &left.cgroups {
        remove_cgroup(cgroup)?;
    }
    for namespace in &left.namespaces {
        let file = cluster::namespace_file(namespace);
        // A crashed `up` may have made the file and not yet mounted the namespace on it.
        if machine::mount_points()?.contains(&file) {
            command::output(Command::new("umount").arg(&file))?;
        }
        cluster::remove_file_if_there(&file)?;
    }
    if left.interface && Path::new("/sys/class/net").join(HOST_INTERFACE).exists() {
        // It goes with its peer's namespace, which the kernel clears away at its leisure: fine when it was quicker.
        command::succeeds(Command::new("ip").args(["link", "delete", HOST_INTERFACE]));
    }
    Ok(())
}

/// Removes a control group and those below it. The kernel lets go of one only after its last process is reaped.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(cgroup) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    let mut failure = None;
    wait_until(Duration::from_secs(3), || match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            failure = Some(error);
            false
        }
        _ => {
            failure = None;
            true
        }
    });
    match failure {
        Some(error) => Err(error).with_context(|| format!("remove {}", cgroup.display())),
        None => Ok(()),
    }
}

/// Empties the state folder but for the logs, which the next `up` clears: they tell why the last one failed.
fn remove_state(cluster: &Cluster) -> Result<()> {
    let state = cluster.state();
    if !state.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(state).with_context(|| format!("read {}", state.display()))? {
        let path = entry
            .with_context(|| format!("read {}", state.display()))?
            .path();
        if path == cluster.logs() {
            continue;
        }
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}
