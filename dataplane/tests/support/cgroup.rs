//! A control group of version 2 that threads of the test can join, so that socket hooks on it see their sockets alone.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A control group that goes with its guard, once the threads in it have ended.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one, below that of the test's process.
    ///
    /// # Panics
    /// If there is no hierarchy of version 2, or threads cannot be told apart here.
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ptl-dp-{}-{number}", std::process::id());
        let cgroup = Self {
            path: own().join(name),
        };
        fs::create_dir(&cgroup.path).expect("a control group can be made");
        // Threads of one process may be in several groups only if those are threaded.
        fs::write(cgroup.path.join("cgroup.type"), "threaded")
            .expect("the test's own control group has no controllers for those below it");
        cgroup
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A group below it, which goes with this one.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn child(&self) -> Self {
        let path = self.path.join("child");
        fs::create_dir(&path).expect("a control group can be made");
        fs::write(path.join("cgroup.type"), "threaded").expect("its parent is threaded too");
        Self { path }
    }

    /// Moves the calling thread here. Threads that it starts are here, too.
    ///
    /// # Panics
    /// If it cannot be moved.
    pub fn join(&self) {
        let thread = nix::unistd::gettid().to_string();
        fs::write(self.path.join("cgroup.threads"), thread).expect("a thread may be moved here");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..200 {
            // Threads leave a moment after they were joined, and nothing announces it.
            match fs::remove_dir(&self.path) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return eprintln!("cannot remove {}: {error}", self.path.display()),
                Ok(()) => return,
            }
        }
        eprintln!("{} is still in use", self.path.display());
    }
}

/// The folder of the test's own group.
///
/// # Panics
/// If there is no hierarchy of version 2.
pub fn own() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").expect("a process has control groups");
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .expect("this kernel has a hierarchy of version 2");
    mount().join(own)
}

/// Where the hierarchy of version 2 is mounted.
fn mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a process has mounts");
    let point = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    point.expect("a hierarchy of version 2 is mounted")
}
