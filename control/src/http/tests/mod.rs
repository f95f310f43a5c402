//! The API over real TLS, asked by stock kubectl and by hand.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{Agents, Health, Server, serve};
use crate::api::engine::{Engine, Running};
use crate::api::rbac::policy;
use crate::api::{Api, Caller, WriteOptions};
use crate::pki::{Authority, Identity, Kubeconfig, server_config};
use crate::resource::rows::NAMESPACES;
use crate::store::Store;
use crate::store::embedded::Embedded;

mod access;
mod applying;
mod budgets;
mod clients;
mod generators;
mod golden;
mod kubectl;
mod protocol;
mod semantics;
mod storage;
mod streams;

/// How long one question may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A server on a port of its own, with an administrator's kubeconfig.
pub struct Cluster {
    running: Running,
    pub health: Health,
    authority: Authority,
    admin: Identity,
    address: SocketAddr,
    folder: tempfile::TempDir,
    _server: AbortOnDropHandle<()>,
}

pub async fn cluster() -> Cluster {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open(folder.path().join("store"))
        .await
        .expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let authority = Authority::load(&*store).await.expect("an authority");
    let running = Engine::start(store, Vec::new()).await.expect("an engine");
    let admin = authority.admin().expect("an administrator");
    let identity = authority
        .server(&["127.0.0.1".to_owned()])
        .expect("a server's certificate");
    let config = server_config(&authority, &identity).expect("a TLS configuration");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let health = Health::default();
    let agents = Agents::new(&authority).expect("a client of agents");
    let server = Server::new(
        running.engine.clone(),
        health.clone(),
        agents,
        Arc::default(),
    );
    let serving = async move {
        let (listeners, tls, stop) = (vec![listener], Arc::new(config), CancellationToken::new());
        let ended = serve(listeners, tls, server, axum::Router::new(), stop).await;
        ended.expect("the server goes on");
    };
    let kubeconfig = Kubeconfig {
        server: &format!("https://{address}"),
        authority: &authority,
        identity: &admin,
    };
    std::fs::write(folder.path().join("kubeconfig"), kubeconfig.render()).expect("a kubeconfig");
    let namespace = json!({"metadata": {"name": "default"}});
    running
        .engine
        .create(
            &Caller::system("test"),
            NAMESPACES,
            None,
            namespace,
            &WriteOptions::default(),
        )
        .await
        .expect("a namespace");
    for (resource, object) in policy::objects() {
        let (caller, options) = (Caller::system("test"), WriteOptions::default());
        let made = running
            .engine
            .create(&caller, resource, None, object, &options);
        made.await.expect("a role or binding");
    }
    Cluster {
        running,
        health,
        authority,
        admin,
        address,
        folder,
        _server: AbortOnDropHandle::new(tokio::spawn(serving)),
    }
}

/// What a program said.
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

fn kubectl_path() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/kubectl");
    if unpacked.exists() {
        unpacked
    } else {
        PathBuf::from("kubectl")
    }
}

impl Cluster {
    /// A kubectl with this cluster's kubeconfig and a cache of its own.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(kubectl_path());
        command
            .args(arguments)
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("KUBECACHEDIR", self.folder.path().join("cache"))
            .env("HOME", self.folder.path())
            .kill_on_drop(true);
        command
    }

    /// Runs kubectl with a manifest on its standard input ("-f -").
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self
            .kubectl_command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need kubectl: `cargo xtask setup` unpacks it");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin
            .write_all(input.as_bytes())
            .await
            .expect("kubectl reads");
        drop(stdin);
        let output = tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .expect("kubectl ends in time")
            .expect("kubectl runs");
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs kubectl.
    pub async fn kubectl(&self, arguments: &[&str]) -> Said {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl, which must succeed; returns what it printed.
    pub async fn kubectl_ok(&self, arguments: &[&str]) -> String {
        let said = self.kubectl(arguments).await;
        assert!(said.ok, "kubectl {arguments:?}: {}{}", said.out, said.err);
        said.out
    }

    /// Applies a manifest, which must succeed.
    pub async fn apply(&self, manifest: &str) -> String {
        let said = self.kubectl_with(&["apply", "-f", "-"], manifest).await;
        assert!(said.ok, "{}{}", said.out, said.err);
        said.out
    }

    fn client_config(&self, as_admin: bool) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.certificate().clone())
            .expect("a certificate");
        let builder = ClientConfig::builder().with_root_certificates(roots);
        if !as_admin {
            return builder.with_no_client_auth();
        }
        let key = PrivatePkcs8KeyDer::from(self.admin.key.serialize_der());
        builder
            .with_client_auth_cert(
                vec![self.admin.certificate.clone()],
                PrivateKeyDer::Pkcs8(key),
            )
            .expect("a client certificate")
    }

    /// Opens a TLS connection.
    pub async fn connect(&self, as_admin: bool) -> tokio_rustls::client::TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(self.client_config(as_admin)));
        let stream = TcpStream::connect(self.address)
            .await
            .expect("a connection");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        connector.connect(name, stream).await.expect("TLS")
    }

    /// Sends a request by hand; returns the status code, the head and the body.
    pub async fn send(&self, as_admin: bool, head: &str, body: &[u8]) -> (u16, String, String) {
        let mut stream = self.connect(as_admin).await;
        let request = format!(
            "{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let exchange = async {
            // The server may answer before it has read a body that is too large.
            let sent = async {
                stream.write_all(request.as_bytes()).await?;
                stream.write_all(body).await?;
                stream.flush().await
            };
            if let Err(error) = sent.await {
                tracing::debug!(%error, "the server did not read all");
            }
            let mut answer = Vec::new();
            if let Err(error) = stream.read_to_end(&mut answer).await {
                tracing::debug!(%error, "the connection broke off");
            }
            String::from_utf8_lossy(&answer).into_owned()
        };
        let answer = tokio::time::timeout(LIMIT, exchange)
            .await
            .expect("an answer in time");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a code"), head.to_owned(), body.to_owned())
    }

    /// Sends a request with a JSON body as the administrator.
    pub async fn ask(&self, line: &str, body: &Value) -> (u16, Value) {
        let head = format!("{line} HTTP/1.1\r\nContent-Type: application/json");
        let (code, _, answer) = self.send(true, &head, body.to_string().as_bytes()).await;
        let value = serde_json::from_str(&answer);
        (
            code,
            value.unwrap_or_else(|error| panic!("{error}: {answer}")),
        )
    }
}
