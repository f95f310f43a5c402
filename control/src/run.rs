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
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::allocation::admission::ServiceAdmission;
use crate::allocation::{Allocations, Ranges};
use crate::api::engine::Engine;
use crate::api::{Api, Status};
use crate::bootstrap::{self, Cluster};
use crate::cli::{self, Serve, StoreAddress};
use crate::controllers::clock::SystemClock;
use crate::controllers::resources::Kind;
use crate::controllers::{self, Setup};
use crate::grpc::{self, token};
use crate::http::{self, Health, Server};
use crate::pki::{self, Authority, Kubeconfig, write_private};
use crate::random;
use crate::resource::Verb;
use crate::routing::{self, Publisher};
use crate::scheduler;
use crate::store::embedded::OpenError;
use crate::store::etcd::ConnectError;
use crate::store::{self, Embedded, Etcd, Store};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long controllers may take to end.
const GRACE: Duration = Duration::from_secs(3);
/// How long the token of --join-token-file is valid.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

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
    let names = bootstrap::server_names(&options);
    let tls = pki::server_config(&authority, &authority.server(&names)?)?;
    write_kubeconfig(&options, port, &authority)?;

    let ranges = Ranges {
        service_cidrs: options.service_cidr.clone(),
        cluster_cidrs: options.cluster_cidr.clone(),
        node_ports: options.node_port_range.0.clone(),
    };
    let seed = u64::from_le_bytes(random::bytes());
    let allocations = Allocations::new(&store, &ranges, seed);
    let admissions = vec![ServiceAdmission::new(Arc::clone(&allocations)) as _];
    let engine = Engine::start(Arc::clone(&store), admissions).await?;
    let api: Arc<dyn Api> = Arc::clone(&engine.engine) as _;
    let health = Health::default();
    let ready = [
        health.check("poststarthook/bootstrap"),
        health.check("controllers"),
    ];

    let epoch = random::word(12);
    let publisher = Arc::new(Publisher::new(&epoch));
    let services = grpc::router(grpc::Services {
        api: Arc::clone(&api),
        store: Arc::clone(&store),
        authority: Arc::clone(&authority),
        publisher: Arc::clone(&publisher),
        shutdown: shutdown.clone(),
    });
    let server = Server::new(Arc::clone(&engine.engine), health);
    let serving = http::serve(listeners, Arc::new(tls), server, services, shutdown.clone());
    let mut serving = tokio::spawn(serving);

    let mut tasks = JoinSet::new();
    tasks.spawn(routing::run(Arc::clone(&api), publisher));
    tasks.spawn(store::compactor::run(store, store::compactor::INTERVAL));
    let running = controllers::start(
        Setup {
            api: Arc::clone(&api),
            kinds: kinds(&engine.engine),
            allocations,
            clock: Arc::new(SystemClock),
            scheduling: scheduler::Policy {
                seed,
                ..scheduler::Policy::default()
            },
        },
        &shutdown,
    );
    let getting_ready = async {
        bootstrap::run_patiently(&*api, &Cluster::new(&options, port)).await?;
        if let Some(path) = &options.join_token_file {
            write_token(&*api, &authority, path, options.join_token_uses).await?;
        }
        ready[0].pass();
        running.synced().await;
        ready[1].pass();
        tracing::info!(
            port,
            elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "ready"
        );
        shutdown.cancelled().await;
        Ok(())
    };
    let ended = tokio::select! {
        ended = getting_ready => ended,
        ended = &mut serving => flatten(ended),
    };
    shutdown.cancel();
    if tokio::time::timeout(GRACE, running.ended()).await.is_err() {
        tracing::warn!("controllers were still at work when the server stopped");
    }
    let served = if serving.is_finished() {
        Ok(())
    } else {
        flatten(serving.await)
    };
    ended.and(served)
}

fn flatten(ended: Result<Result<(), http::Error>, tokio::task::JoinError>) -> Result<(), Error> {
    Ok(ended.map_err(http::Error::from).flatten()?)
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

/// Every kind that controllers can follow.
fn kinds(engine: &Engine) -> Vec<Kind> {
    let rows = engine.table().rows().iter();
    let followed =
        rows.filter(|row| row.verbs.contains(&Verb::List) && row.verbs.contains(&Verb::Watch));
    let kind = followed.map(|row| Kind {
        resource: row.id,
        kind: row.kind,
        namespaced: row.namespaced,
    });
    kind.collect()
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
