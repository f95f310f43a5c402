//! The control servers, and which of them this agent talks to.
//!
//! ```text
//! --server URL ... -+-> Servers -> the one in use -> connections of the API's client, stream of routes
//! routing table ----'      ^--------- leave: it is gone, slow or useless --------'
//! ```
//!
//! All connections of an agent go to one server. Whoever finds that it does not do leaves it, and what else is connected to
//! it is cut off and connects to the next. Pods and routes know nothing of that.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use portolan_dataplane::model::Protocol;

use crate::{join::server_name, routes::Table};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The Service with all servers behind it.
const SERVICE: &str = "default/kubernetes:";
/// The port of a URL that names none.
const HTTPS: u16 = 443;

/// The servers. Clones are the same.
#[derive(Clone, Debug)]
pub struct Servers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// From the command line; these are never forgotten.
    given: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    learned: BTreeSet<String>,
    current: String,
    /// Cancelled when the current server is left.
    left: CancellationToken,
}

/// What is not a server's URL, or no server at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    /// Not https://HOST:PORT.
    #[error("{0:?} is not the https URL of a control server")]
    Url(String),
    /// None was given.
    #[error("no control server is named")]
    None,
}

impl Servers {
    /// The servers of the command line. `node` decides which is the first, so that nodes spread over them.
    pub fn new(given: &[String], node: &str) -> Result<Self, ServersError> {
        let given: Vec<String> = given
            .iter()
            .map(|url| url.trim_end_matches('/').to_owned())
            .collect();
        if let Some(wrong) = given.iter().find(|url| address_of(url).is_none()) {
            return Err(ServersError::Url(wrong.clone()));
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let count = u64::try_from(given.len()).unwrap_or(u64::MAX);
        let first = hasher.finish().checked_rem(count);
        let first = first.and_then(|first| given.get(usize::try_from(first).ok()?));
        let current = first.ok_or(ServersError::None)?.clone();
        Ok(Self(Arc::new(Shared {
            given,
            state: Mutex::new(State {
                learned: BTreeSet::new(),
                current,
                left: CancellationToken::new(),
            }),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The URL of the server in use.
    pub fn current(&self) -> String {
        self.lock().current.clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all(&self.lock()).len()
    }

    /// The server in use, and what tells that it is in use no longer.
    pub fn session(&self) -> (String, CancellationToken) {
        let state = self.lock();
        (state.current.clone(), state.left.clone())
    }

    fn all(&self, state: &State) -> Vec<String> {
        let mut all = self.0.given.clone();
        let learned = state.learned.iter();
        all.extend(learned.filter(|url| !self.0.given.contains(url)).cloned());
        all
    }

    /// Goes on to the next server if this one is in use. A server that is alone is stayed with.
    pub fn leave(&self, url: &str, why: &str) {
        let mut state = self.lock();
        if state.current != url {
            return;
        }
        let all = self.all(&state);
        let place = all.iter().position(|known| known == url);
        let after = place.map_or(0, |place| place + 1);
        let mut others = all.iter().skip(after).chain(all.iter().take(after));
        let Some(next) = others.find(|other| *other != url) else {
            return;
        };
        state.current.clone_from(next);
        let left = std::mem::take(&mut state.left);
        tracing::warn!(
            server = url,
            why,
            next = state.current,
            "leaving the control server"
        );
        drop(state);
        left.cancel();
    }

    /// The servers that the cluster says it has.
    pub fn learn(&self, urls: BTreeSet<String>) {
        let mut state = self.lock();
        if state.learned != urls {
            tracing::debug!(?urls, "the cluster's control servers");
            state.learned = urls;
        }
    }

    /// Learns of servers from the routing table, for as long as there is one.
    pub async fn keep_learning(self, mut tables: watch::Receiver<Arc<Table>>) {
        loop {
            let urls = urls_of(&tables.borrow_and_update());
            // A table without any is no reason to forget those that may be back.
            if !urls.is_empty() {
                self.learn(urls);
            }
            if tables.changed().await.is_err() {
                return;
            }
        }
    }

    /// Connects to the server in use, or to the first of the others that accepts.
    pub async fn connect(&self) -> io::Result<ServerStream> {
        let mut attempts = self.count();
        loop {
            let (url, left) = self.session();
            let connected = async {
                let (host, port) = address_of(&url).ok_or(io::ErrorKind::InvalidInput)?;
                let stream = TcpStream::connect((host.as_str(), port)).await?;
                stream.set_nodelay(true)?;
                Ok(stream)
            };
            let error: io::Error = match tokio::time::timeout(CONNECT_TIMEOUT, connected).await {
                Ok(Ok(stream)) => {
                    return Ok(ServerStream {
                        stream,
                        left: Box::pin(left.cancelled_owned()),
                    });
                }
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            self.leave(&url, &error.to_string());
            attempts = attempts.saturating_sub(1);
            if attempts == 0 {
                return Err(error);
            }
        }
    }
}

/// Host and port of a server's URL.
fn address_of(url: &str) -> Option<(String, u16)> {
    let host = server_name(url)?;
    let uri: http::Uri = url.parse().ok()?;
    Some((host, uri.port_u16().unwrap_or(HTTPS)))
}

fn urls_of(table: &Table) -> BTreeSet<String> {
    let services = table.services.iter();
    let servers = services
        .filter(|(name, route)| name.0.starts_with(SERVICE) && route.protocol == Protocol::Tcp);
    servers
        .flat_map(|(_, route)| &route.endpoints)
        .map(|endpoint| {
            let address = std::net::SocketAddr::new(endpoint.address, endpoint.port);
            format!("https://{address}")
        })
        .collect()
}

/// A connection that ends when its server is left.
pub struct ServerStream {
    stream: TcpStream,
    left: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl ServerStream {
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.left.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Connection for ServerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    fn servers(urls: &[&str]) -> Servers {
        let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
        Servers::new(&urls, "n1").expect("servers")
    }

    #[test]
    fn each_is_left_for_the_next() {
        let servers = servers(&["https://a:1", "https://b:1/", "https://[::1]:6443"]);
        let first = servers.current();
        let (_, left) = servers.session();
        servers.leave("https://elsewhere:1", "");
        assert_eq!(servers.current(), first);
        assert!(!left.is_cancelled());
        let mut seen = BTreeSet::new();
        for _ in 0..3 {
            seen.insert(servers.current());
            servers.leave(&servers.current(), "");
        }
        assert!(left.is_cancelled());
        assert_eq!(seen.len(), 3);
        assert!(seen.contains("https://b:1"));
        assert_eq!(servers.current(), first);
    }

    #[test]
    fn one_that_is_alone_is_stayed_with_until_there_are_others() {
        let servers = servers(&["https://a:1"]);
        let (_, left) = servers.session();
        servers.leave("https://a:1", "");
        assert_eq!(servers.current(), "https://a:1");
        assert!(!left.is_cancelled());
        servers.learn(["https://a:1".to_owned(), "https://b:1".to_owned()].into());
        assert_eq!(servers.count(), 2);
        servers.leave("https://a:1", "");
        assert_eq!(servers.current(), "https://b:1");
        // It is the current one still, though the cluster does not name it any more.
        servers.learn(["https://a:1".to_owned()].into());
        servers.leave("https://b:1", "");
        assert_eq!(servers.current(), "https://a:1");
    }

    #[test]
    fn nodes_spread_over_the_servers() {
        let urls = ["https://a:1", "https://b:1", "https://c:1"].map(str::to_owned);
        let firsts: BTreeSet<String> = (0..50)
            .map(|node| {
                Servers::new(&urls, &format!("n{node}"))
                    .expect("servers")
                    .current()
            })
            .collect();
        assert_eq!(firsts.len(), 3);
        let wrong = Servers::new(&["http://a:1".to_owned()], "n1").expect_err("not https");
        assert_eq!(wrong, ServersError::Url("http://a:1".to_owned()));
        assert_eq!(
            Servers::new(&[], "n1").expect_err("none"),
            ServersError::None
        );
    }

    #[tokio::test]
    async fn connections_end_when_their_server_is_left() {
        let first = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let second = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let urls = [&first, &second].map(|listener| {
            let address = listener.local_addr().expect("an address");
            format!("https://{address}")
        });
        let servers = Servers::new(&urls, "n1").expect("servers");
        let before = servers.current();
        let mut stream = servers.connect().await.expect("connected");
        let (_, left) = servers.session();
        let reading = tokio::spawn(async move { stream.read(&mut [0]).await });
        servers.leave(&before, "test");
        let error = reading.await.expect("no panic").expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(left.is_cancelled());
        // One that refuses is left by itself.
        let dead = if servers.current() == urls[0] {
            first
        } else {
            second
        };
        drop(dead);
        servers.connect().await.expect("connected to the other");
        assert_eq!(servers.current(), before);
    }
}
