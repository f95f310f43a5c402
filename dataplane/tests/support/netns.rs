//! Network namespaces and bpf file systems that vanish with their guards, also when a test panics.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns},
};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command and insists on its success.
///
/// # Panics
/// If it fails.
pub fn run(command: &str) {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command has a name");
    let output = Command::new(program)
        .args(words)
        .output()
        .expect("the command can be started");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

/// A network namespace with loopback up and forwarding on.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one; `role` is part of its name.
    pub fn new(role: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ptl-dp-{}-{number}-{role}", std::process::id());
        run(&format!("ip netns add {name}"));
        let netns = Self { name };
        netns.ip("link set lo up");
        netns.enter(|| {
            for (knob, value) in [
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/all/accept_dad", "0"),
            ] {
                std::fs::write(Path::new("/proc/sys").join(knob), value)
                    .expect("a namespace's knobs can be set");
            }
        });
        netns
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.name));
    }

    /// Runs `ip` in it for several lines: starting it takes longer than what it does.
    ///
    /// # Panics
    /// If one of them fails.
    pub fn ip_batch(&self, lines: &[String]) {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip can be started");
        let mut stdin = child.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut stdin, (lines.join("\n") + "\n").as_bytes())
            .expect("ip reads all");
        drop(stdin);
        let output = child.wait_with_output().expect("it ends");
        assert!(
            output.status.success(),
            "{lines:#?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }

    /// Runs a function on a thread of its own in the namespace. Threads that it starts are in the namespace, too.
    ///
    /// # Panics
    /// If the function does.
    pub fn enter<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(&self.name);
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let file = File::open(&path).expect("the namespace is there");
                setns(&file, CloneFlags::CLONE_NEWNET).expect("root may enter namespaces");
                function()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let status = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete the network namespace {}", self.name);
        }
    }
}

/// A bpf file system of the test's own.
#[derive(Debug)]
pub struct BpfFs {
    folder: tempfile::TempDir,
}

impl BpfFs {
    /// A new one.
    ///
    /// # Panics
    /// If it cannot be mounted: tests need root.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        mount(
            Some("bpf"),
            folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("these tests need root, to mount a bpf file system");
        Self { folder }
    }

    /// A folder in it, for pins.
    pub fn pins(&self) -> PathBuf {
        self.folder.path().join("portolan")
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.folder.path(), MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.folder.path().display());
        }
    }
}
