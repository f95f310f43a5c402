//! The agent as a whole: what is started in which order, and what flows between the parts.
//!
//! ```text
//!   lock -> uplink -> identity (join) -> dataplane -> pod network -> pods -> routes -> admin socket -> cluster
//! ```
//!
//! Everything up to the last step works without a control plane once the node has joined: pods and routes come from the
//! agent's own disk. A signal ends the agent and leaves pods and dataplane running.

#![forbid(unsafe_code)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use ipnet::IpNet;
use portolan_dataplane::{
    Dataplane,
    model::{TcMode, XdpMode},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

mod answers;
mod loads;
mod peers;
mod record;
mod reports;
mod sockets;
mod watching;

use crate::{
    admin::AdminServer,
    bpffs,
    cli::RunArgs,
    cluster::{
        self, ApiReferences, EventSubject, Heartbeat, Machine, NodeFacts, Recorder, Reporter,
        follow_pods,
    },
    errors::chain,
    files,
    join::{JoinError, JoinToken, NodeIdentity, identity_or_join},
    lock::StateLock,
    metrics,
    names::{self, NameServer, Names, Upstream},
    network::{NodeNetwork, PairPodNetwork, PodNetwork, PodNetworkConfig},
    pod::{self, EventSeverity, Manager, PodChannels},
    routes::{
        DataplaneStopped, DataplaneThread, FollowConfig, Follower, Here, Opening, Table,
        TableStore, answer_health_checks,
    },
    servers::Servers,
    streams::{self, StreamServer},
};
use answers::NodeAnswers;
use peers::Surroundings;
pub use record::{AgentRecord, default_pin_dir, forget_pod_cidrs};
pub use sockets::SocketState;

/// Inputs that may wait for the reporter, which never blocks for long.
const REPORTER_DEPTH: usize = 1024;
/// How long the last routing table may take to reach the disk when the agent is told to end.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// The node as it is before its pods and routes are started.
struct Prepared {
    args: RunArgs,
    record: AgentRecord,
    facts: NodeFacts,
    identity: NodeIdentity,
    servers: Servers,
    client: cluster::Client,
    names: Names,
    network: NodeNetwork,
    pod_cidrs: Vec<IpNet>,
    dataplane: DataplaneThread,
}

/// How the dataplane's programs are attached.
struct Attached {
    xdp: XdpMode,
    tc: TcMode,
    sockets: SocketState,
}

/// Runs the agent until a signal ends it.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    preflight(&args)?;
    files::create_private_directory(&args.state_dir)?;
    let _lock = StateLock::take_soon(&args.state_dir).await?;
    let (node, opening) = prepare(args).await?;
    // The containers that run already need not wait for the programs to be verified.
    let open = async { opening.finish().await.context("open the dataplane") };
    let (Attached { xdp, tc, sockets }, pods) = tokio::try_join!(open, start_pods(&node))?;
    let Pods {
        channels,
        manager,
        network,
    } = pods;
    tracing::info!(
        uplink = node.args.uplink,
        ?xdp,
        ?tc,
        ?sockets,
        "the dataplane is attached"
    );
    detach_strays(&node, &network).await;
    let follower = start_follower(&node).await?;
    let saver = follower.store().keep_saving(follower.tables());
    let manager = Arc::new(manager);
    let answers = NodeAnswers {
        record: node.record.clone(),
        dataplane: node.dataplane.clone(),
        routes: follower.status(),
        manager: Arc::clone(&manager),
        xdp,
        tc,
        sockets,
        pod_network: node.args.pod_network,
        pod_device: network.device().clone(),
    };
    let answers = Arc::new(answers);
    let admin = AdminServer::bind(&node.args.state_dir)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(admin.run(answers.clone()));
    if let Some(address) = node.args.metrics_address {
        let listener = metrics::bind(address)
            .await
            .with_context(|| format!("listen on {address} for metrics"))?;
        tasks.spawn(metrics::serve(listener, answers));
    }
    tasks.spawn(start_streams(&node, Arc::clone(&manager)).await?);
    tasks.spawn(node.servers.clone().keep_learning(follower.tables()));
    spawn_names(&mut tasks, &node).await?;
    spawn_routing(&mut tasks, &node, manager, &follower);
    spawn_parts(&mut tasks, node, channels, follower.tables());
    let mut following = tokio::spawn(follower.run());
    until_told(&mut following, &mut tasks).await?;
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

/// Returns when a signal ends the agent; fails when one of its parts does.
async fn until_told(
    following: &mut JoinHandle<DataplaneStopped>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        stopped = following => Err(stopped?.into()),
        ended = tasks.join_next() => match ended {
            Some(Err(error)) => Err(error).context("a part of the agent failed"),
            _ => bail!("a part of the agent has ended"),
        },
    }
}

