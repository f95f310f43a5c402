//! A node of its own for each test: state folder, control group, networks, images, and a manager that may be replaced.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod archive;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::{
    api::core::v1::{ConfigMap, ContainerStatus, PersistentVolume, Pod, PodStatus, Secret},
    jiff::{SignedDuration, Timestamp},
};
use portolan_agent::{
    names::{Directory, Names},
    network::{HostPort, NetworkError, PodNetwork, PodNetworkStatus},
    pod::{
        Capacity, Config, Manager, PodCommand, PodRef, PodReport, ReferenceError, References,
        Token, TokenRequest,
    },
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// The image that most tests run: busybox.
pub const IMAGE: &str = "test/busybox:1";

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A node with a manager.
pub struct Node {
    pub config: Config,
    pub manager: Option<Manager>,
    pub network: Arc<Networks>,
    pub references: Arc<Objects>,
    commands: Option<mpsc::Sender<PodCommand>>,
    seen: watch::Receiver<Seen>,
    state: tempfile::TempDir,
}

/// How many processes a container may have.
pub const PIDS: i64 = 256;

/// What the manager has told.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub statuses: BTreeMap<String, PodStatus>,
    pub events: Vec<(String, String, String)>,
    pub terminated: Vec<String>,
}

impl Node {
    /// With busybox as its only image.
    pub async fn new() -> Node {
        let node = Node::empty().await;
        let archive = node.config.state_dir.join("busybox.tar");
        archive::busybox(&archive);
        portolan_agent::image::import(&node.config.state_dir, Some(IMAGE), &archive, &mut |_| ())
            .expect("import busybox");
        node
    }

