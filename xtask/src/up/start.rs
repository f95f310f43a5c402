//! Starts fabric, store, control plane and agents, as much at once as their needs allow, and applies the demo.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{Network, Programs, Store, control, fabric};
use crate::{
    cluster::{API_PORT, Cluster, IMAGE, Node, in_namespace, namespace_file, server_addresses},
    command,
    daemon::{self, wait_until},
    machine::ProcessId,
    progress::Progress,
    workspace::Workspace,
};

/// A cluster has to be ready within this, on a slow machine too.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// Where each node's agent serves metrics, in the node's own network namespace.
const METRICS: &str = "127.0.0.1:10249";

/// All that starting needs to know.
pub struct Run<'a> {
    /// Where things lie.
    pub workspace: &'a Workspace,
    /// What to start.
    pub cluster: &'a Cluster,
    /// What to start it from.
    pub programs: &'a Programs,
    /// Its nodes.
    pub nodes: &'a [Node],
    /// Its store.
    pub store: Store,
    /// How many control servers it has, and members of etcd.
    pub servers: u8,
    /// How packets get to other nodes' pods.
    pub network: Network,
    /// Whether to apply the demo.
    pub with_demo: bool,
    /// Where to show it.
    pub progress: &'a Progress,
}

/// Starts everything and returns once the nodes are ready and the demo's pods run.
pub fn cluster(run: &Run<'_>) -> Result<()> {
    thread::scope(|scope| {
        // Images are files: they need no running agent.
        let images: Vec<_> = run
            .nodes
            .iter()
            .map(|node| scope.spawn(move || import_image(run, *node)))
            .collect();
        let store = scope.spawn(|| control::start_store(run));
        let step = run.progress.step("fabric");
        fabric::create(run.nodes, run.servers)?;
        step.done(&format!("{} nodes and an outside client", run.nodes.len()));
        let store = joined(store)?;
        control::start(run, &store)?;
        let applied = scope.spawn(|| {
            if run.with_demo {
                apply_demo(run)
            } else {
                Ok(())
            }
        });
        images.into_iter().try_for_each(joined)?;
        let agents = start_agents(run)?;
        joined(applied)?;
        wait_for_nodes(run, &agents)?;
        if run.with_demo {
            wait_for_pods(run, &agents)?;
        }
        Ok(())
    })
}

pub fn token_file(run: &Run<'_>) -> PathBuf {
    run.cluster.state().join("join-token")
}

fn import_image(run: &Run<'_>, node: Node) -> Result<()> {
    let state = run.cluster.node_state(node);
    fs::create_dir_all(&state).with_context(|| format!("make {}", state.display()))?;
    command::output(
        std::process::Command::new(run.programs.agent())
            .args(["image", "import", "--name", IMAGE, "--state-dir"])
            .arg(&state)
            .arg(&run.programs.demo.image),
    )
    .map(drop)
    .with_context(|| format!("load the demo's image on {}", node.name()))
}

/// The agent's command line; tests start killed agents anew with the same.
fn agent_command(run: &Run<'_>, node: Node) -> std::process::Command {
    let mut agent = in_namespace(&namespace_file(&node.namespace()), run.programs.agent());
    let servers = (1..=run.servers).map(|number| {
        let [address, _] = server_addresses(number);
        format!("https://{address}:{API_PORT}")
    });
    agent
        .args(["run", "--node-name", &node.name(), "--server"])
        .arg(servers.collect::<Vec<_>>().join(","))
        .arg("--join-token-file")
        .arg(token_file(run))
        .arg("--state-dir")
        .arg(run.cluster.node_state(node))
        .args(["--uplink", "eth0", "--ebpf-object"])
        .arg(&run.programs.object)
        .args(["--cgroup-root", &format!("portolan/{}", node.name())])
        .args(["--metrics-address", METRICS])
        .args(["--pod-network", run.network.word()]);
    for address in node.addresses() {
        agent.args(["--node-ip", &address]);
    }
    agent
}

