//! The agent as a whole: what is started in which order, and what flows between the parts.
//!
//! ```text
//!   lock -> uplink -> identity (join) -> dataplane -> pod network -> pods -> routes -> admin socket -> cluster
//! ```
//!
//! Everything up to the last step works without a control plane once the node has joined: pods and routes come from the
//! agent's own disk. A signal ends the agent and leaves pods and dataplane running.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use portolan_dataplane::{Dataplane, model::XdpMode};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
};

mod answers;
mod peers;
mod record;
mod reports;

use crate::{
    admin::AdminServer,
    bpffs,
    cli::RunArgs,
    cluster::{
        self, ApiReferences, EventSubject, Heartbeat, Machine, NodeFacts, Recorder, Reporter,
    },
    files,
    join::{JoinError, JoinToken, identity_or_join},
    lock::StateLock,
    network::{NodeNetwork, PodNetworkConfig, VethPodNetwork},
    pod::{self, EventSeverity, Manager},
    routes::{DataplaneThread, FollowConfig, Follower, Here, TableStore},
};
use answers::NodeAnswers;
pub use record::{AgentRecord, default_pin_dir, forget_pod_cidrs};

/// Inputs that may wait for the reporter, which never blocks for long.
const REPORTER_DEPTH: usize = 1024;
/// How long the last routing table may take to reach the disk when the agent is told to end.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// Runs the agent until a signal ends it.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let object = preflight(&args)?;
    files::create_private_directory(&args.state_dir)?;
    let _lock = StateLock::take(&args.state_dir)?;
    let record = AgentRecord::of(&args);
    record.save(&args.state_dir)?;
    let node = NodeNetwork::open(&args.uplink)
        .await
        .context("set up the node's network")?;
    let facts = facts(&args)?;
    let identity = identity_or_join(&args.state_dir, &args.server, &args.node_name, || {
        read_token(&args)
    })
    .await?;
    let client = cluster::client(&args.server, &args.state_dir)?;
    let pod_cidrs = pod_cidrs(&args, &client, &facts).await?;
    node.claim_pod_cidrs(&pod_cidrs).await?;
    let (dataplane, xdp) = open_dataplane(&args, &record, object).await?;

    let network = PodNetworkConfig {
        state_dir: args.state_dir.clone(),
        pod_cidrs,
        node_addresses: args.node_ips.clone(),
        mtu: node.uplink().mtu,
    };
    let network = Arc::new(VethPodNetwork::open(network, Arc::new(dataplane.clone()))?);
    let references = Arc::new(ApiReferences::new(client.clone()));
    let (channels, manager) =
        Manager::start(pod_config(&args, &record, &facts), network, references)
            .await
            .context("start the node's pods")?;
    let adoption = manager.adoption();
    tracing::info!(
        containers = adoption.containers,
        "adopted {} containers in {} ms",
        adoption.containers,
        adoption.elapsed.as_millis()
    );

    let follower = start_follower(&args, identity, dataplane.clone()).await?;
    let saver = follower.store().keep_saving(follower.tables());
    let answers = NodeAnswers {
        record,
        dataplane: dataplane.clone(),
        routes: follower.status(),
        manager: Arc::new(manager),
        xdp,
    };
    let admin = AdminServer::bind(&args.state_dir)?;

    let mut tasks = JoinSet::new();
    let recorder = Recorder::start(client.clone(), args.node_name.clone());
    let (reporter, reporter_inputs) = mpsc::channel(REPORTER_DEPTH);
    tasks.spawn(Reporter::new(client.clone()).run(reporter_inputs));
    tasks.spawn(reports::pass_on(
        channels.reports,
        dataplane.clone(),
        args.node_ips.clone(),
        reporter.clone(),
        recorder.clone(),
    ));
    tasks.spawn(peers::keep_routes(
        node,
        args.node_name.clone(),
        follower.tables(),
    ));
    tasks.spawn(dataplane.keep_sweeping());
    tasks.spawn(admin.run(Arc::new(answers)));
    tasks.spawn(join_cluster(
        args.clone(),
        client,
        facts,
        recorder,
        channels.commands,
        reporter,
    ));
    let mut following = tokio::spawn(follower.run());

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        stopped = &mut following => bail!("{}", stopped?),
        ended = tasks.join_next() => match ended {
            Some(Err(error)) => return Err(error).context("a part of the agent failed"),
            _ => bail!("a part of the agent has ended"),
        },
    }
    tracing::info!("ending; pods and dataplane run on");
    // The follower holds the table's sender; the saver writes the last table once it is gone.
    following.abort();
    drop(following.await);
    tasks.shutdown().await;
    if tokio::time::timeout(LAST_SAVE, saver).await.is_err() {
        tracing::warn!("the last routing table did not reach the disk in time");
    }
    Ok(())
}

