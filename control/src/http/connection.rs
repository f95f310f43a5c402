//! Listening, TLS and connections. One that is slow or broken costs the others nothing; one request's panic ends no
//! other.

use std::convert::Infallible;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::FutureExt;
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::{Server, handlers, identity, respond};
use crate::api::{Caller, Status};

/// How long a client may take to say hello.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
/// How often an h2 connection is asked whether it lives.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long the acceptor rests when the system has no more descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long open requests may take to end when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// Streams of one h2 connection at a time.
const STREAMS: u32 = 1000;
/// Bytes of a request's headers.
const HEADERS_LIMIT: u32 = 64 * 1024;

/// Why the server could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to listen on.
    #[error("no address to listen on")]
    NoListener,
    /// A listener's task broke off.
    #[error("a listener failed")]
    Listener(#[from] tokio::task::JoinError),
}

struct Shared {
    acceptor: TlsAcceptor,
    server: Server,
    extra: Router,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Serves the API, and `extra` for gRPC, until `stop` is cancelled.
pub async fn serve(
    listeners: Vec<TcpListener>,
    tls: Arc<ServerConfig>,
    server: Server,
    extra: Router,
    stop: CancellationToken,
) -> Result<(), Error> {
    if listeners.is_empty() {
        return Err(Error::NoListener);
    }
    let shared = Arc::new(Shared {
        acceptor: TlsAcceptor::from(tls),
        server,
        extra,
        stop,
        connections: TaskTracker::new(),
    });
    let mut acceptors = tokio::task::JoinSet::new();
    for listener in listeners {
        acceptors.spawn(accept(listener, shared.clone()));
    }
    while let Some(ended) = acceptors.join_next().await {
        ended?;
    }
    shared.connections.close();
    if tokio::time::timeout(GRACE, shared.connections.wait())
        .await
        .is_err()
    {
        tracing::debug!("requests were still open when the server stopped");
    }
    Ok(())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, shared.clone());
                shared.connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%peer, %error, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let handshake = shared.acceptor.accept(stream);
    let stream = tokio::time::timeout(HANDSHAKE_LIMIT, handshake)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))??;
    let caller = identity::caller(stream.get_ref().1.peer_certificates());
    let service = service_fn({
        let shared = shared.clone();
        move |request| answer(request, caller.clone(), shared.clone())
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADERS_LIMIT);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    served.map_err(io::Error::other)
}

async fn answer(
    request: Request<Incoming>,
    caller: Caller,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(caller.clone());
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let line = format!("{} {}", request.method(), request.uri().path());
    let handled = async {
        if grpc {
            shared.extra.clone().oneshot(request).await
        } else {
            let stop = shared.stop.clone();
            Ok(handlers::handle(&shared.server, &caller, request, stop).await)
        }
    };
    match AssertUnwindSafe(handled).catch_unwind().await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(never)) => match never {},
        Err(_) => {
            tracing::error!(line, "a request panicked");
            Ok(respond::status(&Status::internal(format!(
                "the request could not be answered: {line}"
            ))))
        }
    }
}