fn start_agents(run: &Run<'_>) -> Result<Vec<(String, ProcessId)>> {
    let token = token_file(run);
    if !wait_until(PATIENCE, || token.exists()) {
        bail!("control has written no join token to {}", token.display());
    }
    run.nodes
        .iter()
        .map(|node| {
            let agent = agent_command(run, *node);
            Ok((
                node.name(),
                daemon::start(run.cluster, &node.name(), &agent)?,
            ))
        })
        .collect()
}

fn apply_demo(run: &Run<'_>) -> Result<()> {
    let manifest = run.workspace.root().join("tests/manifests/demo.yaml");
    // Admission waits for the default ServiceAccount of a namespace, so this works at once.
    command::output(
        run.cluster
            .kubectl(run.workspace)?
            .args(["apply", "-f"])
            .arg(&manifest),
    )
    .map(drop)
    .with_context(|| format!("apply {}", manifest.display()))
}

fn wait_for_nodes(run: &Run<'_>, agents: &[(String, ProcessId)]) -> Result<()> {
    let step = run.progress.step("nodes");
    let begun = Instant::now();
    loop {
        for (name, process) in agents {
            daemon::require_alive(run.cluster, name, process)?;
        }
        // `wait --all` looks only at the nodes that have joined by now.
        let nodes = command::output(run.cluster.kubectl(run.workspace)?.args([
            "get",
            "nodes",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status} {end}",
        ]))?;
        step.note(&nodes);
        let ready = nodes
            .split_whitespace()
            .filter(|node| node.ends_with("=True"))
            .count();
        if ready >= run.nodes.len() {
            step.done(&format!("{ready} ready"));
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!(
                "of {} nodes only these have joined: {nodes}\n{}",
                run.nodes.len(),
                daemon::log_tail(run.cluster, &agents[0].0)
            );
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn wait_for_pods(run: &Run<'_>, agents: &[(String, ProcessId)]) -> Result<()> {
    let step = run.progress.step("pods");
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let rollout = command::output(run.cluster.kubectl(run.workspace)?.args([
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        &timeout,
    ]));
    if let Err(error) = rollout {
        let mut context = Vec::new();
        for arguments in [
            ["get", "pods", "-o", "wide"],
            ["get", "events", "-o", "wide"],
        ] {
            context.push(
                command::output(run.cluster.kubectl(run.workspace)?.args(arguments))
                    .unwrap_or_else(|error| format!("{error:#}")),
            );
        }
        context.push(daemon::log_tail(run.cluster, &agents[0].0));
        return Err(error.context(format!(
            "the demo's pods did not become ready:\n{}",
            context.join("\n")
        )));
    }
    step.done("all ready");
    Ok(())
}

/// What a newcomer wants to see first.
pub fn overview(run: &Run<'_>) -> Result<String> {
    command::output(run.cluster.kubectl(run.workspace)?.args([
        "get",
        "nodes,pods,services",
        "-o",
        "wide",
    ]))
}

/// Waits for a sign of life from a program that was started, but not for one that has ended.
pub fn wait_for(
    run: &Run<'_>,
    name: &str,
    process: &ProcessId,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let met = wait_until(PATIENCE, || condition() || !process.is_alive());
    daemon::require_alive(run.cluster, name, process)?;
    if !met {
        bail!(
            "{name} runs, but {what} did not answer within {} s:\n{}",
            PATIENCE.as_secs(),
            daemon::log_tail(run.cluster, name)
        );
    }
    Ok(())
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("a thread of xtask panicked"))?
}

/// Where a node's pod has its network namespace, by what its agent says.
pub fn pod_namespace(run: &Run<'_>, node: Node, pod: &str) -> Result<PathBuf> {
    let text = command::output(
        std::process::Command::new(run.programs.agent())
            .args(["status", "--json", "--state-dir"])
            .arg(run.cluster.node_state(node)),
    )?;
    let status: serde_json::Value =
        serde_json::from_str(&text).context("understand the agent's status")?;
    status["pods"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|listed| listed["name"] == pod)
        .and_then(|listed| listed["netns"].as_str())
        .map(|path| Path::new(path).to_owned())
        .with_context(|| format!("{} has no pod {pod}: {text}", node.name()))
}
