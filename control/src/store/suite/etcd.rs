//! The suite on a real etcd: one process a test, on free ports of the loopback, with its own folder.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::store::Etcd;
use crate::store::etcd::{ConnectError, Tls};

/// Another process may take a port between our look and etcd's start.
const ATTEMPTS: usize = 5;

struct Server {
    folder: TempDir,
    ports: [u16; 2],
    process: Child,
    store: Option<Etcd>,
}

impl Server {
    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports[0])
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until etcd answers; `None` when it ended instead.
    async fn connect(&mut self) -> Option<Etcd> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let refused =
                match Etcd::connect_limited(&[self.endpoint()], Tls::default(), LIMITS).await {
                    Ok(store) => return Some(store),
                    Err(error) => error,
                };
            if self.process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "{refused:?}\n{}", self.log());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&mut self.process);
    }
}

fn kill(process: &mut Child) {
    process.kill().expect("our own process can be killed");
    process.wait().expect("our own process can be waited for");
}

fn free_ports() -> [u16; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn spawn(folder: &TempDir, ports: [u16; 2]) -> Child {
    let [client, peer] = ports.map(|port| format!("http://127.0.0.1:{port}"));
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.path().join("log"))
        .unwrap();
    Command::new("etcd")
        .args(["--name", "test", "--data-dir"])
        .arg(folder.path().join("data"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("test={peer}")])
        .args(["--heartbeat-interval", "50", "--election-timeout", "250"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| {
            panic!("this test needs etcd (Debian: etcd-server, or `cargo xtask setup`): {error}")
        })
}

impl Subject for Server {
    async fn start() -> Self {
        for _ in 0..ATTEMPTS {
            let folder = tempfile::tempdir().unwrap();
            let ports = free_ports();
            let process = spawn(&folder, ports);
            let mut server = Self {
                folder,
                ports,
                process,
                store: None,
            };
            server.store = server.connect().await;
            if server.store.is_some() {
                return server;
            }
            println!("etcd ended at once:\n{}", server.log());
        }
        panic!("etcd did not start in {ATTEMPTS} attempts");
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone().unwrap())
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Kills etcd without warning. Our side stays as it is and has to find its way back.
    async fn restart(&mut self) {
        kill(&mut self.process);
        self.process = spawn(&self.folder, self.ports);
        let store = self.store();
        let answered = async { while store.revision().await.is_err() {} };
        timeout(PATIENCE, answered)
            .await
            .expect("etcd is back in time");
    }
}

suite!(Server);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_survives_a_restart_of_etcd() {
    let mut server = Server::start().await;
    let store = server.store();
    let mut watch = store.watch(b"/k/", None).await.unwrap();
    put(&*store, "/k/1", "before").await;
    assert_eq!(lines(&mut watch, 1).await, ["2 /k/1=before"]);
    server.restart().await;
    put(&*store, "/k/1", "after").await;
    assert_eq!(lines(&mut watch, 1).await, ["3 /k/1=after was before"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_server_serves_watches_of_the_past() {
    let server = Server::start().await;
    for number in 0..3 {
        put(&*server.store(), "/k", &number.to_string()).await;
    }
    let second = Etcd::connect_limited(&[server.endpoint()], Tls::default(), LIMITS)
        .await
        .unwrap();
    let mut watch = second.watch(b"/k", Some(2)).await.unwrap();
    assert_eq!(
        lines(&mut watch, 3).await,
        ["2 /k=0", "3 /k=1 was 0", "4 /k=2 was 1"]
    );
    put(&*server.store(), "/k", "3").await;
    assert_eq!(lines(&mut watch, 1).await, ["5 /k=3 was 2"]);
}

#[tokio::test]
async fn what_does_not_answer_is_named() {
    let [port, _] = free_ports();
    let endpoint = format!("http://127.0.0.1:{port}");
    let Err(error) = Etcd::connect(std::slice::from_ref(&endpoint), Tls::default()).await else {
        panic!("nobody listens there");
    };
    assert!(error.to_string().contains(&endpoint), "{error}");
    let Err(error) = Etcd::connect(&["nonsense".to_owned()], Tls::default()).await else {
        panic!("that is no address");
    };
    assert!(matches!(error, ConnectError::Endpoint(_)), "{error:?}");
}
