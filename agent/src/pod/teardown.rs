//! Takes away everything that an agent's pods have left on a machine, while no agent runs.
#![forbid(unsafe_code)]

use std::{
    io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::record::PodDir;
use crate::runtime::{bundle::Bundle, cgroup, mount};

/// How long killed shims may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Ends all containers at once and removes their cgroups, mounts, namespaces and files; images and logs stay. What is
/// absent is no error. Pod networks are the network's to remove.
pub fn teardown(state_dir: &Path, cgroup_root: &Path) -> io::Result<()> {
    let pods = state_dir.join("pods");
    let mut shims = Vec::new();
    for pod in folders(&pods)? {
        for container in folders(&PodDir::at(pod).containers())? {
            // Ended first, so that none takes its container's death for its own failure and writes to its folder.
            if let Some(shim) = Bundle::at(container).shim().read()?
                && let Some(pidfd) = shim.open()?
            {
                pidfd.signal(Signal::SIGKILL)?;
                shims.push(shim);
            }
        }
    }
    cgroup::remove(cgroup_root)?;
    let deadline = Instant::now() + FAREWELL;
    for shim in shims {
        while shim.is_alive()? && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
    mount::unmount_all(&pods)?;
    crate::runtime::bundle::remove_tree(&pods)
}

fn folders(path: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}
