//! Network namespaces that stand in for nodes, joined by a veth pair, and taken away with their guard.

#![allow(dead_code, reason = "each test uses the part that it needs")]

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

/// Long enough for a loaded machine, short enough to fail a test.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A named network namespace.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with a name that no other test has.
    pub fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ptl-node-{}-{number}-{role}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self { name }
    }

    /// Where it is held.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    pub fn ip(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Runs a future in it, on a runtime whose every thread is in it.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        within(&self.path(), || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(work())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let status = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("namespace {} is left behind", self.name);
        }
    }
}

/// Joins two nodes by their uplinks, called eth0, with .11 and .12 of the fabric's subnets.
pub fn join_uplinks(one: &Namespace, two: &Namespace) {
    let (a, b) = (one.name(), two.name());
    ip(&format!(
        "link add eth0 netns {a} type veth peer name eth0 netns {b}"
    ));
    for (namespace, host) in [(one, 11), (two, 12)] {
        namespace.ip(&format!("addr add 10.89.0.{host}/24 dev eth0"));
        namespace.ip(&format!("addr add fd00:89::{host}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
    }
}

/// Runs `work` on a thread of its own in the namespace held at `path`.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(path).expect("the namespace is held");
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace: needs root");
            work()
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Which network namespace the calling thread is in.
pub fn own_namespace() -> u64 {
    let metadata = std::fs::metadata("/proc/thread-self/ns/net").expect("procfs");
    metadata.ino()
}

/// An echo server on a thread of its own in a namespace; it serves until the process ends.
pub fn serve_echo(netns: &Path, address: IpAddr) -> SocketAddr {
    let listener = within(netns, || {
        TcpListener::bind((address, 0)).expect("listen in the pod")
    });
    let local = listener.local_addr().expect("a bound address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accept");
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    local
}

/// Connects from a namespace.
pub fn connect(netns: &Path, to: SocketAddr) -> std::io::Result<TcpStream> {
    within(netns, || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// One echo over an open connection.
pub fn echo(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).expect("send");
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).expect("the echo");
    assert_eq!(answer, message);
}

/// Runs `ip`, which must succeed.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {} (needs root)",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
