//! The command line.

#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use portolan_dataplane::{
    Capacity,
    model::{Protocol, ReturnPath},
    report::Filter,
};

use crate::network::{PodDevice, PodRouting};

/// Runs a node's pods and routes their traffic.
#[derive(Debug, Parser)]
#[command(name = "portolan-agent", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands. `shim` and `exec` are not among them: `main` takes those before it makes a thread.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent. It joins the cluster when it has not yet.
    Run(Box<RunArgs>),
    /// Show the services in the dataplane, their backends and counters.
    Services(QueryArgs),
    /// Show the flows in the dataplane's table, or follow them as they open and end.
    Flows(FlowsArgs),
    /// Follow packets through each decision of the dataplane, until interrupted.
    Trace(TraceArgs),
    /// Show how many packets were dropped, by reason.
    Drops(QueryArgs),
    /// Show how the agent is.
    Status(QueryArgs),
    /// Import and list images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Stop every container of the node and remove all that the agent made outside its state directory. The agent must
    /// not be running.
    Teardown(TeardownArgs),
}

/// What `run` needs to know.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The node's name in the cluster.
    #[arg(long)]
    pub node_name: String,
    /// The control servers' URLs, https://HOST:PORT; one is enough, from which the agent learns of the others.
    #[arg(
        long = "server",
        value_name = "URL",
        value_delimiter = ',',
        required = true
    )]
    pub servers: Vec<String>,
    /// A file with a join token; needed until the node has joined.
    #[arg(long)]
    pub join_token_file: Option<PathBuf>,
    /// Where the agent keeps what it must remember.
    #[arg(long, env = "PORTOLAN_STATE_DIR", default_value = "/var/lib/portolan")]
    pub state_dir: PathBuf,
    /// The interface that faces the other nodes.
    #[arg(long)]
    pub uplink: String,
    /// The node's address; once for each family.
    #[arg(long = "node-ip", required = true)]
    pub node_ips: Vec<IpAddr>,
    /// How packets reach other nodes' pods; the same on all nodes
    #[arg(long, value_enum, default_value_t)]
    pub pod_network: PodRouting,
    /// What joins new pods to the node
    #[arg(long, value_enum, default_value_t)]
    pub pod_device: PodDevice,
    /// Whether what pods send beyond the cluster leaves with the node's address. Without, whatever routes there must know
    /// the way back to pods.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub masquerade: bool,
    /// How packets of backends on other nodes get back to clients beyond the cluster, where a Service does not say it:
    /// source-nat (by this node), or direct (straight from the backend's node, to which they are encapsulated).
    #[arg(long, default_value = "source-nat", value_parser = return_path)]
    pub return_path: ReturnPath,
    /// The node's zone.
    #[arg(long)]
    pub zone: Option<String>,
    /// The cgroup of the node's containers, below each hierarchy's mount \[default: `portolan/NODE_NAME`\]
    #[arg(long)]
    pub cgroup_root: Option<PathBuf>,
    /// Where maps and programs are pinned; a bpffs is mounted there if there is none \[default: `STATE_DIR/bpf`\]
    #[arg(long)]
    pub pin_dir: Option<PathBuf>,
    /// The object with the kernel programs [default: the one that was built in]
    #[arg(long, env = "PORTOLAN_EBPF_OBJECT")]
    pub ebpf_object: Option<PathBuf>,
    /// Where Prometheus reads metrics, at /metrics; nowhere unless told, for example 127.0.0.1:10249
    #[arg(long)]
    pub metrics_address: Option<SocketAddr>,
    /// Whether sockets of pods and of the node get their backend when they connect
    #[arg(long, value_enum, default_value_t)]
    pub socket_hooks: SocketHooks,
    /// Service ports that the dataplane has room for [default: 16384]. This and the next two are settled when a node's
    /// tables are made: they last until a teardown.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_services: Option<u32>,
    /// Backends of all services that the dataplane has room for [default: 65536]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1 << 20))]
    pub max_backends: Option<u32>,
    /// Flows of IPv4 that the dataplane has room for, and half as many of IPv6; best twice as many as are expected
    /// \[default: 131072\]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1_024..=1 << 24))]
    pub max_flows: Option<u32>,
    /// CPUs that pods may ask for [default: all]
    #[arg(long)]
    pub capacity_cpu: Option<u64>,
    /// Bytes of memory that pods may ask for [default: all]
    #[arg(long)]
    pub capacity_memory: Option<u64>,
    /// Names the resolvers for what is not of the cluster.
    #[arg(long, default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Processes and threads that one container may have.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(i64).range(16..))]
    pub container_pids: i64,
}

impl RunArgs {
    /// The sizes of the dataplane's tables.
    pub fn capacity(&self) -> Capacity {
        let mut capacity = Capacity::default();
        if let Some(services) = self.max_services {
            capacity = capacity.with_services(services);
        }
        if let Some(backends) = self.max_backends {
            capacity = capacity.with_backends(backends);
        }
        if let Some(flows) = self.max_flows {
            capacity = capacity.with_flows(flows);
        }
        capacity
    }
}

/// Whether sockets get their backend when they connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SocketHooks {
    /// Where the kernel and the control groups can: those of a node that is a network namespace among others must be its
    /// own (--cgroup-root), or its processes' packets are translated one by one.
    Auto,
    /// No: every packet is translated by itself.
    #[default]
    Off,
}

