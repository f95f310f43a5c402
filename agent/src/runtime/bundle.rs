//! A container's folder: all that the shim needs to run it, and all that it leaves for the agent to read.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::{fd::RawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::process::ProcessId;

const ATTACH: &str = "attach";

/// The files of one container, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    path: PathBuf,
}

/// What the agent tells a shim, beside the OCI configuration.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a field of Kubernetes' own that is true or false"
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimConfig {
    /// The container's id.
    pub id: String,
    /// Relative to each cgroup hierarchy's mount.
    pub cgroup: PathBuf,
    /// Whether it may use every device.
    pub privileged: bool,
    /// Where its output goes.
    pub log: LogConfig,
    /// Who runs in it: owns the pipes, so that it may open /dev/stdout again.
    pub uid: u32,
    /// Whether it reads what attached clients type.
    #[serde(default)]
    pub stdin: bool,
    /// Whether its input ends with the first client.
    #[serde(default)]
    pub stdin_once: bool,
    /// Whether its streams are a terminal.
    #[serde(default)]
    pub tty: bool,
}

/// Where a container's output goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// The newest file; older ones have ".1", ".2" appended.
    pub path: PathBuf,
    /// A file that has reached this size in bytes is put aside.
    pub max_bytes: u64,
    /// How many files are kept, the newest included.
    pub max_files: u32,
}

/// A container that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its first process.
    pub init: ProcessId,
    /// When it began.
    pub at: Timestamp,
}

/// A container that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// What it returned, or 128 and the signal's number.
    pub code: i32,
    /// What killed it.
    pub signal: Option<i32>,
    /// The kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
}

impl Exit {
    /// From what waitpid(2) says of a process that has ended.
    pub fn from_wait_status(status: i32, oom_killed: bool, started: Started) -> Exit {
        let signal = status & 0x7f;
        Exit {
            code: if signal == 0 {
                (status >> 8) & 0xff
            } else {
                128 + signal
            },
            signal: (signal != 0).then_some(signal),
            oom_killed,
            started_at: started.at,
            finished_at: Timestamp::now(),
        }
    }
}

impl Bundle {
    /// The container whose folder is `path`, whether it exists or not.
    pub fn at(path: impl Into<PathBuf>) -> Bundle {
        Bundle { path: path.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The OCI runtime configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Where the image and the container's own layer are mounted together.
    pub fn rootfs(&self) -> PathBuf {
        self.path.join("rootfs")
    }

    /// What the container writes.
    pub fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// The overlay's scratch folder.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// libcontainer's own state.
    pub fn runtime_root(&self) -> PathBuf {
        self.path.join("runtime")
    }

    /// The named pipe behind the container's standard output.
    pub fn stdout(&self) -> PathBuf {
        self.path.join("stdout")
    }

    /// The named pipe behind the container's standard error.
    pub fn stderr(&self) -> PathBuf {
        self.path.join("stderr")
    }

    /// The named pipe behind the container's standard input.
    pub fn stdin(&self) -> PathBuf {
        self.path.join("stdin")
    }

    /// The socket where the shim takes clients who attach.
    pub fn attach(&self) -> PathBuf {
        self.path.join(ATTACH)
    }

    /// The same, by a descriptor of the folder: names of sockets have at most 107 bytes.
    pub fn attach_in(&self, folder: RawFd) -> PathBuf {
        format!("/proc/self/fd/{folder}/{ATTACH}").into()
    }

    /// What the shim itself complains about.
    pub fn shim_log(&self) -> PathBuf {
        self.path.join("shim.log")
    }

    /// What the container wrote to its terminationMessagePath.
    pub fn termination_message(&self) -> PathBuf {
        self.path.join("termination-log")
    }

    /// What the agent told the shim.
    pub fn shim_config(&self) -> Document<ShimConfig> {
        Document::new(self.path.join("shim.json"))
    }

    /// The shim that holds the lock.
    pub fn shim(&self) -> Document<ProcessId> {
        Document::new(self.path.join("shim.pid"))
    }

    /// Present once the container was started.
    pub fn started(&self) -> Document<Started> {
        Document::new(self.path.join("started.json"))
    }

    /// Present once the container has ended and its shim saw it.
    pub fn exit(&self) -> Document<Exit> {
        Document::new(self.path.join("exit.json"))
    }

    /// Held by the shim for as long as it lives; `None` when another process holds it.
    pub fn lock(&self) -> io::Result<Option<Flock<fs::File>>> {
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// A JSON file that is replaced as a whole: a reader sees the old value or the new one.
#[derive(Clone, Debug)]
pub struct Document<T> {
    path: PathBuf,
    value: std::marker::PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Document<T> {
    /// The document in the file `path`, whether it exists or not.
    pub fn new(path: PathBuf) -> Document<T> {
        Document {
            path,
            value: std::marker::PhantomData,
        }
    }

    /// What it says; `None` when it was never written.
    pub fn read(&self) -> io::Result<Option<T>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {error}", self.path.display()),
            )
        })
    }

    /// Replaces it.
    pub fn write(&self, value: &T) -> io::Result<()> {
        let text = serde_json::to_vec(value).map_err(io::Error::other)?;
        replace_file(&self.path, &text)
    }
}

/// Writes a file beside `path` and renames it over `path`.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let written = fs::write(&beside, content).and_then(|()| fs::rename(&beside, path));
    if written.is_err()
        && let Err(error) = remove_file(&beside)
    {
        tracing::warn!(path = %beside.display(), %error, "cannot remove a half-written file");
    }
    written
}

/// Removes a file that may be absent.
pub fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a folder and what is in it; it may be absent.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
