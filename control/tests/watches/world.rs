//! Three members of etcd and three control servers, each server behind a wire of its own that can be cut.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portolan_control::store::Etcd;
use portolan_control::store::{Store, etcd::Tls};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

pub const NAMESPACE: &str = "watched";
/// Where the watched objects are in the store.
pub const PREFIX: &str = "/registry/core/configmaps/watched/";
const COUNT: usize = 3;
const PATIENCE: Duration = Duration::from_mins(1);
/// How long a process is paused, or a server cut off.
const AWAY: std::ops::Range<u64> = 200..2500;

/// A process with what it takes to start it again.
struct Program {
    child: Child,
    start: Box<dyn Fn() -> Child + Send>,
}

impl Program {
    fn new(start: impl Fn() -> Child + Send + 'static) -> Self {
        Self {
            child: start(),
            start: Box::new(start),
        }
    }

    fn end(&mut self) {
        self.child.kill().expect("our own process can be killed");
        self.child
            .wait()
            .expect("our own process can be waited for");
    }

    fn start_again(&mut self) {
        self.child = (self.start)();
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process's number");
        kill(Pid::from_raw(id), signal).expect("our own process takes signals");
    }
}

/// See the file's front page.
pub struct World {
    members: Vec<Program>,
    servers: Vec<Program>,
    /// Whether each server is cut off from etcd.
    cuts: Vec<watch::Sender<bool>>,
    clients: Vec<Client>,
    store: Etcd,
    _folder: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        for program in self.servers.iter_mut().chain(&mut self.members) {
            // A paused process ends by this all the same.
            program.end();
        }
    }
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    listeners.iter().map(port).collect()
}

fn spawn(mut command: Command, log: &std::path::Path) -> Child {
    let log = File::options().create(true).append(true).open(log);
    let log = log.expect("a log file");
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a second handle"))
        .stderr(log)
        .spawn()
        .expect("etcd (Debian: etcd-server, or `cargo xtask setup`) and control start")
}

impl World {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ports = free_ports(COUNT * 3);
        let (clients, rest) = ports.split_at(COUNT);
        let (peers, apis) = rest.split_at(COUNT);
        let members = (0..COUNT).map(|number| member(&folder, clients, peers, number));
        let members = members.collect();
        let endpoints: Vec<String> = clients
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"))
            .collect();
        let store = connect(&endpoints).await;
        let mut cuts = Vec::new();
        let mut servers = Vec::new();
        for (number, port) in apis.iter().enumerate() {
            let (cut, is_cut) = watch::channel(false);
            let wires = join_all(clients.iter().map(|member| wire(*member, is_cut.clone()))).await;
            servers.push(server(&folder, number, *port, &wires));
            cuts.push(cut);
        }
        let mut clients = Vec::new();
        for number in 0..COUNT {
            clients.push(client(&folder, number).await);
        }
        let world = Self {
            members,
            servers,
            cuts,
            clients,
            store,
            _folder: folder,
        };
        let namespaces: Api<Namespace> = Api::all(world.clients[0].clone());
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        let namespace = serde_json::from_value(namespace).expect("a Namespace");
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .expect("made");
        world
    }

    pub fn clients(&self) -> Vec<Client> {
        self.clients.clone()
    }

    pub fn store(&self) -> &Etcd {
        &self.store
    }

    pub async fn revision(&self) -> i64 {
        patiently(async || self.store.revision().await.ok()).await
    }

    /// A last write, which every watcher has to see; its revision.
    pub async fn mark(&self) -> i64 {
        patiently(async || {
            for client in &self.clients {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
                let map = json!({"metadata": {"generateName": "end-"}});
                let map = serde_json::from_value(map).expect("a ConfigMap");
                let parameters = PostParams::default();
                let made = maps.create(&parameters, &map);
                let made = tokio::time::timeout(Duration::from_secs(2), made).await;
                if let Ok(Ok(made)) = made {
                    return made.metadata.resource_version?.parse().ok();
                }
            }
            None
        })
        .await
    }

    /// One of what may happen to one of them; it is well again at the end.
    pub async fn suffer(&mut self, random: &mut fastrand::Rng) {
        let one = random.usize(..COUNT);
        let away = Duration::from_millis(random.u64(AWAY));
        let fault = random.u8(..5);
        println!("fault {fault} of {one} for {away:?}");
        match fault {
            0 | 1 => {
                let programs = if fault == 0 {
                    &mut self.servers
                } else {
                    &mut self.members
                };
                programs[one].end();
                tokio::time::sleep(away / 2).await;
                programs[one].start_again();
                tokio::time::sleep(away / 2).await;
            }
            2 | 3 => {
                let programs = if fault == 2 {
                    &self.servers
                } else {
                    &self.members
                };
                programs[one].signal(Signal::SIGSTOP);
                tokio::time::sleep(away).await;
                programs[one].signal(Signal::SIGCONT);
            }
            _ => {
                self.cuts[one].send_replace(true);
                tokio::time::sleep(away).await;
                self.cuts[one].send_replace(false);
            }
        }
    }
}

