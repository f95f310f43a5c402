//! What `up` makes on this machine, by name: `down` must find all of it again, after a crash too.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workspace::Workspace;

/// Every process that `up` starts has this in its environment, with the state folder as its value.
pub const MARK: &str = "PORTOLAN_CLUSTER_STATE";
/// The cluster's folder in every cgroup hierarchy.
pub const CGROUP: &str = "portolan";
/// The namespace with the bridge that joins the nodes.
pub const FABRIC: &str = "portolan-fabric";
/// The namespace of the client beyond the fabric.
pub const OUTSIDE: &str = "portolan-outside";
/// The machine's own interface on the fabric.
pub const HOST_INTERFACE: &str = "portolan-host";
/// Where `ip netns` looks for namespaces.
pub const NAMESPACES: &str = "/run/netns";
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// More would stand in for more that die at once.
pub const MOST_SERVERS: u8 = 5;
/// The fabric has addresses for no more.
pub const MOST_NODES: u8 = 64;
/// The image that the demo's pods run.
pub const IMAGE: &str = "localhost/portolan-demo:1";

/// Says which state folder this machine's one cluster has: names of namespaces can't be used twice.
const RECORD: &str = "/run/portolan-up.json";
/// Held by `up` and `down` while they work.
const LOCK: &str = "/run/portolan-up.lock";

/// A cluster on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    state: PathBuf,
}

/// Keeps another `up` or `down` waiting until it is dropped.
pub struct Lock {
    _file: fs::File,
}

impl Cluster {
    /// The cluster of this source tree.
    pub fn of(workspace: &Workspace) -> Self {
        Self {
            state: workspace.target().join("portolan"),
        }
    }

    /// The cluster that is up, or that a crashed `up` has left, wherever its state is.
    pub fn recorded() -> Result<Option<Self>> {
        match fs::read(RECORD) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("understand {RECORD}"))
                .map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {RECORD}")),
        }
    }

    /// Notes that this cluster is about to be started.
    pub fn record(&self) -> Result<()> {
        let text = serde_json::to_vec(self).context("write down the cluster")?;
        fs::write(RECORD, text).with_context(|| format!("write {RECORD}"))
    }

    /// Notes that no cluster is up.
    pub fn forget() -> Result<()> {
        remove_file_if_there(Path::new(RECORD))
    }

    /// Where everything of the cluster is kept.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The administrator's credentials, for kubectl.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// What the programs wrote to stderr.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Who was started.
    pub fn daemons(&self) -> PathBuf {
        self.state.join("run")
    }

    /// A node's folder.
    pub fn node_state(&self, node: Node) -> PathBuf {
        self.state.join(node.name())
    }

    /// The folders of the nodes that were started, by what is on disk.
    pub fn node_states(&self) -> Result<Vec<(String, PathBuf)>> {
        if !self.state.exists() {
            return Ok(Vec::new());
        }
        let mut nodes = Vec::new();
        let entries =
            fs::read_dir(&self.state).with_context(|| format!("read {}", self.state.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("read {}", self.state.display()))?
                .path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_node_name(&name) {
                nodes.push((name.into_owned(), path.clone()));
            }
        }
        nodes.sort();
        Ok(nodes)
    }

    /// kubectl, talking to this cluster.
    pub fn kubectl(&self, workspace: &Workspace) -> Result<Command> {
        let program = workspace
            .find_program("kubectl")
            .context("there is no kubectl: run `cargo xtask setup`")?;
        let mut command = Command::new(program);
        command.env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }
}

/// One node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    number: u8,
}

impl Node {
    /// The first `count` nodes.
    pub fn first(count: u8) -> Vec<Self> {
        (1..=count).map(|number| Self { number }).collect()
    }

    /// Its name in the cluster.
    pub fn name(self) -> String {
        format!("n{}", self.number)
    }

    /// Its network namespace.
    pub fn namespace(self) -> String {
        format!("portolan-{}", self.name())
    }

    /// Its addresses on the fabric, IPv4 first.
    pub fn addresses(self) -> [String; 2] {
        fabric_addresses(10 + self.number)
    }
}

/// A control server's addresses on the fabric, which are the machine's own; the first is number 1.
pub fn server_addresses(number: u8) -> [String; 2] {
    fabric_addresses(number)
}

/// A control server's address for this machine.
pub fn loopback_address(number: u8) -> String {
    format!("127.0.0.{number}")
}

/// The outside client's addresses.
pub fn outside_addresses() -> [String; 2] {
    fabric_addresses(200)
}

fn fabric_addresses(host: u8) -> [String; 2] {
    // The IPv6 address shows the same number to the eye: 10.89.0.11 and fd00:89::11.
    [format!("10.89.0.{host}"), format!("fd00:89::{host}")]
}

/// The file that holds a network namespace open.
pub fn namespace_file(name: &str) -> PathBuf {
    Path::new(NAMESPACES).join(name)
}

/// The agent's executable: the one that the cluster was started with, else the newest build.
pub fn agent_program(workspace: &Workspace, cluster: &Cluster) -> Result<PathBuf> {
    let noted = fs::read_to_string(cluster.state().join("programs")).ok();
    let folder = noted.map_or_else(|| workspace.target().join("debug"), PathBuf::from);
    let program = folder.join("portolan-agent");
    if !program.exists() {
        bail!("{} is not there", program.display());
    }
    Ok(program)
}

/// A command that runs in a network namespace, everything else being the machine's own.
pub fn in_namespace(file: &Path, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", file.display()))
        .arg("--")
        .arg(program);
    command
}

/// Waits until no other `up` or `down` works on this machine.
pub fn lock() -> Result<Lock> {
    let file = fs::File::create(LOCK).with_context(|| format!("open {LOCK}"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            eprintln!("another `cargo xtask up` or `down` is at work: waiting for it");
            file.lock().with_context(|| format!("lock {LOCK}"))?;
        }
        Err(fs::TryLockError::Error(error)) => bail!("cannot lock {LOCK}: {error}"),
    }
    Ok(Lock { _file: file })
}

/// Removes a file; that it is absent is fine.
pub fn remove_file_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Whether a folder or namespace suffix is a node's: "n" and a number.
pub fn is_node_name(name: &str) -> bool {
    name.strip_prefix('n')
        .is_some_and(|number| number.parse::<u8>().is_ok())
}

/// The names of our namespaces that exist now.
pub fn namespaces() -> Result<Vec<String>> {
    let entries = match fs::read_dir(NAMESPACES) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("read {NAMESPACES}")),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name == FABRIC
                || name == OUTSIDE
                || name.strip_prefix("portolan-").is_some_and(is_node_name)
        })
        .collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_and_numbered_alike() {
        let nodes = Node::first(2);
        assert_eq!(nodes[1].name(), "n2");
        assert_eq!(nodes[1].namespace(), "portolan-n2");
        assert_eq!(nodes[1].addresses(), ["10.89.0.12", "fd00:89::12"]);
    }

    #[test]
    fn the_last_node_stays_clear_of_the_outside_client() {
        let last = Node::first(MOST_NODES)[usize::from(MOST_NODES) - 1];
        assert_eq!(last.addresses()[0], "10.89.0.74");
        assert_ne!(last.addresses(), outside_addresses());
    }

    #[test]
    fn only_nodes_are_taken_for_nodes() {
        for (name, expected) in [
            ("n1", true),
            ("n64", true),
            ("logs", false),
            ("n", false),
            ("nx", false),
        ] {
            assert_eq!(is_node_name(name), expected, "{name}");
        }
    }
}
