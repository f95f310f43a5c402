//! The API's client: over whichever control server is in use.

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::{
    Client,
    client::{Body, ConfigExt},
};
use tower::{Layer, Service, ServiceBuilder};

use super::{ClusterError, REQUEST_TIMEOUT};
use crate::{
    join::NodeIdentity,
    servers::{ServerStream, Servers},
};

/// A name that every server's certificate is good for, whatever its address.
const SERVER_NAME: &str = "kubernetes.default.svc";
/// So many failures in a row, and the server is left.
const PATIENCE: u32 = 3;
/// A request that is given up after so long has hung.
const HANGING: Duration = Duration::from_secs(REQUEST_TIMEOUT.as_secs() - 1);

/// A client with the node's certificate, which trusts the cluster's CA and nothing else.
pub fn client(servers: &Servers, state_dir: &Path) -> Result<Client, ClusterError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| ClusterError::Client {
        server: servers.current(),
        source,
    };
    // Where it connects to is decided for each connection.
    let url = Uri::from_static("https://kubernetes.default.svc");
    let [certificate, key, ca] =
        NodeIdentity::paths(state_dir).map(|path| path.to_string_lossy().into_owned());
    let mut config = kube::Config::new(url);
    config.tls_server_name = Some(SERVER_NAME.to_owned());
    config.root_cert_file = Some(ca.into());
    config.auth_info.client_certificate = Some(certificate);
    config.auth_info.client_key = Some(key);
    let connector = config
        .rustls_https_connector_with_connector(Connector(servers.clone()))
        .map_err(|error| failed(Box::new(error)))?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    // Every writer here has its own retries, which know what is newest.
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(LeaveFailing(servers.clone()))
        .service(pool.build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// Connects to the server in use, whatever a request's URI says.
#[derive(Clone)]
struct Connector(Servers);

impl Service<Uri> for Connector {
    type Response = TokioIo<ServerStream>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let servers = self.0.clone();
        Box::pin(async move { servers.connect().await.map(TokioIo::new) })
    }
}

/// Leaves a server that accepts connections and is of no use.
#[derive(Clone)]
struct LeaveFailing(Servers);

impl<S> Layer<S> for LeaveFailing {
    type Service = Judging<S>;

    fn layer(&self, inner: S) -> Judging<S> {
        Judging {
            inner,
            servers: self.0.clone(),
            failures: Arc::default(),
        }
    }
}

#[derive(Clone)]
struct Judging<S> {
    inner: S,
    servers: Servers,
    failures: Arc<AtomicU32>,
}

impl<S, B> Service<Request<Body>> for Judging<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut trial = Trial {
            url: self.servers.current(),
            servers: self.servers.clone(),
            failures: Arc::clone(&self.failures),
            begun: Instant::now(),
            is_open: true,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let status = answer.as_ref().ok().map(Response::status);
            trial.end(status);
            answer
        })
    }
}

/// One request to one server.
struct Trial {
    url: String,
    servers: Servers,
    failures: Arc<AtomicU32>,
    begun: Instant,
    is_open: bool,
}

impl Trial {
    /// Judges the server by how it answered; `None`: not at all.
    fn end(&mut self, status: Option<StatusCode>) {
        self.is_open = false;
        let failed = status.is_none_or(|status| status.is_server_error());
        if !failed {
            self.failures.store(0, Ordering::Relaxed);
            return;
        }
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE {
            self.failures.store(0, Ordering::Relaxed);
            let why = match status {
                Some(status) => format!("it answers {status}"),
                None => "it does not answer".to_owned(),
            };
            self.servers.leave(&self.url, &why);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if self.is_open && self.begun.elapsed() >= HANGING {
            self.servers.leave(&self.url, "it does not answer in time");
        }
    }
}