/// Everything that pods and routes stand on.
async fn prepare(args: RunArgs) -> anyhow::Result<(Prepared, Opening<Attached>)> {
    let record = AgentRecord::of(&args);
    record.save(&args.state_dir)?;
    let network = NodeNetwork::open(&args.uplink, args.pod_network, &args.node_ips)
        .await
        .context("set up the node's network")?;
    let facts = facts(&args)?;
    let servers = Servers::new(&args.servers, &args.node_name)?;
    let identity = identity_or_join(&args.state_dir, &servers, &args.node_name, || {
        read_token(&args)
    })
    .await?;
    let client = cluster::client(&servers, &args.state_dir)?;
    let names = Names::load(&args.state_dir);
    let pod_cidrs = pod_cidrs(&args, &client, &facts).await?;
    network.claim_pod_cidrs(&pod_cidrs).await?;
    let (dataplane, opening) = open_dataplane(&args, &record, network.tunnel())?;
    let node = Prepared {
        args,
        record,
        facts,
        identity,
        servers,
        client,
        names,
        network,
        pod_cidrs,
        dataplane,
    };
    Ok((node, opening))
}

/// The node's pods once they are managed.
struct Pods {
    channels: PodChannels,
    manager: Manager,
    network: Arc<PairPodNetwork>,
}

async fn start_pods(node: &Prepared) -> anyhow::Result<Pods> {
    let config = PodNetworkConfig {
        state_dir: node.args.state_dir.clone(),
        pod_cidrs: node.pod_cidrs.clone(),
        node_addresses: node.args.node_ips.clone(),
        mtu: node.network.pod_mtu(),
        device: node.args.pod_device,
    };
    let network = PairPodNetwork::open(config, Arc::new(node.dataplane.clone())).await?;
    let network = Arc::new(network);
    let references = ApiReferences::new(node.client.clone(), node.names.clone());
    let config = pod_config(&node.args, &node.record, &node.facts);
    let (channels, manager) = Manager::start(config, network.clone(), Arc::new(references))
        .await
        .context("start the node's pods")?;
    let adoption = manager.adoption();
    tracing::info!(
        "adopted {} containers in {} ms",
        adoption.containers,
        adoption.elapsed.as_millis()
    );
    Ok(Pods {
        channels,
        manager,
        network,
    })
}

/// Takes away the networks of pods that the manager does not remember, before it hears of any pod: a crash came between
/// forgetting the one and the other.
async fn detach_strays(node: &Prepared, network: &PairPodNetwork) {
    let remembered = pod_config(&node.args, &node.record, &node.facts).pods_dir();
    for uid in network.pods() {
        if remembered.join(&uid).exists() {
            continue;
        }
        tracing::info!(uid, "taking away the network of a pod that is no more");
        if let Err(error) = network.detach(&uid).await {
            tracing::warn!(error = %chain(&error), uid, "a pod's network is left behind");
        }
    }
}

/// What the routes need beside their follower: loads of pods for the shares that stay, and answers to health checks.
fn spawn_routing(
    tasks: &mut JoinSet<()>,
    node: &Prepared,
    manager: Arc<Manager>,
    follower: &Follower,
) {
    tasks.spawn(answer_health_checks(
        here(&node.args),
        follower.tables(),
        follower.status(),
    ));
    let place = loads::Place {
        cgroup_root: node.record.cgroup_root.clone(),
        cpus: u32::try_from(node.facts.machine.cpus).map_or(1.0, f64::from),
    };
    tasks.spawn(loads::keep_balanced(place, manager, node.dataplane.clone()));
}

/// The parts that run side by side for as long as the agent does.
fn spawn_parts(
    tasks: &mut JoinSet<()>,
    node: Prepared,
    channels: PodChannels,
    tables: watch::Receiver<Arc<Table>>,
) {
    let Prepared { args, client, .. } = node;
    let recorder = Recorder::start(client.clone(), args.node_name.clone());
    let (reporter, reporter_inputs) = mpsc::channel(REPORTER_DEPTH);
    tasks.spawn(Reporter::new(client.clone()).run(reporter_inputs));
    tasks.spawn(reports::pass_on(
        channels.reports,
        node.dataplane.clone(),
        args.node_ips.clone(),
        reporter.clone(),
        recorder.clone(),
    ));
    let surroundings = Surroundings {
        node_name: args.node_name.clone(),
        addresses: args.node_ips.clone(),
        pod_cidrs: node.pod_cidrs,
        network: node.network,
        dataplane: node.dataplane.clone(),
    };
    tasks.spawn(surroundings.keep(tables));
    tasks.spawn(node.dataplane.keep_sweeping());
    tasks.spawn(follow_pods(
        client.clone(),
        args.node_name.clone(),
        channels.commands,
        reporter,
    ));
    tasks.spawn(keep_alive(args, client, node.facts, recorder));
}