    /// Without images.
    pub async fn empty() -> Node {
        assert!(nix::unistd::geteuid().is_root(), "containers need root");
        let state = tempfile::Builder::new()
            .prefix("ptl-runtime-")
            .tempdir()
            .expect("a temporary folder");
        let name = format!(
            "ptl-runtime-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let config = Config {
            state_dir: state.path().to_owned(),
            cgroup_root: PathBuf::from(&name),
            node_name: "n1".into(),
            node_addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 89, 0, 11))],
            resolv_conf: state.path().join("resolv.conf"),
            capacity: Capacity {
                cpu_millis: 2000,
                memory_bytes: 4 << 30,
                container_pids: PIDS,
            },
            executable: PathBuf::from(env!("CARGO_BIN_EXE_portolan-agent")),
        };
        let mut node = Node {
            config,
            manager: None,
            network: Arc::new(Networks { prefix: name }),
            references: Arc::default(),
            commands: None,
            seen: watch::channel(Seen::default()).1,
            state,
        };
        node.start().await;
        node
    }

    /// Starts a manager over what is on disk.
    pub async fn start(&mut self) {
        let (network, references) = (Arc::clone(&self.network), Arc::clone(&self.references));
        let (channels, manager) = Manager::start(self.config.clone(), network, references)
            .await
            .expect("a manager");
        let (tell, seen) = watch::channel(Seen::default());
        let mut reports = channels.reports;
        tokio::spawn(async move {
            while let Some(report) = reports.recv().await {
                tell.send_modify(|seen| match report {
                    PodReport::Status { pod, status } => {
                        seen.statuses.insert(pod.uid, *status);
                    }
                    PodReport::Event {
                        pod,
                        reason,
                        message,
                        ..
                    } => {
                        seen.events.push((pod.uid, reason.to_owned(), message));
                    }
                    PodReport::Died { .. } => {}
                    PodReport::Terminated { pod } => seen.terminated.push(pod.uid),
                });
            }
        });
        self.manager = Some(manager);
        self.commands = Some(channels.commands);
        self.seen = seen;
    }

    /// Stops the manager; containers run on.
    pub async fn stop(&mut self) {
        self.commands = None;
        if let Some(manager) = self.manager.take() {
            manager.shutdown().await;
        }
    }

    /// Gives the manager a pod of this spec, and returns its uid.
    pub async fn run(&self, spec: Value) -> String {
        let pod = pod(spec);
        let uid = pod.metadata.uid.clone().expect("a uid");
        self.apply(pod).await;
        uid
    }

    pub async fn apply(&self, pod: Pod) {
        self.command(PodCommand::Apply(Arc::new(pod))).await;
    }

    pub async fn command(&self, command: PodCommand) {
        let commands = self.commands.as_ref().expect("a running manager");
        commands.send(command).await.expect("a living manager");
    }

    /// Waits until what the manager has told satisfies `test`.
    pub async fn until(&self, what: &str, test: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| test(seen))).await;
        if let Ok(found) = waited {
            return found.expect("a living manager").clone();
        }
        panic!("never seen: {what}; last: {:#?}", self.seen.borrow());
    }

    /// Waits for a pod's phase.
    pub async fn phase(&self, uid: &str, phase: &str) -> PodStatus {
        let seen = self
            .until(phase, |seen| {
                seen.statuses
                    .get(uid)
                    .is_some_and(|status| status.phase.as_deref() == Some(phase))
            })
            .await;
        seen.statuses[uid].clone()
    }

    /// Waits until the first container waits for this reason.
    pub async fn waiting(&self, uid: &str, reason: &str) -> ContainerStatus {
        let seen = self
            .until(reason, |seen| {
                seen.statuses
                    .get(uid)
                    .is_some_and(|status| waiting_reason(&first(status)).as_deref() == Some(reason))
            })
            .await;
        first(&seen.statuses[uid])
    }

    /// Waits for an event that contains `text`.
    pub async fn event(&self, reason: &str, text: &str) {
        self.until(text, |seen| {
            seen.events
                .iter()
                .any(|(_, own, message)| own == reason && message.contains(text))
        })
        .await;
    }

    /// A container's log, as far as it is written.
    pub fn log(&self, uid: &str, container: &str, restart: u32) -> String {
        let path = self
            .config
            .logs_dir()
            .join(format!("default_p-{uid}_{uid}"))
            .join(container);
        let text = std::fs::read_to_string(path.join(format!("{restart}.log"))).unwrap_or_default();
        let mut lines = String::new();
        for line in text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)) {
            lines.push_str(line);
            lines.push('\n');
        }
        lines
    }

    /// Waits for a line in a container's log.
    pub async fn logged(&self, uid: &str, container: &str, text: &str) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let log = self.log(uid, container, 0);
            if log.contains(text) {
                return log;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "never logged: {text:?}; log: {log}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until no container of a pod has left files.
    pub async fn cleared(&self, uid: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !self.bundles(uid).is_empty() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "left behind: {:?}",
                self.bundles(uid)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The folders of a pod's containers.
    pub fn bundles(&self, uid: &str) -> Vec<PathBuf> {
        let folder = self.config.pods_dir().join(uid).join("containers");
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries
            .map(|entry| entry.expect("an entry").path())
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.manager = None;
        if std::env::var_os("PORTOLAN_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.config.state_dir.display());
            return;
        }
        if std::thread::panicking() {
            show_shim_logs(&self.config.pods_dir());
        }
        if let Err(error) =
            portolan_agent::pod::teardown(&self.config.state_dir, &self.config.cgroup_root)
        {
            eprintln!("teardown: {error}");
        }
    }
}

fn show_shim_logs(pods: &Path) {
    for pod in std::fs::read_dir(pods).into_iter().flatten().flatten() {
        for container in std::fs::read_dir(pod.path().join("containers"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let text =
                std::fs::read_to_string(container.path().join("shim.log")).unwrap_or_default();
            eprintln!("--- {}\n{text}", container.path().display());
        }
    }
}

/// Notes what was found out of the kernel for whoever collects it: `cargo xtask vm` does.
pub fn note(fact: &str) {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("PORTOLAN_FACTS") else {
        return;
    };
    std::fs::File::options()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(format!("{fact}\n").as_bytes()))
        .expect("facts can be written down");
}

/// The first two numbers of the kernel's release.
pub fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

/// A pod of namespace default with a name and uid of its own.
#[allow(
    clippy::needless_pass_by_value,
    reason = "specs are written where they are used"
)]
pub fn pod(spec: Value) -> Pod {
    let uid = format!("u{}", NEXT.fetch_add(1, Ordering::Relaxed));
    serde_json::from_value(json!({
        "metadata": { "namespace": "default", "name": format!("p-{uid}"), "uid": uid, "labels": { "app": "x" } },
        "spec": spec,
    }))
    .expect("a valid pod")
}

