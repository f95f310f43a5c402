//! `portolan-control serve`: opens the store, joins the parts, and runs them until told to stop.
//!
//! ```text
//! listen -> store -> authority -> allocations -> engine -> HTTP and gRPC on one TLS port
//!                                                   |--> controllers, scheduler, routing, compaction
//!                                                   '--> namespaces, the Service "kubernetes", join token -> ready
//! ```

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::allocation::admission::ServiceAdmission;
use crate::allocation::{Allocations, Ranges};
use crate::api::account::AccountAdmission;
use crate::api::classes::ClassAdmission;
use crate::api::engine::{self, Engine};
use crate::api::{Api, Status};
use crate::bootstrap::{self, Cluster};
use crate::cli::{self, Serve, StoreAddress};
use crate::controllers::clock::SystemClock;
use crate::controllers::resources::Kind;
use crate::controllers::{self, Setup};
use crate::grpc::{self, token};
use crate::http::{self, Agents, Check, Health, Server};
use crate::pki::{self, Authority, Kubeconfig, write_private};
use crate::random;
use crate::routing::{self, Publisher};
use crate::scheduler;
use crate::store::embedded::OpenError;
use crate::store::etcd::ConnectError;
use crate::store::{self, Embedded, Etcd, Store};

/// Letters that tell one life of one server from all others.
const EPOCH_LENGTH: usize = 12;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long controllers may take to end.
const GRACE: Duration = Duration::from_secs(3);
/// How long the token of --join-token-file is valid.
const TOKEN_LIFE: Duration = Duration::from_hours(24);

