//! Names of the world: asked of the node's own resolvers, and kept as long as they may be.
#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

use super::{
    message::{Data, HEADER, Query, Record},
    reply::Reply,
};

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions that may be under way.
const MOST_ASKED: usize = 512;
/// Answers that are kept.
const MOST_KEPT: usize = 4096;
/// Nothing is kept for longer, in seconds.
const LONGEST_LIFE: u32 = 300;
/// How often the node's configuration is read again.
const READ_EVERY: Duration = Duration::from_secs(10);

/// What resolv.conf(5) says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Whom to ask.
    pub servers: Vec<IpAddr>,
    /// What is appended to short names.
    pub searches: Vec<String>,
    /// "ndots:5", "edns0".
    pub options: Vec<String>,
}

impl ResolvConf {
    /// What cannot be understood is passed over, as every resolver does.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap_or_default();
            let words = words.take_while(|word| !word.starts_with(['#', ';']));
            match kind {
                "nameserver" => conf.servers.extend(words.take(1).filter_map(address)),
                // The last line counts.
                "search" | "domain" => conf.searches = words.map(str::to_owned).collect(),
                "options" => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// Reads a file; one that is absent says nothing.
    pub fn read(path: &std::path::Path) -> io::Result<ResolvConf> {
        match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ResolvConf::default()),
            text => Ok(ResolvConf::parse(&text?)),
        }
    }
}

/// An address, whose zone is not used: "fe80::1%eth0".
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

/// The node's resolvers.
pub struct Upstream {
    path: PathBuf,
    port: u16,
    servers: Mutex<Option<(Instant, Vec<IpAddr>)>>,
    kept: Mutex<HashMap<Vec<u8>, Kept>>,
    places: Semaphore,
}

struct Kept {
    answer: Vec<u8>,
    ttls: Vec<usize>,
    since: Instant,
    life: u32,
}

impl Upstream {
    /// Those that a resolv.conf(5) names, on a port that is 53 except in tests.
    pub fn new(path: PathBuf, port: u16) -> Upstream {
        Upstream {
            path,
            port,
            servers: Mutex::default(),
            kept: Mutex::default(),
            places: Semaphore::new(MOST_ASKED),
        }
    }

    /// The answer to a request as it came; `None` when nobody answers.
    pub async fn ask(&self, query: &Query, request: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let mut key = query.key();
        key.push(u8::from(over_tcp));
        if let Some(kept) = self.kept(&key, query.id) {
            return Some(kept);
        }
        let _place = self.places.acquire().await.ok()?;
        // Another id, from another port each time: an answer can't be guessed.
        let id = fastrand::u16(..).to_be_bytes();
        let mut own = request.to_vec();
        own[..2].copy_from_slice(&id);
        let (mut answer, reply) = self.ask_all(&own, over_tcp).await?;
        self.keep(key, &answer, &reply);
        answer[..2].copy_from_slice(&query.id.to_be_bytes());
        Some(answer)
    }

    /// Aliases and addresses of a name; none when nobody answers.
    pub async fn addresses(&self, name: &str, kind: u16) -> Vec<Record> {
        let request = Query::ask(fastrand::u16(..), name, kind);
        let Ok(query) = Query::parse(&request) else {
            return Vec::new();
        };
        let Some(answer) = self.ask(&query, &request, false).await else {
            return Vec::new();
        };
        let reply = Reply::parse(&answer, &request);
        let records = reply.map(|reply| reply.records).unwrap_or_default();
        let is_wanted = |record: &Record| matches!(record.data, Data::Address(_) | Data::Alias(_));
        records.into_iter().filter(is_wanted).collect()
    }

    async fn ask_all(&self, request: &[u8], over_tcp: bool) -> Option<(Vec<u8>, Reply)> {
        let mut failure = None;
        for server in self.servers() {
            let place = SocketAddr::new(server, self.port);
            let asked = async {
                if over_tcp {
                    ask_tcp(place, request).await
                } else {
                    ask_udp(place, request).await
                }
            };
            match timeout(PATIENCE, asked).await {
                // "I failed" and "I refuse" are worth asking another.
                Ok(Ok((answer, reply))) if matches!(reply.code, 2 | 5) => {
                    failure = Some((answer, reply));
                }
                Ok(Ok(found)) => return Some(found),
                Ok(Err(error)) => tracing::debug!(%place, %error, "a resolver can't be asked"),
                Err(_) => tracing::debug!(%place, "a resolver does not answer"),
            }
        }
        failure
    }

    fn servers(&self) -> Vec<IpAddr> {
        let mut known = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, servers)) = known.as_ref()
            && at.elapsed() < READ_EVERY
        {
            return servers.clone();
        }
        let conf = ResolvConf::read(&self.path).unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "the node's resolvers are not known");
            ResolvConf::default()
        });
        *known = Some((Instant::now(), conf.servers.clone()));
        conf.servers
    }

    fn kept(&self, key: &[u8], id: u16) -> Option<Vec<u8>> {
        let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = all.get(key)?;
        let age = u32::try_from(kept.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= kept.life {
            return None;
        }
        let mut answer = kept.answer.clone();
        answer[..2].copy_from_slice(&id.to_be_bytes());
        for &at in &kept.ttls {
            let ttl = answer.get(at..at + 4)?.try_into().ok()?;
            let left = u32::from_be_bytes(ttl).saturating_sub(age);
            answer[at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        Some(answer)
    }

    fn keep(&self, key: Vec<u8>, answer: &[u8], reply: &Reply) {
        // 0 is an answer, 3 "there is no such name"; the authority's record says how long that is so.
        let life = reply.ttl.filter(|_| matches!(reply.code, 0 | 3));
        let Some(life) = life.map(|ttl| ttl.min(LONGEST_LIFE)).filter(|ttl| *ttl > 0) else {
            return;
        };
        let kept = Kept {
            answer: answer.to_vec(),
            ttls: reply.ttls.clone(),
            since: Instant::now(),
            life,
        };
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST_KEPT {
            all.retain(|_, kept| kept.since.elapsed().as_secs() < u64::from(kept.life));
        }
        if all.len() >= MOST_KEPT {
            all.clear();
        }
        all.insert(key, kept);
    }
}

async fn ask_udp(server: SocketAddr, request: &[u8]) -> io::Result<(Vec<u8>, Reply)> {
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(request).await?;
    let mut answer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut answer).await?;
        // What does not fit the question is somebody else's, or a forgery.
        if length >= HEADER
            && let Some(reply) = Reply::parse(&answer[..length], request)
        {
            answer.truncate(length);
            return Ok((answer, reply));
        }
    }
}

async fn ask_tcp(server: SocketAddr, request: &[u8]) -> io::Result<(Vec<u8>, Reply)> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(request).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    let reply = Reply::parse(&answer, request)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no answer"))?;
    Ok((answer, reply))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# a comment\nnameserver 10.0.0.1\nnameserver fe80::1%eth0\nnameserver x\n\
                    domain old\nsearch a.example b.example # more\noptions ndots:2 edns0\n";
        let conf = ResolvConf::parse(text);
        let servers: Vec<String> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.1", "fe80::1"]);
        assert_eq!(conf.searches, ["a.example", "b.example"]);
        assert_eq!(conf.options, ["ndots:2", "edns0"]);
    }
}
