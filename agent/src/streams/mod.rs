//! What control asks of a node for people who look into its pods: logs, commands in containers, connections to ports.
//!
//! HTTP/1.1 over TLS on the node's addresses. Only control gets in: the agent knows it by a certificate of the cluster's
//! authority with control's name. Who may see what is decided there.
//!
//! | request | answer |
//! |---|---|
//! | `GET /logs/NAMESPACE/POD/UID/CONTAINER?follow&previous&tailLines&sinceTime&timestamps&limitBytes` | text |
//! | `POST /exec/UID/CONTAINER?command&stdin&stdout&stderr&tty` | 101, then [`portolan_wire::frames`] |
//! | `POST /attach/UID/CONTAINER?stdin&stdout&stderr` | 101, then [`portolan_wire::frames`] |
//! | `POST /portforward/UID?port` | 101, then the connection's bytes |
//! | `GET /stats` | what the node and its containers use, in JSON |

#![forbid(unsafe_code)]

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    join::NodeIdentity,
    pod::{Config, Manager, PodSnapshot},
    runtime::{bundle::Bundle, container::Launcher},
};

mod attach;
mod exec;
mod forward;
mod logs;
mod query;
mod stats;

use query::Query;

/// The port that kubelets use.
pub const PORT: u16 = 10250;
/// The common name of control's certificate.
const CONTROL: &str = "portolan-control";
/// How long a connection may take to say who it is.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a new address may take to be usable.
const ADDRESS: Duration = Duration::from_secs(5);

/// What an answer carries.
type Body = BoxBody<Bytes, io::Error>;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    /// The port is taken, or the address is not this node's.
    #[error("can't listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node's identity is no good for a server.
    #[error("can't serve with the node's certificate")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The node, as its streams see it.
pub struct Node {
    config: Config,
    manager: Arc<Manager>,
    launcher: Launcher,
    /// What was counted last for `stats`.
    sample: tokio::sync::Mutex<Option<stats::Sample>>,
}

impl Node {
    /// A node whose pods a manager runs.
    pub fn new(config: Config, manager: Arc<Manager>) -> Self {
        let launcher = Launcher::new(config.executable.clone());
        Self {
            config,
            manager,
            launcher,
            sample: tokio::sync::Mutex::default(),
        }
    }

    fn pod(&self, uid: &str) -> Option<PodSnapshot> {
        let pods = self.manager.snapshot();
        pods.into_iter().find(|pod| pod.uid == uid)
    }

    /// The files of a running container.
    fn running(&self, uid: &str, container: &str) -> Result<Bundle, Refusal> {
        let missing = || Refusal::not_found(format!("container not found (\"{container}\")"));
        let pod = self.pod(uid).ok_or_else(missing)?;
        let mut containers = pod.containers.iter();
        let found = containers.find(|one| one.name == container);
        Ok(self.config.bundle(uid, &found.ok_or_else(missing)?.id))
    }
}

/// Why a request gets nothing.
#[derive(Debug)]
struct Refusal {
    code: StatusCode,
    message: String,
}

impl Refusal {
    fn not_found(message: String) -> Self {
        Self {
            code: StatusCode::NOT_FOUND,
            message,
        }
    }

    fn bad_request(message: impl Into<String>) -> Self {
        Self {
            code: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            code: StatusCode::INTERNAL_SERVER_ERROR,
            message: crate::errors::chain(error),
        }
    }
}

/// Listens on the node's addresses.
pub struct StreamServer {
    listeners: Vec<TcpListener>,
    acceptor: TlsAcceptor,
}

impl StreamServer {
    /// Binds `addresses`, and makes ready to show the node's certificate.
    pub async fn bind(
        addresses: impl IntoIterator<Item = SocketAddr>,
        identity: &NodeIdentity,
    ) -> Result<Self, StreamsError> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(identity)?));
        let mut listeners = Vec::new();
        for address in addresses {
            let listener = listen(address).await;
            listeners.push(listener.map_err(|source| StreamsError::Listen { address, source })?);
        }
        Ok(Self {
            listeners,
            acceptor,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let each = self.listeners.iter();
        each.filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// Serves until dropped.
    pub async fn run(self, node: Arc<Node>) {
        let mut accepting = tokio::task::JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(accept(listener, self.acceptor.clone(), Arc::clone(&node)));
        }
        while accepting.join_next().await.is_some() {}
    }
}

/// A new IPv6 address is not there until the kernel has asked whether another has it.
async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let begun = tokio::time::Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && begun.elapsed() < ADDRESS =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            other => return other,
        }
    }
}

fn server_config(identity: &NodeIdentity) -> Result<ServerConfig, StreamsError> {
    fn fail(error: impl std::error::Error + Send + Sync + 'static) -> StreamsError {
        StreamsError::Identity(Box::new(error))
    }
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(identity.ca.as_bytes()).map_err(fail)?;
    roots.add(ca).map_err(fail)?;
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(fail)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(fail)?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(fail)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(fail)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, node: Arc<Node>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, node) = (acceptor.clone(), Arc::clone(&node));
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, acceptor, node).await {
                        tracing::debug!(%error, "a connection of control's ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection of control's");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, node: Arc<Node>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream))
        .await
        .map_err(late)??;
    let shown = stream.get_ref().1.peer_certificates();
    if !shown.is_some_and(|certificates| certificates.first().is_some_and(is_control)) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    let service = service_fn(move |request| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Infallible>(answer(&node, request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

fn is_control(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let mut names = parsed.subject().iter_common_name();
    names.next().and_then(|name| name.as_str().ok()) == Some(CONTROL)
}

async fn answer(node: &Arc<Node>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().trim_matches('/').to_owned();
    let query = Query::of(request.uri());
    let parts: Vec<&str> = path.split('/').collect();
    let answered = match (request.method(), parts.as_slice()) {
        (&Method::GET, ["logs", namespace, pod, uid, container]) => {
            logs::answer(node, (namespace, pod, uid, container), &query)
        }
        (&Method::POST, ["exec", uid, container]) => {
            exec::answer(node, uid, container, &query, request)
        }
        (&Method::POST, ["attach", uid, container]) => {
            attach::answer(node, uid, container, &query, request).await
        }
        (&Method::GET, ["stats"]) => stats::answer(node).await,
        (&Method::POST, ["portforward", uid]) => forward::answer(node, uid, &query, request).await,
        _ => Err(Refusal::not_found("404 page not found".to_owned())),
    };
    answered.unwrap_or_else(|refusal| {
        let mut response = Response::new(text(refusal.message));
        *response.status_mut() = refusal.code;
        response
    })
}

fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed()
}

/// 101: what follows is no longer HTTP.
fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(text(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(
        http::header::CONNECTION,
        http::HeaderValue::from_static("Upgrade"),
    );
    headers.insert(
        http::header::UPGRADE,
        http::HeaderValue::from_static(protocol),
    );
    response
}
