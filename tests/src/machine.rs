//! What of a cluster is on this machine: taken before and after, the two must be equal.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::cluster::target_folder;

/// Everything that a cluster may have made, in words.
pub type Snapshot = BTreeSet<String>;

/// Looks at processes, network namespaces, interfaces, mounts, control groups and pins.
pub fn snapshot() -> Result<Snapshot> {
    let target = target_folder()?;
    let mut seen = Snapshot::new();
    seen.extend(processes(&target)?);
    seen.extend(
        names("/run/netns")
            .filter(|name| name.starts_with("portolan"))
            .map(|name| format!("network namespace {name}")),
    );
    seen.extend(
        names("/sys/class/net")
            .filter(|name| name.starts_with("portolan") || name.starts_with("ptl"))
            .map(|name| format!("interface {name}")),
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    seen.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|path| Path::new(path).starts_with(&target) || path.contains("/portolan"))
            .map(|path| format!("mount {path}")),
    );
    seen.extend(cgroups());
    Ok(seen)
}

/// Programs of the build, shims and containers among them: a container's process has the cluster's control group.
fn processes(target: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let Some(pid) = entry.ok().and_then(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.parse::<u32>().ok()
        }) else {
            continue;
        };
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let of_program = fs::read_link(folder.join("exe")).is_ok_and(|program| {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            program.starts_with(target)
                && ["portolan-control", "portolan-agent", "portolan-demo"]
                    .iter()
                    .any(|ours| name.starts_with(ours))
        });
        let of_cluster = fs::read_to_string(folder.join("cgroup"))
            .is_ok_and(|text| text.lines().any(|line| line.contains(":/portolan/")));
        if of_program || of_cluster {
            let line = fs::read_to_string(folder.join("cmdline")).unwrap_or_default();
            found.push(format!("process {pid} {}", line.replace('\0', " ")));
        }
    }
    Ok(found)
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            if path.to_string_lossy().contains("portolan") {
                found.push(format!("control group {}", path.display()));
            }
            folders.push(path);
        }
    }
    found
}

fn names(folder: &str) -> impl Iterator<Item = String> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}
