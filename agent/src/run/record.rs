//! What the agent remembers of itself between runs, and leaves for `teardown`.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    cli::RunArgs,
    files::{self, FileError},
};

/// Why a record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file can't be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file has other content than an agent writes.
    #[error("parse {path}", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// With what the agent was last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub node_addresses: Vec<std::net::IpAddr>,
    /// The cgroup of its containers.
    pub cgroup_root: PathBuf,
    /// Where its maps are pinned.
    pub pin_dir: PathBuf,
}

impl AgentRecord {
    /// From the command line.
    pub fn of(args: &RunArgs) -> Self {
        let cgroup_root = || Path::new("portolan").join(&args.node_name);
        Self {
            node_name: args.node_name.clone(),
            node_addresses: args.node_ips.clone(),
            cgroup_root: args.cgroup_root.clone().unwrap_or_else(cgroup_root),
            pin_dir: args
                .pin_dir
                .clone()
                .unwrap_or_else(|| default_pin_dir(&args.state_dir)),
        }
    }

    /// Writes STATE/agent.json.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        save(&state_dir.join("agent.json"), self)
    }

    /// Reads STATE/agent.json; `None` when no agent ran here.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, RecordError> {
        load(&state_dir.join("agent.json"))
    }
}

/// Where maps are pinned unless someone says otherwise.
pub fn default_pin_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("bpf")
}

/// The pod CIDRs that the control plane gave this node at its first registration.
pub fn load_pod_cidrs(state_dir: &Path) -> Result<Option<Vec<IpNet>>, RecordError> {
    load(&pod_cidrs_path(state_dir))
}

/// Remembers them.
pub fn save_pod_cidrs(state_dir: &Path, cidrs: &[IpNet]) -> Result<(), RecordError> {
    save(&pod_cidrs_path(state_dir), &cidrs)
}

/// Forgets them.
pub fn forget_pod_cidrs(state_dir: &Path) -> Result<(), FileError> {
    files::remove_if_present(&pod_cidrs_path(state_dir))
}

/// A Node that was deleted and made again may have other CIDRs; the pods here keep theirs.
pub fn warn_if_moved(state_dir: &Path, current: &[IpNet]) {
    match load_pod_cidrs(state_dir) {
        Ok(Some(known)) if known != current => tracing::warn!(
            ?known,
            ?current,
            "the node has other pod CIDRs now: drain it and tear it down before it runs new pods"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "can't compare the node's pod CIDRs"),
    }
}

fn pod_cidrs_path(state_dir: &Path) -> PathBuf {
    state_dir.join("pod-cidrs.json")
}

fn save(path: &Path, value: &impl Serialize) -> Result<(), RecordError> {
    let content = serde_json::to_vec_pretty(value).map_err(|source| RecordError::Parse {
        path: path.to_owned(),
        source,
    })?;
    Ok(files::replace(path, &content, 0o600)?)
}

fn load<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, RecordError> {
    let Some(content) = files::read_if_present(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(|source| RecordError::Parse {
            path: path.to_owned(),
            source,
        })
}