fn return_path(text: &str) -> Result<ReturnPath, String> {
    match text {
        "source-nat" => Ok(ReturnPath::SourceNat),
        "direct" => Ok(ReturnPath::Direct),
        _ => Err("it is source-nat or direct".to_owned()),
    }
}

/// What the queries need to know.
#[derive(Clone, Debug, Args)]
pub struct QueryArgs {
    /// The agent's state directory.
    #[arg(long, env = "PORTOLAN_STATE_DIR", default_value = "/var/lib/portolan")]
    pub state_dir: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What `flows` needs to know.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// How to ask.
    #[command(flatten)]
    pub query: QueryArgs,
    /// Show flows as they open and end, until interrupted.
    #[arg(long)]
    pub follow: bool,
    /// Which flows to follow.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// What `trace` needs to know.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// How to ask.
    #[command(flatten)]
    pub query: QueryArgs,
    /// Which packets to follow.
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Which packets somebody wants to hear of.
#[derive(Clone, Debug, Default, Args)]
pub struct FilterArgs {
    /// An address of the packet, before or after it is rewritten.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// A second address, as `--address`.
    #[arg(long, requires = "address")]
    pub peer: Option<IpAddr>,
    /// A port of the packet, before or after it is rewritten.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// The transport.
    #[arg(long, value_parser = protocol)]
    pub protocol: Option<Protocol>,
    /// End after so many lines.
    #[arg(long)]
    pub count: Option<u64>,
}

impl FilterArgs {
    /// Every packet that it lets through.
    pub fn packets(&self) -> Filter {
        Filter {
            packets: true,
            address: self.address,
            peer: self.peer,
            port: self.port,
            protocol: self.protocol,
            ..Filter::default()
        }
    }

    /// Of those, the first and the last of each flow.
    pub fn flows(&self) -> Filter {
        Filter {
            packets: false,
            opened: true,
            ended: true,
            ..self.packets()
        }
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err("one of tcp, udp, sctp".to_owned()),
    }
}

/// Images on this node.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Import images from an OCI layout or archive, or a docker archive.
    Import {
        /// The agent's state directory.
        #[arg(long, env = "PORTOLAN_STATE_DIR", default_value = "/var/lib/portolan")]
        state_dir: PathBuf,
        /// The image's name, for a layout that does not say it.
        #[arg(long)]
        name: Option<String>,
        /// The layout's directory, or the archive.
        path: PathBuf,
    },
    /// List the images.
    List(QueryArgs),
}

/// What `teardown` needs to know.
#[derive(Clone, Debug, Args)]
pub struct TeardownArgs {
    /// The agent's state directory.
    #[arg(long, env = "PORTOLAN_STATE_DIR", default_value = "/var/lib/portolan")]
    pub state_dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_filter_is_what_the_command_line_says() {
        let line = "portolan-agent trace --address 10.96.0.1 --port 80 --protocol TCP --count 3";
        let cli = Cli::try_parse_from(line.split_whitespace()).expect("parsed");
        let Command::Trace(args) = cli.command else {
            panic!("not trace");
        };
        let filter = args.filter.packets();
        assert_eq!(
            (filter.port, filter.protocol),
            (Some(80), Some(Protocol::Tcp))
        );
        assert!(filter.packets && !filter.opened);
        let flows = args.filter.flows();
        assert!(!flows.packets && flows.opened && flows.ended);
        for bad in ["--port 0", "--protocol icmp", "--peer 10.0.0.1"] {
            let line = format!("portolan-agent trace {bad}");
            Cli::try_parse_from(line.split_whitespace()).expect_err(bad);
        }
    }

    #[test]
    fn run_takes_an_address_of_each_family() {
        let cli = Cli::try_parse_from(
            "portolan-agent run --node-name n1 --server https://10.89.0.1:6443 --uplink eth0 \
             --node-ip 10.89.0.11 --node-ip fd00:89::11 --state-dir /tmp/n1"
                .split_whitespace(),
        )
        .expect("parsed");
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        assert_eq!(args.node_ips.len(), 2);
        assert_eq!(args.capacity(), Capacity::default());
    }

    #[test]
    fn the_sizes_of_tables_are_checked_before_anything_is_made() {
        let run = "portolan-agent run --node-name n1 --server https://10.89.0.1:6443 --uplink eth0 --node-ip 10.89.0.11";
        let parse = |more: &str| Cli::try_parse_from(format!("{run} {more}").split_whitespace());
        let cli = parse("--max-services 10 --max-backends 1048575 --max-flows 4096").expect("fine");
        let Command::Run(args) = cli.command else {
            panic!("not run");
        };
        let capacity = args.capacity();
        assert_eq!((capacity.services, capacity.backends), (10, 1_048_575));
        assert_eq!((capacity.flows_v4, capacity.flows_v6), (4_096, 2_048));
        for (bad, said) in [
            ("--max-services 0", "0 is not in 1..=1048576"),
            ("--max-backends 1048576", "1048576 is not in 1..1048576"),
            ("--max-flows 1000", "1000 is not in 1024..=16777216"),
            ("--max-flows -5", "unexpected argument"),
        ] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