/// A spec of one container that runs a shell script.
pub fn script(text: &str) -> Value {
    json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [container("c", text)] })
}

/// A container that runs a shell script.
pub fn container(name: &str, text: &str) -> Value {
    json!({ "name": name, "image": IMAGE, "command": ["sh", "-c", text] })
}

/// The first container's status.
pub fn first(status: &PodStatus) -> ContainerStatus {
    status
        .container_statuses
        .as_ref()
        .and_then(|all| all.first())
        .cloned()
        .unwrap_or_default()
}

pub fn waiting_reason(status: &ContainerStatus) -> Option<String> {
    status.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

/// Exit code and reason of a container that has ended.
pub fn end(status: &ContainerStatus) -> (i32, String) {
    let state = status.state.clone().unwrap_or_default();
    let end = state
        .terminated
        .unwrap_or_else(|| panic!("not ended: {status:#?}"));
    (end.exit_code, end.reason.unwrap_or_default())
}

/// Network namespaces with nothing but a loopback device.
pub struct Networks {
    prefix: String,
}

impl Networks {
    fn name(&self, uid: &str) -> String {
        format!("{}-{uid}", self.prefix)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&format!("{}-", self.prefix)) {
                ip(&["netns", "del", &name]);
            }
        }
    }
}

fn ip(args: &[&str]) -> bool {
    Command::new("ip")
        .args(args)
        .status()
        .expect("iproute2 is installed")
        .success()
}

#[async_trait]
impl PodNetwork for Networks {
    async fn attach(&self, uid: &str, _: &[HostPort]) -> Result<PodNetworkStatus, NetworkError> {
        let name = self.name(uid);
        let netns = Path::new("/run/netns").join(&name);
        if !netns.exists() {
            assert!(ip(&["netns", "add", &name]), "a network namespace");
            assert!(
                ip(&["-n", &name, "link", "set", "lo", "up"]),
                "a loopback device"
            );
        }
        Ok(PodNetworkStatus {
            netns,
            addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 244, 0, 7))],
            host_interface: "none".into(),
        })
    }

    async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let name = self.name(uid);
        if Path::new("/run/netns").join(&name).exists() {
            assert!(ip(&["netns", "del", &name]), "the network namespace goes");
        }
        Ok(())
    }
}

/// What pods may refer to. Tokens are numbered.
#[derive(Default)]
pub struct Objects {
    pub tokens: AtomicU32,
    pub names: Mutex<Directory>,
    /// By the claims that they are bound to.
    pub volumes: Mutex<BTreeMap<String, PersistentVolume>>,
    pub config_maps: Mutex<BTreeMap<String, ConfigMap>>,
    pub secrets: Mutex<BTreeMap<String, Secret>>,
}

#[async_trait]
impl References for Objects {
    async fn config_map(&self, _namespace: &str, name: &str) -> Result<ConfigMap, ReferenceError> {
        let found = self
            .config_maps
            .lock()
            .expect("no test panics with it")
            .get(name)
            .cloned();
        found.ok_or_else(|| ReferenceError::NotFound {
            kind: "configmap",
            name: name.into(),
        })
    }

    async fn secret(&self, _namespace: &str, name: &str) -> Result<Secret, ReferenceError> {
        let found = self
            .secrets
            .lock()
            .expect("no test panics with it")
            .get(name)
            .cloned();
        found.ok_or_else(|| ReferenceError::NotFound {
            kind: "secret",
            name: name.into(),
        })
    }

    async fn claimed(&self, _: &str, claim: &str) -> Result<PersistentVolume, ReferenceError> {
        let volumes = self.volumes.lock().expect("no test panics with it");
        let found = volumes.get(claim).cloned();
        found.ok_or_else(|| ReferenceError::Unbound(claim.into()))
    }

    fn names(&self) -> Names {
        Names::of(self.names.lock().expect("no test panics with it").clone())
    }

    async fn token(&self, pod: &PodRef, wanted: &TokenRequest) -> Result<Token, ReferenceError> {
        let number = self.tokens.fetch_add(1, Ordering::Relaxed);
        let text = format!(
            "{number} of {}/{} for {:?} and {}",
            pod.namespace, wanted.account, wanted.audience, pod.name
        );
        let expires = Timestamp::now() + SignedDuration::from_secs(wanted.seconds);
        Ok(Token { text, expires })
    }
}
