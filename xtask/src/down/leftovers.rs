//! What of a cluster is on this machine, as the kernel tells it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{
    cluster::{self, CGROUP, Cluster, HOST_INTERFACE, MARK},
    machine::{self, ProcessId},
};

/// Everything that `down` has to remove.
#[derive(Debug, Default, PartialEq)]
pub struct Leftovers {
    /// Processes that `up` or an agent has started: they carry the cluster's mark or sit in its control groups.
    pub processes: Vec<ProcessId>,
    /// Mounts below the state folder, pods' namespaces and pinned programs among them, in the order of mounting.
    pub mounts: Vec<PathBuf>,
    /// The cluster's folder in each cgroup hierarchy.
    pub cgroups: Vec<PathBuf>,
    /// Network namespaces, by name.
    pub namespaces: Vec<String>,
    /// Whether the machine has its interface on the fabric.
    pub interface: bool,
}

impl Leftovers {
    /// Looks for everything of the cluster.
    pub fn find(cluster: &Cluster) -> Result<Self> {
        let cgroups: Vec<PathBuf> = machine::cgroup_hierarchies()?
            .iter()
            .map(|hierarchy| hierarchy.join(CGROUP))
            .filter(|folder| folder.exists())
            .collect();
        let mut processes = members(&cgroups);
        let myself = std::process::id();
        for process in machine::processes()? {
            if process.pid != myself
                && !processes.contains(&process)
                && is_marked(&process, cluster.state())
            {
                processes.push(process);
            }
        }
        let mounts = machine::mount_points()?
            .into_iter()
            .filter(|mount| mount.starts_with(cluster.state()))
            .collect();
        Ok(Self {
            processes,
            mounts,
            cgroups,
            namespaces: cluster::namespaces()?,
            interface: Path::new("/sys/class/net").join(HOST_INTERFACE).exists(),
        })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes another cluster's in.
    pub fn add(&mut self, other: Self) {
        self.processes.extend(other.processes);
        self.mounts.extend(other.mounts);
        self.cgroups.extend(other.cgroups);
        self.namespaces.extend(other.namespaces);
        self.interface |= other.interface;
    }

    /// A line for each kind that there is.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut list = |what: &str, items: Vec<String>| {
            if !items.is_empty() {
                lines.push(format!("{} {what}: {}", items.len(), items.join(", ")));
            }
        };
        let shorten = |path: &PathBuf| path.display().to_string();
        list(
            "processes",
            self.processes
                .iter()
                .map(|process| process.pid.to_string())
                .collect(),
        );
        list("mounts", self.mounts.iter().map(shorten).collect());
        list("control groups", self.cgroups.iter().map(shorten).collect());
        list("network namespaces", self.namespaces.clone());
        if self.interface {
            list("interface", vec![HOST_INTERFACE.to_owned()]);
        }
        lines
    }
}

/// The processes in control groups and those below them.
fn members(cgroups: &[PathBuf]) -> Vec<ProcessId> {
    let mut found = Vec::new();
    let mut folders = cgroups.to_vec();
    while let Some(folder) = folders.pop() {
        let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        for process in listed
            .lines()
            .filter_map(|pid| ProcessId::of(pid.parse().ok()?))
        {
            if !found.contains(&process) {
                found.push(process);
            }
        }
        // A group may go while we look; then it has no members.
        if let Ok(entries) = fs::read_dir(&folder) {
            folders.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
    }
    found
}

/// Whether a process was started with the cluster's mark.
fn is_marked(process: &ProcessId, state: &Path) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{}/environ", process.pid)) else {
        return false;
    };
    let mark = format!("{MARK}={}", state.display());
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == mark.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_marked_process_is_found_and_others_are_not() {
        let state = std::env::temp_dir().join(format!("portolan-xtask-{}", std::process::id()));
        let mut child = Command::new("sleep")
            .arg("30")
            .env(MARK, &state)
            .spawn()
            .expect("sleep runs");
        let process = ProcessId::of(child.id()).expect("it runs");
        let marked = crate::daemon::wait_until(std::time::Duration::from_secs(2), || {
            is_marked(&process, &state)
        });
        let elsewhere = is_marked(&process, &state.join("elsewhere"));
        child.kill().expect("end it");
        child.wait().expect("reap it");
        assert!(marked);
        assert!(!elsewhere);
    }
}