fn member(folder: &TempDir, clients: &[u16], peers: &[u16], number: usize) -> Program {
    let path = folder.path().to_owned();
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let (client, peer) = (url(clients[number]), url(peers[number]));
    let cluster: Vec<String> = peers
        .iter()
        .enumerate()
        .map(|(number, port)| format!("m{number}={}", url(*port)))
        .collect();
    let cluster = cluster.join(",");
    Program::new(move || {
        let mut etcd = Command::new("etcd");
        etcd.args(["--name", &format!("m{number}"), "--data-dir"])
            .arg(path.join(format!("member{number}")))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        spawn(etcd, &path.join(format!("member{number}.log")))
    })
}

fn server(folder: &TempDir, number: usize, port: u16, wires: &[u16]) -> Program {
    let path = folder.path().to_owned();
    let wires: Vec<String> = wires
        .iter()
        .map(|port| format!("http://127.0.0.1:{port}"))
        .collect();
    let store = format!("etcd:{}", wires.join(","));
    Program::new(move || {
        let mut control = Command::new(env!("CARGO_BIN_EXE_portolan-control"));
        control
            .args(["serve", "--advertise=127.0.0.1"])
            .arg(format!("--listen=127.0.0.1:{port}"))
            .arg(format!("--store={store}"))
            .arg("--encryption-key-file")
            .arg(path.join("keys"))
            .arg("--admin-kubeconfig")
            .arg(path.join(format!("kubeconfig{number}")));
        spawn(control, &path.join(format!("server{number}.log")))
    })
}

/// A way to a member that carries nothing while it is cut; nobody hears that it is.
async fn wire(member: u16, mut is_cut: watch::Receiver<bool>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        loop {
            let Ok((near, _)) = listener.accept().await else {
                continue;
            };
            if is_cut.wait_for(|is_cut| !is_cut).await.is_err() {
                return;
            }
            tokio::spawn(carry(near, member, is_cut.clone()));
        }
    });
    port
}

async fn carry(mut near: TcpStream, member: u16, mut is_cut: watch::Receiver<bool>) {
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", member)).await else {
        return;
    };
    tokio::select! {
        cut = is_cut.wait_for(|is_cut| *is_cut) => {
            if cut.is_err() {
                return;
            }
        }
        // What ends, ends for both sides.
        ended = copy_bidirectional(&mut near, &mut far) => {
            if let Err(error) = ended {
                println!("a wire to a member broke: {error}");
            }
            return;
        }
    }
    // Silence, and when the network is back the end: bytes may be lost that were on their way.
    drop(is_cut.wait_for(|is_cut| !is_cut).await);
}

async fn patiently<T>(attempt: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it is well again in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn connect(endpoints: &[String]) -> Etcd {
    patiently(async || Etcd::connect(endpoints, Tls::default()).await.ok()).await
}

/// A client of one server, once that is ready.
async fn client(folder: &TempDir, number: usize) -> Client {
    let path = folder.path().join(format!("kubeconfig{number}"));
    patiently(async || {
        let file = Kubeconfig::read_from(&path).ok()?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options).await.ok()?;
        config.default_retry = false;
        let client = Client::try_from(config).ok()?;
        let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
        client.request_text(request).await.ok()?;
        Some(client)
    })
    .await
}
