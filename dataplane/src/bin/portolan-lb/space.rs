//! Network namespaces without a name: they vanish with this process, however it ends.

use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::interrupt;

/// How often the memory of a command is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(4);

/// A network namespace with loopback up and forwarding on.
#[derive(Debug)]
pub struct Space {
    handle: File,
}

impl Space {
    /// A new one.
    pub fn new() -> Result<Self> {
        let handle = thread::scope(|scope| {
            let made = scope.spawn(|| -> Result<File> {
                unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
                File::open("/proc/thread-self/ns/net").context("hold a network namespace")
            });
            made.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let space = Self { handle };
        space.ip("link set lo up")?;
        for (knob, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
        ] {
            space.knob(knob, value)?;
        }
        Ok(space)
    }

    /// Sets a knob below /proc/sys/net.
    pub fn knob(&self, knob: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(knob);
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("set {}", path.display()))
    }

    /// A path by which other programs reach the namespace while this process lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.handle.as_raw_fd()
        ))
    }

    /// Moves the calling thread into the namespace for good.
    pub fn join(&self) -> Result<()> {
        setns(&self.handle, CloneFlags::CLONE_NEWNET).context("enter a network namespace")
    }

    /// Runs a function on a thread of its own in the namespace.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| self.join().map(|()| function()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs lines of `ip` in the namespace.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run("ip", &["-batch", "-"], lines.as_bytes())
            .with_context(|| format!("ip {}", lines.lines().next().unwrap_or_default()))
    }

    /// Runs a command in the namespace with something on its stdin.
    pub fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<()> {
        self.output(program, arguments, input).map(drop)
    }

    /// The same; what it wrote to stdout.
    pub fn output(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<String> {
        self.ran(program, arguments, input).map(|ran| ran.output)
    }

    /// The same, with what it took of memory.
    pub fn ran(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<Ran> {
        let output = self.enter(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            let running = interrupt::Child::new(child.id());
            let peak = PeakMemory::watch(child.id());
            let mut stdin = child
                .stdin
                .take()
                .context("the command's stdin is a pipe")?;
            // A command that fails early closes its stdin; its own words then say more than our broken pipe.
            let written = stdin.write_all(input);
            drop(stdin);
            let output = child.wait_with_output().context("wait for a command")?;
            drop(running);
            anyhow::Ok((output, written, peak.end()))
        })?;
        let (output, written, peak) = output?;
        interrupt::check()?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let line = words
                .trim()
                .lines()
                .next()
                .unwrap_or("no reason given")
                .to_owned();
            bail!("{program} ended with {}: {line}", output.status);
        }
        written.with_context(|| format!("write to {program}"))?;
        Ok(Ran {
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            peak,
        })
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    /// What it wrote to stdout.
    pub output: String,
    /// The most memory that it was seen to have, in bytes.
    pub peak: u64,
}

/// Looks at a process's memory as long as it runs: the kernel keeps no peak of it.
struct PeakMemory {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl PeakMemory {
    fn watch(process: u32) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut peak = 0;
            while !seen.load(Ordering::Acquire) {
                peak = peak.max(memory_of(process, OWN_MEMORY).unwrap_or(0));
                thread::park_timeout(LOOK_EVERY);
            }
            peak
        });
        Self { ended, thread }
    }

    fn end(self) -> u64 {
        self.ended.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().unwrap_or(0)
    }
}

/// What a process has of memory that is its own: pages of files, such as its code, can be had again.
pub const OWN_MEMORY: &str = "RssAnon";

/// A figure of a process's memory as the kernel names it, in bytes.
pub fn memory_of(process: u32, what: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(what))?;
    let kilobytes = line.trim_start_matches(':').trim().strip_suffix(" kB")?;
    kilobytes.parse::<u64>().ok().map(|count| count * 1_024)
}

/// Joins two namespaces by a veth pair; the commands that follow name its ends.
pub fn wire(near: (&Space, &str), far: (&Space, &str)) -> Result<()> {
    let far_path = far.0.path();
    near.0.ip(&format!(
        "link add {} type veth peer name {} netns {}\nlink set {} up",
        near.1,
        far.1,
        far_path.display(),
        near.1
    ))?;
    far.0.ip(&format!("link set {} up", far.1))
}
