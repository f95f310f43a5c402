//! Answers questions on the node's addresses, over UDP and TCP.
#![forbid(unsafe_code)]

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Names,
    message::{self, Answer, Code, Data, Query, Unasked},
    upstream::Upstream,
    zone,
};

/// Where the node listens.
pub const PORT: u16 = 10053;
/// How long a new address may take to be usable.
const ADDRESS: Duration = Duration::from_secs(5);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Requests that may be under way; more are not answered.
const MOST: usize = 2048;

/// Listens on the node's addresses.
pub struct NameServer {
    sockets: Vec<Arc<UdpSocket>>,
    listeners: Vec<TcpListener>,
}

/// What answers are made of.
struct Known {
    names: Names,
    upstream: Upstream,
    places: Arc<Semaphore>,
}

impl NameServer {
    /// Binds the addresses.
    pub async fn bind(addresses: impl IntoIterator<Item = SocketAddr>) -> io::Result<NameServer> {
        let mut server = NameServer {
            sockets: Vec::new(),
            listeners: Vec::new(),
        };
        for address in addresses {
            let listener = soon(|| TcpListener::bind(address)).await?;
            // In tests the port is any; both have the same.
            let own = listener.local_addr()?;
            let socket = soon(|| UdpSocket::bind(own)).await?;
            server.sockets.push(Arc::new(socket));
            server.listeners.push(listener);
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let each = self.listeners.iter();
        each.filter_map(|listener| listener.local_addr().ok())
            .collect()
    }

    /// Serves until dropped.
    pub async fn run(self, names: Names, upstream: Upstream) {
        let known = Arc::new(Known {
            names,
            upstream,
            places: Arc::new(Semaphore::new(MOST)),
        });
        let mut serving = JoinSet::new();
        for socket in self.sockets {
            serving.spawn(datagrams(socket, Arc::clone(&known)));
        }
        for listener in self.listeners {
            serving.spawn(connections(listener, Arc::clone(&known)));
        }
        while serving.join_next().await.is_some() {}
    }
}

/// A new IPv6 address is not there until the kernel has asked whether another has it.
async fn soon<T, F: Future<Output = io::Result<T>>>(bind: impl Fn() -> F) -> io::Result<T> {
    let begun = Instant::now();
    loop {
        match bind().await {
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable && begun.elapsed() < ADDRESS =>
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            result => return result,
        }
    }
}

async fn datagrams(socket: Arc<UdpSocket>, known: Arc<Known>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // A client that is gone is told to the next receive.
            Err(error) => {
                tracing::debug!(%error, "a client of the name server is gone");
                continue;
            }
        };
        let Ok(place) = Arc::clone(&known.places).try_acquire_owned() else {
            continue;
        };
        let (request, known, socket) = (
            buffer[..length].to_vec(),
            Arc::clone(&known),
            Arc::clone(&socket),
        );
        tokio::spawn(async move {
            let _place = place;
            if let Some(answer) = known.answer(&request, false).await
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%client, %error, "an answer of the name server is lost");
            }
        });
    }
}

