//! The socket hooks on this node's part of the control groups.

#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use portolan_dataplane::Dataplane;
use serde::Serialize;

use crate::{cli::SocketHooks, errors::chain, runtime::cgroup};

/// Below the node's control group: the agent, its shims, and all that runs for the node beside its pods.
const AGENT: &str = "agent";

/// What became of the socket hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SocketState {
    /// Sockets of the processes in a control group get their backend when they connect.
    Attached {
        /// Its folder.
        cgroup: PathBuf,
    },
    /// Nobody wants them.
    Off,
    /// They can't be had here; tcx translates every packet instead.
    Unavailable {
        /// Why.
        reason: String,
    },
}

/// Where the hooks belong, and where the agent does so that they see what it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The control group that they hang on.
    pub hooks: PathBuf,
    /// The group that the agent must join first, if it is not beneath the hooks as it is.
    pub agent: Option<PathBuf>,
}

/// Looks where the hooks belong. A node that is the whole machine owns all control groups; one that is a network
/// namespace among others owns its own, and its agent must be in it.
pub fn place(cgroup_root: &Path) -> io::Result<Place> {
    let root = cgroup::unified()?.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "no hierarchy of control groups of version 2 is mounted",
        )
    })?;
    let is_machine = namespace("/proc/self/ns/net")? == namespace("/proc/1/ns/net")?;
    Ok(place_in(&root, cgroup_root, is_machine))
}

fn place_in(root: &Path, cgroup_root: &Path, is_machine: bool) -> Place {
    if is_machine {
        return Place {
            hooks: root.to_owned(),
            agent: None,
        };
    }
    let own = root.join(cgroup_root.strip_prefix("/").unwrap_or(cgroup_root));
    Place {
        agent: Some(own.join(AGENT)),
        hooks: own,
    }
}

fn namespace(path: &str) -> io::Result<u64> {
    Ok(fs::metadata(path)?.ino())
}

/// Joins the node's own group where that is needed: to be done before anything is started that should be in it. The group
/// for the hooks, or why there is none; `None` if nobody wants them.
pub fn prepare(wish: SocketHooks, cgroup_root: &Path) -> Option<Result<PathBuf, String>> {
    (wish == SocketHooks::Auto).then(|| join(cgroup_root).map_err(|error| chain(&error)))
}

fn join(cgroup_root: &Path) -> io::Result<PathBuf> {
    let place = place(cgroup_root)?;
    if let Some(group) = &place.agent {
        fs::create_dir_all(group)?;
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    }
    Ok(place.hooks)
}

/// Attaches or detaches the hooks. What can't be is logged once, and nothing stops for it.
pub fn settle(
    dataplane: &mut Dataplane,
    prepared: Option<Result<PathBuf, String>>,
) -> Result<SocketState, portolan_dataplane::Error> {
    let attached = match prepared {
        None => {
            dataplane.detach_sockets()?;
            return Ok(SocketState::Off);
        }
        Some(prepared) => prepared.and_then(|cgroup| {
            let attached = dataplane.attach_sockets(&cgroup);
            attached.map_err(|error| chain(&error)).map(|()| cgroup)
        }),
    };
    match attached {
        Ok(cgroup) => Ok(SocketState::Attached { cgroup }),
        Err(reason) => {
            tracing::warn!(
                reason,
                "there are no socket hooks here: every packet is translated by itself"
            );
            dataplane.detach_sockets()?;
            Ok(SocketState::Unavailable { reason })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_owns_all_groups_and_a_namespace_its_own() {
        let root = Path::new("/sys/fs/cgroup");
        let machine = place_in(root, Path::new("portolan/n1"), true);
        assert_eq!((machine.hooks.as_path(), machine.agent), (root, None));
        for given in ["portolan/n1", "/portolan/n1"] {
            let own = place_in(root, Path::new(given), false);
            assert_eq!(own.hooks, root.join("portolan/n1"));
            assert_eq!(own.agent, Some(root.join("portolan/n1/agent")));
        }
    }

    #[test]
    fn the_state_says_what_there_is() {
        let state = SocketState::Attached {
            cgroup: "/sys/fs/cgroup".into(),
        };
        let json = serde_json::to_value(&state).expect("it is plain");
        assert_eq!(
            json,
            serde_json::json!({"state": "attached", "cgroup": "/sys/fs/cgroup"})
        );
    }
}
