//! Network namespaces held by bind mounts. Nothing but short-lived threads of this module ever changes its namespace:
//! the agent's own threads stay where the agent was started.

#![forbid(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};

use super::NetworkError;

/// The namespace of the thread that reads it.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Makes a namespace and holds it at `path`; one that is held there already is kept.
pub fn create(path: &Path) -> Result<(), NetworkError> {
    let failed = |operation| NetworkError::new::<io::Error>(operation, path.display().to_string());
    if is_held(path).map_err(failed("look at network namespace"))? {
        return Ok(());
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed("create mount point"))?;
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(
            Some(OWN_NAMESPACE),
            path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        Ok(())
    })
    .map_err(failed("create network namespace"))
}

/// Lets go of the namespace at `path`; it ends with its last process. One that is absent is fine.
pub fn remove(path: &Path) -> Result<(), NetworkError> {
    let failed = |operation| NetworkError::new::<io::Error>(operation, path.display().to_string());
    // A crash between two mounts can leave them stacked.
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Not a mount point, or nothing there at all.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(failed("release network namespace")(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove mount point")(error))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of its own inside the namespace held at `path`. Sockets that it opens stay in the namespace
/// and may be handed out.
pub fn within<T: Send>(
    path: &Path,
    work: impl FnOnce() -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let failed = |operation| NetworkError::new::<io::Error>(operation, path.display().to_string());
    let namespace = File::open(path).map_err(failed("open network namespace"))?;
    on_own_thread(|| {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
    .map_err(failed("enter network namespace"))?
}

/// The namespaces held in a directory: file name and path.
pub fn held_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether `path` is a namespace and not just the file that a crash left where one was to be mounted.
fn is_held(path: &Path) -> io::Result<bool> {
    match statfs(path) {
        Ok(status) => Ok(status.filesystem_type() == NSFS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)?;
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