async fn connections(listener: TcpListener, known: Arc<Known>) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let Ok(place) = Arc::clone(&known.places).try_acquire_owned() else {
                    continue;
                };
                let known = Arc::clone(&known);
                tokio::spawn(async move {
                    let _place = place;
                    if let Err(error) = converse(stream, &known).await {
                        tracing::debug!(%client, %error, "a connection to the name server ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection to the name server");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, known: &Known) -> io::Result<()> {
    loop {
        let length = match timeout(SILENCE, stream.read_u16()).await {
            Err(_) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(length) => length?,
        };
        let mut request = vec![0; usize::from(length)];
        timeout(SILENCE, stream.read_exact(&mut request)).await??;
        let Some(answer) = known.answer(&request, true).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut whole = length.to_be_bytes().to_vec();
        whole.extend(answer);
        timeout(SILENCE, stream.write_all(&whole)).await??;
    }
}

impl Known {
    /// `None`: not worth an answer.
    async fn answer(&self, request: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let query = match Query::parse(request) {
            Ok(query) => query,
            Err(Unasked::Noise) => return None,
            Err(Unasked::Refused(id, code)) => return Some(message::refuse(id, code)),
        };
        let limit = if over_tcp {
            usize::from(u16::MAX)
        } else {
            query.limit()
        };
        let own = zone::answer(&self.names.read(), &query.name, query.kind);
        if let Some(own) = own {
            let whole = self.followed(own, &query).await;
            return Some(query.answer(&whole, limit));
        }
        let answer = self.upstream.ask(&query, request, over_tcp).await;
        Some(answer.unwrap_or_else(|| query.refuse(Code::Failed)))
    }

    /// With what stands behind an external name: the resolvers in C libraries do not ask on.
    async fn followed(&self, mut answer: Answer, query: &Query) -> Answer {
        let Some(Data::Alias(target)) = answer.records.first().map(|record| record.data.clone())
        else {
            return answer;
        };
        if !matches!(query.kind, message::kind::A | message::kind::AAAA) {
            return answer;
        }
        let inner = zone::answer(&self.names.read(), &target, query.kind);
        if let Some(inner) = inner {
            answer.records.extend(inner.records);
        } else {
            let found = self.upstream.addresses(&target, query.kind).await;
            answer.records.extend(found);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::{
        super::{
            Directory, Service,
            message::{Record, kind},
            reply::Reply,
        },
        *,
    };

    /// A resolver of the world that knows example.org, and counts.
    async fn world() -> (u16, Arc<std::sync::atomic::AtomicU32>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let port = socket.local_addr().expect("an address").port();
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let asked = Arc::clone(&count);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.expect("a question");
                asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let query = Query::parse(&buffer[..length]).expect("a question");
                let records = (query.name == "example.org").then(|| Record {
                    name: query.name.clone(),
                    ttl: 60,
                    data: Data::Address([192, 0, 2, 1].into()),
                });
                let code = if records.is_some() {
                    Code::Fine
                } else {
                    Code::NoName
                };
                let answer = Answer {
                    code,
                    records: records.into_iter().collect(),
                    additional: Vec::new(),
                    authority: None,
                };
                let answer = query.answer(&answer, 512);
                socket.send_to(&answer, from).await.expect("an answer");
            }
        });
        (port, count)
    }

    async fn served(servers: &str, port: u16) -> SocketAddr {
        let mut directory = Directory::default();
        let many = (0..200_u8)
            .map(|last| IpAddr::from([10, 96, 1, last]))
            .collect();
        let service = |addresses| Service {
            addresses,
            ..Service::default()
        };
        directory.set_service("d", "web", Some(service(vec![[10, 96, 0, 7].into()])));
        directory.set_service("d", "many", Some(service(many)));
        let outside = Service {
            external: Some("example.org".into()),
            ..Service::default()
        };
        directory.set_service("d", "outside", Some(outside));
        let conf = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(conf.path(), servers).expect("a file");
        let path = conf.into_temp_path().keep().expect("a file");
        let server = NameServer::bind(["127.0.0.1:0".parse().expect("an address")])
            .await
            .expect("a port");
        let address = server.addresses()[0];
        tokio::spawn(server.run(Names::of(directory), Upstream::new(path, port)));
        address
    }

    async fn ask(server: SocketAddr, name: &str, over_tcp: bool) -> Reply {
        let request = Query::ask(fastrand::u16(..), name, kind::A);
        let answer = if over_tcp {
            let mut stream = TcpStream::connect(server).await.expect("a connection");
            let length = u16::try_from(request.len()).expect("short");
            stream.write_u16(length).await.expect("the server");
            stream.write_all(&request).await.expect("the server");
            let length = stream.read_u16().await.expect("an answer");
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await.expect("an answer");
            answer
        } else {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            socket.send_to(&request, server).await.expect("the server");
            let mut answer = vec![0; 4096];
            let length = socket.recv(&mut answer).await.expect("an answer");
            answer.truncate(length);
            answer
        };
        Reply::parse(&answer, &request).expect("an answer to this question")
    }

    fn addresses(reply: &Reply) -> Vec<String> {
        let each = reply.records.iter();
        each.filter_map(|record| match &record.data {
            Data::Address(address) => Some(address.to_string()),
            _ => None,
        })
        .collect()
    }

    #[tokio::test]
    async fn names_of_the_cluster_and_of_the_world_are_answered() {
        let (port, count) = world().await;
        let server = served("nameserver 127.0.0.1\n", port).await;
        for over_tcp in [false, true] {
            let reply = ask(server, "WEB.d.svc.cluster.local", over_tcp).await;
            assert_eq!(addresses(&reply), ["10.96.0.7"]);
            assert_eq!(
                ask(server, "no.d.svc.cluster.local", over_tcp).await.code,
                3
            );
        }
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 0);
        for _ in 0..3 {
            let reply = ask(server, "example.org", false).await;
            assert_eq!(addresses(&reply), ["192.0.2.1"]);
        }
        let asked = count.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(asked, 1, "kept after the first time");
        let reply = ask(server, "outside.d.svc.cluster.local", false).await;
        assert_eq!(reply.records.len(), 2, "{reply:?}");
        assert_eq!(addresses(&reply), ["192.0.2.1"]);
    }

    #[tokio::test]
    async fn long_answers_come_over_tcp() {
        let server = served("", 1).await;
        let cut = ask(server, "many.d.svc.cluster.local", false).await;
        assert!(cut.is_cut && cut.records.is_empty(), "{cut:?}");
        let whole = ask(server, "many.d.svc.cluster.local", true).await;
        assert_eq!(whole.records.len(), 200);
    }

    #[tokio::test]
    async fn without_a_resolver_the_world_fails_at_once() {
        let server = served("", 1).await;
        assert_eq!(ask(server, "example.org", false).await.code, 2);
    }
}