/// What control asks for people who look into pods.
async fn start_streams(
    node: &Prepared,
    manager: Arc<Manager>,
) -> anyhow::Result<impl Future<Output = ()> + use<>> {
    let addresses = node.args.node_ips.iter();
    let addresses = addresses.map(|address| SocketAddr::new(*address, streams::PORT));
    let server = StreamServer::bind(addresses, &node.identity).await?;
    let config = pod_config(&node.args, &node.record, &node.facts);
    Ok(server.run(Arc::new(streams::Node::new(config, manager))))
}

/// The node's name server, and what it knows.
async fn spawn_names(tasks: &mut JoinSet<()>, node: &Prepared) -> anyhow::Result<()> {
    let addresses = node.args.node_ips.iter();
    let addresses = addresses.map(|address| SocketAddr::new(*address, names::PORT));
    let server = NameServer::bind(addresses)
        .await
        .with_context(|| format!("listen on port {} for names", names::PORT))?;
    let upstream = Upstream::new(node.args.resolv_conf.clone(), names::UPSTREAM_PORT);
    tasks.spawn(server.run(node.names.clone(), upstream));
    tasks.spawn(names::follow(node.client.clone(), node.names.clone()));
    tasks.spawn(node.names.clone().keep(node.args.state_dir.clone()));
    Ok(())
}

/// What can be known to be missing before anything is made.
fn preflight(args: &RunArgs) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("portolan-agent must run as root: it makes namespaces, cgroups and BPF programs");
    }
    portolan_dataplane::check_kernel()?;
    if !crate::runtime::sys::has_mount_attributes() {
        bail!(
            "pods need Linux 5.12 or newer: this kernel has no mount_setattr, by which their file systems are made (portolan-lb needs no more than 5.10)"
        );
    }
    Servers::new(&args.servers, &args.node_name)?;
    if let Some(object) = args.ebpf_object.as_ref().filter(|object| !object.is_file()) {
        bail!(
            "the kernel object {} is missing; without --ebpf-object the agent uses its own",
            object.display()
        );
    }
    Ok(())
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
    client: &cluster::Client,
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

fn open_dataplane(
    args: &RunArgs,
    record: &AgentRecord,
    tunnel: Option<&'static str>,
) -> anyhow::Result<(DataplaneThread, Opening<Attached>)> {
    bpffs::ensure(&record.pin_dir)?;
    let mut config = portolan_dataplane::Config::new(
        args.ebpf_object.clone(),
        record.pin_dir.clone(),
        args.node_ips.clone(),
    );
    config.masquerade = args.masquerade;
    config.capacity = args.capacity();
    let uplink = args.uplink.clone();
    let hooks = sockets::prepare(args.socket_hooks, &record.cgroup_root);
    let started = DataplaneThread::start(move || {
        let mut dataplane = Dataplane::open(config)?;
        let xdp = dataplane.attach_uplink(&uplink)?;
        dataplane.set_tunnel(tunnel)?;
        let tc = dataplane.tc_mode();
        let sockets = sockets::settle(&mut dataplane, hooks)?;
        Ok((dataplane, Attached { xdp, tc, sockets }))
    });
    Ok(started?)
}

fn pod_config(args: &RunArgs, record: &AgentRecord, facts: &NodeFacts) -> pod::Config {
    pod::Config {
        state_dir: args.state_dir.clone(),
        cgroup_root: record.cgroup_root.clone(),
        node_name: args.node_name.clone(),
        node_addresses: args.node_ips.clone(),
        resolv_conf: args.resolv_conf.clone(),
        capacity: pod::Capacity {
            cpu_millis: facts.machine.cpus * 1000,
            memory_bytes: facts.machine.memory,
            container_pids: args.container_pids,
        },
        executable: pod::Config::SELF.into(),
    }
}

fn here(args: &RunArgs) -> Here {
    Here {
        node: args.node_name.clone(),
        zone: args.zone.clone().unwrap_or_default(),
        return_path: args.return_path,
        name_server: args.node_ips.clone(),
    }
}

async fn start_follower(node: &Prepared) -> anyhow::Result<Follower> {
    let args = &node.args;
    let config = FollowConfig {
        servers: node.servers.clone(),
        identity: node.identity.clone(),
        here: here(args),
        state_dir: args.state_dir.clone(),
    };
    let stored = TableStore::new(&args.state_dir).load();
    Ok(Follower::start(config, node.dataplane.clone(), stored).await?)
}

/// Registers the node, however long that takes, and keeps it alive in the cluster's eyes.
async fn keep_alive(args: RunArgs, client: cluster::Client, facts: NodeFacts, recorder: Recorder) {
    let node = cluster::register(&client, &facts).await;
    record::warn_if_moved(&args.state_dir, &cluster::pod_cidrs(&node));
    recorder.record(
        EventSubject::Node(args.node_name.clone()),
        EventSeverity::Normal,
        "Starting",
        "Starting portolan-agent.".to_owned(),
    );
    Heartbeat::new(client, facts, args.state_dir).run().await;
}
