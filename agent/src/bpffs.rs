//! The file system that pins live on. Agents that share a machine have one each, in their state directories.

#![forbid(unsafe_code)]

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// What failed on which directory.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}", path = .path.display())]
pub struct BpffsError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Mounts a bpffs at `path` unless it lies on one.
pub fn ensure(path: &Path) -> Result<(), BpffsError> {
    let failed = |operation| {
        let path = path.to_owned();
        move |source: io::Error| BpffsError {
            operation,
            path,
            source,
        }
    };
    std::fs::create_dir_all(path).map_err(failed("create directory"))?;
    let status = statfs(path).map_err(|errno| failed("look at")(errno.into()))?;
    if status.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| failed("mount a bpffs at")(errno.into()))
}

/// Takes the bpffs at `path` away; one that is absent, or begins above `path`, is fine.
pub fn remove(path: &Path) -> Result<(), BpffsError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => Err(BpffsError {
            operation: "unmount",
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}
