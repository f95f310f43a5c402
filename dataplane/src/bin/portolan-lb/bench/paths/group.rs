//! A control group for the threads whose sockets the socket hooks are to see.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A threaded control group of version 2 below our own. It goes with this.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// A new one.
    pub fn new() -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("portolan-bench-{}-{number}", std::process::id());
        let path = own()?.join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let group = Self { path };
        // Threads of one process may be in several groups only if those are threaded.
        fs::write(group.path.join("cgroup.type"), "threaded")
            .context("make the control group threaded (does its parent give out controllers?)")?;
        Ok(group)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling thread here.
    pub fn join(&self) -> Result<()> {
        let thread = nix::unistd::gettid().to_string();
        fs::write(self.path.join("cgroup.threads"), thread)
            .with_context(|| format!("move a thread into {}", self.path.display()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..200 {
            // Threads leave a moment after they were joined, and nothing announces it.
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return eprintln!("cannot remove {}: {error}", self.path.display()),
                Ok(()) => return,
            }
        }
        eprintln!("{} is still in use", self.path.display());
    }
}

/// The folder of this process's group in the hierarchy of version 2.
fn own() -> Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let own = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("this kernel has no control groups of version 2")?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    Ok(mount
        .context("control groups of version 2 are not mounted")?
        .join(own))
}

/// Why threads cannot be put into a group here.
pub fn obstacle() -> Option<String> {
    Group::new().err().map(|error| format!("{error:#}"))
}