/// What can be known to be missing before anything is made.
fn preflight(args: &RunArgs) -> anyhow::Result<PathBuf> {
    if !nix::unistd::geteuid().is_root() {
        bail!("portolan-agent must run as root: it makes namespaces, cgroups and BPF programs");
    }
    if crate::join::server_name(&args.server).is_none() {
        return Err(JoinError::Server(args.server.clone()).into());
    }
    let object = match &args.ebpf_object {
        Some(object) => object.clone(),
        None => std::env::current_exe()
            .context("find the agent's executable")?
            .with_file_name("portolan-ebpf.o"),
    };
    if !object.is_file() {
        bail!(
            "the kernel object {} is missing: build it (cargo xtask build-ebpf) or name it with --ebpf-object",
            object.display()
        );
    }
    Ok(object)
}

fn read_token(args: &RunArgs) -> Result<JoinToken, JoinError> {
    let Some(path) = &args.join_token_file else {
        return Err(JoinError::NoToken);
    };
    let text = std::fs::read_to_string(path).map_err(|source| JoinError::TokenFile {
        path: path.clone(),
        source,
    })?;
    Ok(text.parse()?)
}

fn facts(args: &RunArgs) -> anyhow::Result<NodeFacts> {
    let mut machine = Machine::read(&args.state_dir)?;
    machine.cpus = args.capacity_cpu.unwrap_or(machine.cpus);
    machine.memory = args.capacity_memory.unwrap_or(machine.memory);
    Ok(NodeFacts {
        name: args.node_name.clone(),
        zone: args.zone.clone(),
        addresses: args.node_ips.clone(),
        machine,
    })
}

/// What the node's pods have their addresses from: as the control plane said once, or says now.
async fn pod_cidrs(
    args: &RunArgs,
    client: &kube::Client,
    facts: &NodeFacts,
) -> anyhow::Result<Vec<IpNet>> {
    if let Some(known) = record::load_pod_cidrs(&args.state_dir)? {
        return Ok(known);
    }
    let node = cluster::register(client, facts).await;
    let cidrs = cluster::pod_cidrs(&node);
    record::save_pod_cidrs(&args.state_dir, &cidrs)?;
    Ok(cidrs)
}

async fn open_dataplane(
    args: &RunArgs,
    record: &AgentRecord,
    object: PathBuf,
) -> anyhow::Result<(DataplaneThread, XdpMode)> {
    bpffs::ensure(&record.pin_dir)?;
    let config =
        portolan_dataplane::Config::new(object, record.pin_dir.clone(), args.node_ips.clone());
    let uplink = args.uplink.clone();
    let (thread, xdp) = DataplaneThread::start(move || {
        let mut dataplane = Dataplane::open(config)?;
        let mode = dataplane.attach_uplink(&uplink)?;
        Ok((dataplane, mode))
    })
    .await
    .context("open the dataplane")?;
    tracing::info!(uplink = args.uplink, ?xdp, "the dataplane is attached");
    Ok((thread, xdp))
}

fn pod_config(args: &RunArgs, record: &AgentRecord, facts: &NodeFacts) -> pod::Config {
    pod::Config {
        state_dir: args.state_dir.clone(),
        cgroup_root: record.cgroup_root.clone(),
        node_name: args.node_name.clone(),
        node_addresses: args.node_ips.clone(),
        capacity: pod::Capacity {
            cpu_millis: facts.machine.cpus * 1000,
            memory_bytes: facts.machine.memory,
        },
        executable: pod::Config::SELF.into(),
    }
}

async fn start_follower(
    args: &RunArgs,
    identity: crate::join::NodeIdentity,
    dataplane: DataplaneThread,
) -> anyhow::Result<Follower> {
    let config = FollowConfig {
        server: args.server.clone(),
        identity,
        here: Here {
            node: args.node_name.clone(),
            zone: args.zone.clone().unwrap_or_default(),
        },
        state_dir: args.state_dir.clone(),
    };
    let stored = TableStore::new(Path::new(&args.state_dir)).load();
    Ok(Follower::start(config, dataplane, stored).await?)
}

/// The part that needs a control plane: it waits for one as long as it takes.
async fn join_cluster(
    args: RunArgs,
    client: kube::Client,
    facts: NodeFacts,
    recorder: Recorder,
    commands: mpsc::Sender<pod::PodCommand>,
    reporter: mpsc::Sender<cluster::ReporterInput>,
) {
    let name = args.node_name.clone();
    let heartbeat = Heartbeat::new(client.clone(), facts.clone(), args.state_dir.clone());
    let beating = async {
        let node = cluster::register(&client, &facts).await;
        record::warn_if_moved(&args.state_dir, &cluster::pod_cidrs(&node));
        recorder.record(
            EventSubject::Node(name.clone()),
            EventSeverity::Normal,
            "Starting",
            "Starting portolan-agent.".to_owned(),
        );
        heartbeat.run().await;
    };
    tokio::join!(
        beating,
        cluster::follow_pods(client.clone(), &name, commands, reporter)
    );
}
