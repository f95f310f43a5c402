//! `portolan-control serve`: opens the store, joins the parts, and runs them until told to stop.
//!
//! ```text
//! listen -> store -> authority -> allocations -> engine -> HTTP and gRPC on one TLS port
//!                                                   |--> routing
//!                                                   |--> leadership: controllers, scheduler, compaction on one server
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
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::allocation::{Allocations, Ranges};
use crate::api::engine::Engine;
use crate::api::{Api, Status};
use crate::bootstrap::{self, Cluster};
use crate::cli::{self, Serve};
use crate::grpc;
use crate::grpc::token::{self, Joins};
use crate::http::{self, Agents, Check, Health, Server};
use crate::leadership::election::{self, Candidate};
use crate::leadership::servers::{self, Registration};
use crate::leadership::{self, Leadership, Role};
use crate::opening::{self, OpenedStore};
use crate::pki::{self, Authority, Kubeconfig, write_private};
use crate::random;
use crate::routing::{self, Publisher};
use crate::store;

/// Letters that tell one life of one server from all others.
const EPOCH_LENGTH: usize = 12;
const NAME_LENGTH: usize = 6;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long the leader's work may take to end, and its key to be given back.
const GRACE: Duration = Duration::from_secs(5);
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
    /// The store can't be opened, or not read.
    #[error(transparent)]
    Open(#[from] opening::Error),
    /// The store fails.
    #[error("can't use the store")]
    Store(#[from] store::Error),
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
    let opened = opening::open_sealed(&options).await?;
    let authority = Arc::new(Authority::load(&*opened.store).await?);
    write_kubeconfig(&options, port, &authority)?;
    let start = Start {
        options: &options,
        port,
        opened,
        authority,
    };
    let mut plane = start.plane(listeners, &shutdown).await?;
    let ended = tokio::select! {
        ready = plane.ready.wait(&options, port, &plane.api, &mut plane.role) => match ready {
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
    role: watch::Receiver<Role>,
    ready: Readiness,
    /// The TLS port, which ends on shutdown.
    serving: JoinHandle<Result<(), http::Error>>,
    /// The lead and the word that this server is there, which are given back on shutdown.
    leading: JoinSet<()>,
    /// What runs for ever: routing.
    tasks: JoinSet<()>,
}

/// What the parts are made from.
struct Start<'a> {
    options: &'a Serve,
    port: u16,
    opened: OpenedStore,
    authority: Arc<Authority>,
}

impl Start<'_> {
    async fn plane(
        self,
        listeners: Vec<TcpListener>,
        shutdown: &CancellationToken,
    ) -> Result<Plane, Error> {
        let options = self.options;
        let authority = Arc::clone(&self.authority);
        let store = Arc::clone(&self.opened.store);
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
        let admissions = leadership::admissions(&store, &allocations);
        let engine = Engine::open(Arc::clone(&store), admissions, Some(root)).await?;
        let api: Arc<dyn Api> = Arc::clone(&engine) as _;
        let publisher = Arc::new(Publisher::new(&random::word(EPOCH_LENGTH)));
        let services = grpc::router(grpc::Services {
            api: Arc::clone(&api),
            store: Arc::clone(&store),
            authority: Arc::clone(&authority),
            key_file: Some(self.opened.key_file.clone()),
            publisher: Arc::clone(&publisher),
            shutdown: shutdown.clone(),
        });
        let health = Health::default();
        let agents = Agents::new(&authority)?;
        let ready = Readiness::new(&health, authority);
        let programming = Arc::clone(publisher.programming());
        let mut server = Server::new(Arc::clone(&engine), health, agents, programming);
        server.store = Some(Arc::clone(&self.opened.below));
        let serving = http::serve(listeners, tls, server, services, shutdown.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(routing::run(Arc::clone(&api), publisher));
        let (leading, role) = self.lead(engine, ranges, seed, shutdown).await?;
        Ok(Plane {
            api,
            role,
            ready,
            serving: tokio::spawn(serving),
            leading,
            tasks,
        })
    }

    /// Starts what the servers of a cluster agree on.
    async fn lead(
        self,
        engine: Arc<Engine>,
        ranges: Ranges,
        seed: u64,
        shutdown: &CancellationToken,
    ) -> Result<(JoinSet<()>, watch::Receiver<Role>), Error> {
        let OpenedStore {
            store,
            sealed,
            is_shared,
            ..
        } = self.opened;
        if !is_shared {
            election::clear(&*store, election::LEADER_KEY).await?;
            election::clear(&*store, servers::SERVERS.as_bytes()).await?;
        }
        // The name says where the server is, and the letters tell its lives apart.
        let host = self.options.advertise.first();
        let host = host.map_or("localhost", String::as_str);
        let name = format!("{host}:{}_{}", self.port, random::word(NAME_LENGTH));
        let registration = Registration {
            addresses: bootstrap::reachable_addresses(self.options),
            port: self.port,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(servers::register(
            Arc::clone(&store),
            name.clone(),
            registration.clone(),
            shutdown.clone(),
        ));
        let (role, roles) = watch::channel(Role::Unknown);
        let leadership = Leadership {
            candidate: Candidate::new(Arc::clone(&store), name),
            store,
            sealed,
            engine,
            ranges,
            seed,
            registration,
        };
        tasks.spawn(leadership.run(role, shutdown.clone()));
        Ok((tasks, roles))
    }
}

impl Plane {
    /// Waits for open requests, and for the lead to be given back, for a while.
    async fn stop(mut self) -> Result<(), Error> {
        let ended = async {
            while let Some(ended) = self.leading.join_next().await {
                if let Err(panic) = ended {
                    tracing::error!(%panic, "a part of the leader's work ended");
                }
            }
        };
        if tokio::time::timeout(GRACE, ended).await.is_err() {
            tracing::warn!("the lead was not given back when the server stopped");
        }
        Ok(self.serving.await.map_err(http::Error::from).flatten()?)
    }
}

/// Something that runs for ever has ended.
async fn broken(tasks: &mut JoinSet<()>) -> Result<(), Error> {
    match tasks.join_next().await {
        Some(Err(error)) => Err(Error::Task(error)),
        // Routing ends only when the API does.
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
        role: &mut watch::Receiver<Role>,
    ) -> Result<(), Error> {
        bootstrap::run_patiently(&**api, &Cluster::new(options, port)).await?;
        if let Some(path) = &options.join_token_file {
            write_token(&**api, &self.authority, path, options.join_token_uses).await?;
        }
        self.bootstrap.pass();
        // Ready is who leads with all controllers at work, or knows another server that leads.
        if role.wait_for(|role| *role != Role::Unknown).await.is_ok() {
            self.controllers.pass();
        }
        Ok(())
    }
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
        match token::check(api, &old, Joins::Node, jiff::Timestamp::now()).await {
            Ok(()) => return Ok(()),
            Err(refused) => tracing::info!(
                error = &refused as &dyn StdError,
                path = %path.display(),
                "replacing the join token"
            ),
        }
    }
    let token = token::issue(api, &fingerprint, Joins::Node, uses, TOKEN_LIFE).await?;
    write_private(path, &format!("{token}\n")).map_err(|source| unwritable(path, source))
}
