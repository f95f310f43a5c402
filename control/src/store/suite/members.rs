//! An etcd of three members, of which one dies; and one that speaks TLS only, to clients that it knows.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::store::Etcd;
use crate::store::etcd::Tls;

const MEMBERS: usize = 3;
const ATTEMPTS: usize = 5;

/// Members that are killed with the test.
struct Members {
    folder: TempDir,
    ports: Vec<u16>,
    processes: Vec<Child>,
}

impl Drop for Members {
    fn drop(&mut self) {
        for process in &mut self.processes {
            end(process);
        }
    }
}

fn end(process: &mut Child) {
    process.kill().expect("our own process can be killed");
    process.wait().expect("our own process can be waited for");
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

impl Members {
    fn spawn(count: usize, scheme: &str, extra: impl Fn(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports(count * 2);
        let peer = |number: usize| format!("http://127.0.0.1:{}", ports[count + number]);
        let cluster: Vec<String> = (0..count)
            .map(|number| format!("m{number}={}", peer(number)))
            .collect();
        let spawn = |number: usize| {
            let client = format!("{scheme}://127.0.0.1:{}", ports[number]);
            let log = fs::File::create(folder.path().join(format!("log{number}"))).unwrap();
            Command::new("etcd")
                .args(["--name", &format!("m{number}"), "--data-dir"])
                .arg(folder.path().join(format!("data{number}")))
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer(number)])
                .args(["--initial-advertise-peer-urls", &peer(number)])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--heartbeat-interval", "50", "--election-timeout", "500"])
                .args(extra(folder.path()))
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("this test needs etcd")
        };
        let processes = (0..count).map(spawn).collect();
        Self {
            folder,
            ports: ports[..count].to_vec(),
            processes,
        }
    }

    fn endpoints(&self, scheme: &str) -> Vec<String> {
        let url = |port: &u16| format!("{scheme}://127.0.0.1:{port}");
        self.ports.iter().map(url).collect()
    }

    /// Connects once the members answer; `None` when one of them has ended instead: another process took its port.
    async fn connect(&mut self, scheme: &str, tls: &Tls) -> Option<Etcd> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Etcd::connect(&self.endpoints(scheme), tls.clone()).await {
                Ok(store) => return Some(store),
                Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
            }
            for process in &mut self.processes {
                if process.try_wait().unwrap().is_some() {
                    return None;
                }
            }
        }
    }
}

async fn three() -> (Members, Etcd) {
    for _ in 0..ATTEMPTS {
        let mut members = Members::spawn(MEMBERS, "http", |_| Vec::new());
        if let Some(store) = members.connect("http", &Tls::default()).await {
            return (members, store);
        }
    }
    panic!("etcd did not start in {ATTEMPTS} attempts");
}

/// A member is killed under writers: nothing fails, nothing is lost or doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_death_fails_no_request() {
    let (mut members, store) = three().await;
    let mut watch = store.watch(b"/k/", None).await.unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers = (0..4).map(|writer| {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let key = format!("/k/{writer}/{count:05}");
                let put = store.put(key.as_bytes(), bytes("x"), Guard::Absent, None);
                let revision = done(put.await.expect("a write goes on at another member"));
                let found = store.get(key.as_bytes()).await.expect("and so does a read");
                assert_eq!(found.unwrap().mod_revision, revision);
                count += 1;
            }
            count
        })
    });
    let writers: Vec<_> = writers.collect();
    changes(&mut watch, 50).await;
    end(&mut members.processes.remove(0));
    let mut seen = 50;
    // What comes after the death, by the same watch.
    seen += changes(&mut watch, 200).await.len();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    assert!(written >= seen, "{written} written, {seen} seen");
    let range = store.range(all("/k/")).await.unwrap();
    assert_eq!(range.items.len(), written);
}

struct Certificates {
    authority: String,
    server: (String, String),
    client: (String, String),
}

fn certificates() -> Certificates {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let sign = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    Certificates {
        authority,
        server: sign(&["127.0.0.1", "localhost"]),
        client: sign(&["portolan-control"]),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_knows_its_clients_by_their_certificates() {
    let certificates = certificates();
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let authority = file("ca", &certificates.authority);
    let certificate = file("crt", &certificates.server.0);
    let key = file("key", &certificates.server.1);
    let flags = |_: &Path| {
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", authority.display()),
            format!("--cert-file={}", certificate.display()),
            format!("--key-file={}", key.display()),
        ]
    };
    let (certificate, key) = certificates.client;
    let known = Tls {
        authority: Some(certificates.authority.clone().into_bytes()),
        identity: Some((certificate.into_bytes(), key.into_bytes())),
    };
    for _ in 0..ATTEMPTS {
        let mut members = Members::spawn(1, "https", flags);
        let Some(store) = members.connect("https", &known).await else {
            continue;
        };
        put(&store, "/a", "1").await;
        assert_eq!(value(&store, "/a").await.as_deref(), Some("1"));
        let stranger = Tls {
            identity: None,
            ..known.clone()
        };
        let unknown = Etcd::connect(&members.endpoints("https"), stranger).await;
        assert!(unknown.is_err(), "without a certificate");
        let untrusting = Etcd::connect(&members.endpoints("https"), Tls::default()).await;
        assert!(untrusting.is_err(), "without trust in the members");
        assert!(members.folder.path().exists());
        return;
    }
    panic!("etcd did not start in {ATTEMPTS} attempts");
}
