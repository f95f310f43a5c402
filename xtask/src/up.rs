//! `cargo xtask up`: a cluster on this machine whose nodes are network namespaces, with a demo that shows it working.

mod control;
mod fabric;
mod proof;
mod start;

use std::{fs, path::PathBuf, thread, time::Instant};

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};

use crate::{
    build_ebpf, cargo,
    cluster::{self, Cluster, MOST_NODES, MOST_SERVERS, Node},
    command, demo, down, machine,
    progress::Progress,
    setup,
    workspace::Workspace,
};

/// What kind of cluster to start.
#[derive(Args)]
pub struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
    nodes: u8,
    /// Where the control plane keeps its state
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    store: Store,
    /// How many control servers; more than one share an etcd of as many members
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_SERVERS)))]
    servers: u8,
    /// How packets get to other nodes' pods
    #[arg(long, value_enum, default_value_t = Network::Routed)]
    network: Network,
    /// Run optimised builds
    #[arg(long)]
    release: bool,
    /// Start the cluster without the demo
    #[arg(long)]
    no_demo: bool,
}

/// The store's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Store {
    /// One file beside the control plane
    Embedded,
    /// A real etcd on a loopback port
    Etcd,
}

/// The ways to other nodes' pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// By routes over the nodes' addresses
    Routed,
    /// In VXLAN packets from node to node
    Vxlan,
}

impl Network {
    /// As agents call it.
    fn word(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Vxlan => "vxlan",
        }
    }
}

/// What was built to be run.
pub struct Programs {
    folder: PathBuf,
    object: PathBuf,
    demo: demo::Demo,
}

impl Programs {
    fn control(&self) -> PathBuf {
        self.folder.join("portolan-control")
    }

    fn agent(&self) -> PathBuf {
        self.folder.join("portolan-agent")
    }
}

/// The command.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    machine::require_root("up")?;
    let progress = Progress::new();
    let _lock = cluster::lock()?;
    setup::ensure(workspace, &progress)?;
    let programs = prepare(workspace, options, &progress)?;

    let begun = Instant::now();
    let cluster = Cluster::of(workspace);
    let nodes = Node::first(options.nodes);
    let run = start::Run {
        workspace,
        cluster: &cluster,
        programs: &programs,
        nodes: &nodes,
        store: match options.servers {
            1 => options.store,
            _ => Store::Etcd,
        },
        servers: options.servers,
        network: options.network,
        with_demo: !options.no_demo,
        progress: &progress,
    };
    match start_and_show(&run) {
        Ok(()) => {
            progress.say(&format!(
                "\nthe cluster is up after {:.1} s ({:.1} s with setup and build); take it away with `cargo xtask down`",
                begun.elapsed().as_secs_f64(),
                progress.elapsed().as_secs_f64()
            ));
            print_exports(workspace, &cluster);
            Ok(())
        }
        Err(error) => Err(error.context(format!(
            "the cluster did not come up; what there is of it is left to be looked at (logs: {}): take it away with `cargo xtask down`",
            cluster.logs().display()
        ))),
    }
}

/// Builds what must be built while an earlier cluster is taken away.
fn prepare(workspace: &Workspace, options: &Options, progress: &Progress) -> Result<Programs> {
    let programs = thread::scope(|scope| {
        let clearing = scope.spawn(|| clear_earlier(workspace, progress));
        let step = progress.step("build");
        let programs = build(workspace, options.release)?;
        step.done("");
        clearing
            .join()
            .map_err(|_| anyhow!("a thread of xtask panicked"))??;
        anyhow::Ok(programs)
    })?;
    let cluster = Cluster::of(workspace);
    if cluster.logs().exists() {
        fs::remove_dir_all(cluster.logs()).context("clear the last cluster's logs")?;
    }
    cluster.record()?;
    fs::create_dir_all(cluster.state())
        .with_context(|| format!("make {}", cluster.state().display()))?;
    fs::write(
        cluster.state().join("programs"),
        programs.folder.as_os_str().as_encoded_bytes(),
    )
    .context("note which programs run")?;
    Ok(programs)
}

fn clear_earlier(workspace: &Workspace, progress: &Progress) -> Result<()> {
    let step = progress.step("clear");
    let found = down::clear(workspace)?;
    step.done(if found.is_empty() {
        "no earlier cluster"
    } else {
        "an earlier cluster is taken away"
    });
    Ok(())
}

/// Builds programs, kernel programs and the demo. The whole workspace is one selection, the same as for tests, so that
/// nothing is compiled twice.
pub fn build(workspace: &Workspace, release: bool) -> Result<Programs> {
    // First, because the dataplane's library includes what it leaves.
    build_ebpf::build(workspace)?;
    let mut cargo = cargo::as_user();
    cargo
        .current_dir(workspace.root())
        .args(["build", "--quiet"]);
    if release {
        cargo.arg("--release");
    }
    command::output(&mut cargo)?;
    Ok(Programs {
        folder: workspace
            .target()
            .join(if release { "release" } else { "debug" }),
        object: build_ebpf::object(workspace),
        demo: demo::build(workspace)?,
    })
}

fn start_and_show(run: &start::Run<'_>) -> Result<()> {
    start::cluster(run)?;
    if run.with_demo {
        let proof = proof::collect(run)?;
        println!("\n{}", start::overview(run)?.trim_end());
        println!("\n{proof}");
    }
    Ok(())
}

fn print_exports(workspace: &Workspace, cluster: &Cluster) {
    if crate::workspace::path_folders()
        .iter()
        .all(|folder| !folder.join("kubectl").exists())
    {
        println!("export PATH={}:$PATH", workspace.tools_bin().display());
    }
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
}
