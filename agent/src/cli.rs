//! The command line.

#![forbid(unsafe_code)]

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

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
    /// Show the flows in the dataplane's table.
    Flows(QueryArgs),
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
    /// The control server's URL, https://HOST:PORT.
    #[arg(long)]
    pub server: String,
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
    /// Whether what pods send beyond the cluster leaves with the node's address. Without, whatever routes there must know
    /// the way back to pods.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub masquerade: bool,
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
    /// CPUs that pods may ask for [default: all]
    #[arg(long)]
    pub capacity_cpu: Option<u64>,
    /// Bytes of memory that pods may ask for [default: all]
    #[arg(long)]
    pub capacity_memory: Option<u64>,
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
    }
}
