//! Folders on a bpf file system.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

static NEXT: AtomicU32 = AtomicU32::new(0);
/// In a mount namespace of our own, a bpf file system lies over this folder.
const TEMPORARY: &str = "/sys/fs/bpf";

/// A folder for pins that goes with this process.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
}

/// Gives this process mounts of its own, with a bpf file system that nobody else sees. Before any thread is made.
pub fn hide() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (are we root?)")?;
    let nothing = None::<&str>;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .context("keep mounts to ourselves")?;
    mount(
        Some("bpf"),
        TEMPORARY,
        Some("bpf"),
        MsFlags::empty(),
        nothing,
    )
    .context("mount a bpf file system")
}

impl Pins {
    /// A new folder, after [`hide`].
    pub fn temporary() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            folder: Path::new(TEMPORARY).join(format!("portolan-{number}")),
        }
    }

    /// Where it is.
    pub fn folder(&self) -> PathBuf {
        self.folder.clone()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What is pinned here would stay loaded until the process ends.
        if let Err(error) = portolan_dataplane::Dataplane::remove_pins(&self.folder) {
            eprintln!("cannot remove {}: {error}", self.folder.display());
        }
    }
}

/// Makes sure that a folder is on a bpf file system, mounting one on its parent if there is none.
pub fn ensure(folder: &Path) -> Result<()> {
    let parent = folder.parent().context("pins need a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    let kind = statfs(parent).with_context(|| format!("look at {}", parent.display()))?;
    if kind.filesystem_type() != BPF_FS_MAGIC {
        mount(
            Some("bpf"),
            parent,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mount a bpf file system on {}", parent.display()))?;
    }
    Ok(())
}