/// Why the server did not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags that don't go together.
    #[error("{0}")]
    Flags(String),
    /// An address is in use or not ours.
    #[error("can't listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store's file can't be used.
    #[error("can't open the store")]
    Embedded(#[from] OpenError),
    /// etcd can't be used.
    #[error("can't reach the store")]
    Etcd(#[from] ConnectError),
    /// Certificates can't be had.
    #[error(transparent)]
    Pki(#[from] pki::Error),
    /// A file can't be written.
    #[error("can't write {path}", path = path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What every cluster has could not be made.
    #[error("can't make what every cluster has")]
    Api(#[from] Status),
    /// A part that never ends did.
    #[error("a part of the control plane failed")]
    Task(#[source] JoinError),
    /// The TLS port broke.
    #[error("the API server failed")]
    Http(#[from] http::Error),
}

/// Runs the control plane until `shutdown` is cancelled.
pub async fn serve(options: Serve, shutdown: CancellationToken) -> Result<(), Error> {
    let begun = Instant::now();
    cli::check_families("--service-cidr", &options.service_cidr).map_err(Error::Flags)?;
    cli::check_families("--cluster-cidr", &options.cluster_cidr).map_err(Error::Flags)?;
    let listeners = listen(&options.listen)?;
    let port = listeners
        .first()
        .and_then(|listener| listener.local_addr().ok());
    let port = port.map_or(0, |address| address.port());
    let store = open(&options.store).await?;
    let authority = Arc::new(Authority::load(&*store).await?);
    write_kubeconfig(&options, port, &authority)?;
    let mut plane = Plane::start(&options, listeners, store, authority, &shutdown).await?;
    let ended = tokio::select! {
        ready = plane.ready.wait(&options, port, &plane.api, &plane.running) => match ready {
            Ok(()) => {
                let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(port, elapsed_ms, "ready");
                tokio::select! {
                    () = shutdown.cancelled() => Ok(()),
                    ended = broken(&mut plane.tasks) => ended,
                }
            }
            failed => failed,
        },
        () = shutdown.cancelled() => Ok(()),
        ended = broken(&mut plane.tasks) => ended,
    };
    shutdown.cancel();
    ended.and(plane.stop().await)
}

/// The running parts.
struct Plane {
    api: Arc<dyn Api>,
    running: controllers::Running,
    ready: Readiness,
    /// The TLS port, which ends on shutdown.
    serving: JoinHandle<Result<(), http::Error>>,
    /// What runs for ever: routing and compaction.
    tasks: JoinSet<()>,
    _engine: engine::Running,
}

impl Plane {
    async fn start(
        options: &Serve,
        listeners: Vec<TcpListener>,
        store: Arc<dyn Store>,
        authority: Arc<Authority>,
        shutdown: &CancellationToken,
    ) -> Result<Self, Error> {
        let names = bootstrap::server_names(options);
        let tls = Arc::new(pki::server_config(&authority, &authority.server(&names)?)?);
        let ranges = Ranges {
            service_cidrs: options.service_cidr.clone(),
            cluster_cidrs: options.cluster_cidr.clone(),
            node_ports: options.node_port_range.0.clone(),
        };
        let seed = u64::from_le_bytes(random::bytes());
        let allocations = Allocations::new(&store, &ranges, seed);
        let root = authority.certificate_pem().to_owned();
        let admissions = vec![
            ServiceAdmission::new(Arc::clone(&allocations)) as _,
            AccountAdmission::new(Arc::clone(&store)) as _,
            ClassAdmission::new(Arc::clone(&store)) as _,
        ];
        let engine = Engine::start_with(Arc::clone(&store), admissions, Some(root)).await?;
        let api: Arc<dyn Api> = Arc::clone(&engine.engine) as _;
        let publisher = Arc::new(Publisher::new(&random::word(EPOCH_LENGTH)));
        let services = grpc::router(grpc::Services {
            api: Arc::clone(&api),
            store: Arc::clone(&store),
            authority: Arc::clone(&authority),
            publisher: Arc::clone(&publisher),
            shutdown: shutdown.clone(),
        });
        let health = Health::default();
        let agents = Agents::new(&authority)?;
        let ready = Readiness::new(&health, authority);
        let programming = Arc::clone(publisher.programming());
        let server = Server::new(Arc::clone(&engine.engine), health, agents, programming);
        let serving = http::serve(listeners, tls, server, services, shutdown.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(routing::run(Arc::clone(&api), publisher));
        tasks.spawn(store::compactor::run(store, store::compactor::INTERVAL));
        let setup = Setup {
            api: Arc::clone(&api),
            kinds: Kind::followed(engine.engine.table()),
            allocations,
            clock: Arc::new(SystemClock),
            scheduling: scheduler::Policy {
                seed,
                ..scheduler::Policy::default()
            },
        };
        Ok(Self {
            api,
            running: controllers::start(setup, shutdown),
            ready,
            serving: tokio::spawn(serving),
            tasks,
            _engine: engine,
        })
    }

    /// Waits for open requests and controllers, for a while.
    async fn stop(self) -> Result<(), Error> {
        if tokio::time::timeout(GRACE, self.running.ended())
            .await
            .is_err()
        {
            tracing::warn!("controllers were still at work when the server stopped");
        }
        Ok(self.serving.await.map_err(http::Error::from).flatten()?)
    }
}

/// Something that runs for ever has ended.
async fn broken(tasks: &mut JoinSet<()>) -> Result<(), Error> {
    match tasks.join_next().await {
        Some(Err(error)) => Err(Error::Task(error)),
        // Routing ends only when the API does, and compaction never.
        Some(Ok(())) | None => std::future::pending().await,
    }
}

/// What /readyz waits for, beside the store.
struct Readiness {
    bootstrap: Check,
    controllers: Check,
    authority: Arc<Authority>,
}

impl Readiness {
    fn new(health: &Health, authority: Arc<Authority>) -> Self {
        Self {
            bootstrap: health.check("poststarthook/bootstrap"),
            controllers: health.check("controllers"),
            authority,
        }
    }

    async fn wait(
        &self,
        options: &Serve,
        port: u16,
        api: &Arc<dyn Api>,
        running: &controllers::Running,
    ) -> Result<(), Error> {
        bootstrap::run_patiently(&**api, &Cluster::new(options, port)).await?;
        if let Some(path) = &options.join_token_file {
            write_token(&**api, &self.authority, path, options.join_token_uses).await?;
        }
        self.bootstrap.pass();
        running.synced().await;
        self.controllers.pass();
        Ok(())
    }
}

async fn open(address: &StoreAddress) -> Result<Arc<dyn Store>, Error> {
    Ok(match address {
        StoreAddress::Embedded(path) => Arc::new(Embedded::open(path).await?),
        StoreAddress::Etcd(endpoints) => Arc::new(Etcd::connect(endpoints).await?),
    })
}

fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let listen = |address: &SocketAddr| {
        bind(*address).map_err(|source| Error::Listen {
            address: *address,
            source,
        })
    };
    addresses.iter().map(listen).collect()
}

/// Each address is of its own family alone, so that 0.0.0.0 and [::] can stand side by side.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn write_kubeconfig(options: &Serve, port: u16, authority: &Authority) -> Result<(), Error> {
    let host = options
        .advertise
        .first()
        .map_or("localhost", String::as_str);
    let server = if host.contains(':') {
        format!("https://[{host}]:{port}")
    } else {
        format!("https://{host}:{port}")
    };
    let kubeconfig = Kubeconfig {
        server: &server,
        authority,
        identity: &authority.admin()?,
    };
    let path = &options.admin_kubeconfig;
    write_private(path, &kubeconfig.render()).map_err(|source| unwritable(path, source))
}

fn unwritable(path: &Path, source: io::Error) -> Error {
    Error::Write {
        path: path.to_owned(),
        source,
    }
}

/// Sees to it that the file holds a token that nodes can join with; one that still is valid stays.
async fn write_token(
    api: &dyn Api,
    authority: &Authority,
    path: &Path,
    uses: u32,
) -> Result<(), Error> {
    let fingerprint = authority.fingerprint().to_string();
    let written = std::fs::read_to_string(path).ok();
    if let Some(old) = written.and_then(|text| text.parse::<token::Token>().ok())
        && old.authority == fingerprint
    {
        match token::check(api, &old, jiff::Timestamp::now()).await {
            Ok(()) => return Ok(()),
            Err(refused) => tracing::info!(
                error = &refused as &dyn StdError,
                path = %path.display(),
                "replacing the join token"
            ),
        }
    }
    let token = token::issue(api, &fingerprint, uses, TOKEN_LIFE).await?;
    write_private(path, &format!("{token}\n")).map_err(|source| unwritable(path, source))
}
