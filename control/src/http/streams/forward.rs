//! Connections to a pod's ports. In SPDY's streams, with or without a WebSocket around them, each connection has a stream
//! for its data and one for what went wrong; in a WebSocket alone (`v4.channel.k8s.io`) each port has such a pair of
//! channels, and one connection.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::handlers::Exchange;
use super::upgrade::{self, Transport};
use super::websocket::{self, Message, Writer};
use super::{Query, Target, agents::Agents, spdy};
use crate::api::{Status, meta};

/// SPDY in a WebSocket.
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
/// What is spoken in a WebSocket, the best first.
const IN_WEBSOCKET: &[&str] = &[TUNNELLED, "v4.channel.k8s.io"];
/// What is spoken in streams.
const IN_STREAMS: &[&str] = &["portforward.k8s.io"];
/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// Pieces of data that wait for a port.
const DEPTH: usize = 16;
/// Ports of one request.
const PORTS: usize = 100;

/// Where connections go.
#[derive(Clone)]
struct Destination {
    agents: Agents,
    target: Arc<Target>,
}

/// Connects a client with a pod's ports.
pub fn answer(exchange: &mut Exchange<'_>, target: Target) -> Result<Response<Body>, Status> {
    let phase = meta::text(&target.pod.value, &["status", "phase"]);
    if phase != "Running" {
        return Err(Status::bad_request(format!(
            "pod {} is not running: its phase is {phase:?}",
            target.name()
        )));
    }
    let agreed = upgrade::agree(exchange, IN_WEBSOCKET, IN_STREAMS)?;
    let destination = Destination {
        agents: exchange.server.agents.clone(),
        target: Arc::new(target),
    };
    Ok(match (agreed.transport, agreed.protocol) {
        (Transport::Spdy, _) => agreed.then(exchange, async move |client| {
            streams(client, &destination).await
        }),
        (_, TUNNELLED) => agreed.then(exchange, async move |client| {
            let (carrying, inner) = websocket::tunnel(client);
            tokio::select! {
                ended = carrying => ended,
                ended = streams(inner, &destination) => ended,
            }
        }),
        _ => {
            let ports = ports(exchange)?;
            agreed.then(exchange, async move |client| {
                channels(client, &destination, &ports).await
            })
        }
    })
}

/// The ports that a WebSocket's client names: `ports=80&ports=81`, or `ports=80,81`.
fn ports(exchange: &Exchange<'_>) -> Result<Vec<u16>, Status> {
    let named = exchange.query.all("ports").flat_map(|list| list.split(','));
    let ports: Result<Vec<u16>, Status> = named
        .map(|port| {
            let number = port.trim().parse::<u16>().ok().filter(|port| *port > 0);
            number.ok_or_else(|| Status::bad_request(format!("invalid port {port:?}")))
        })
        .collect();
    let ports = ports?;
    if ports.is_empty() || ports.len() > PORTS {
        let why = format!("query parameter \"ports\" must name 1 to {PORTS} ports");
        return Err(Status::bad_request(why));
    }
    Ok(ports)
}

impl Destination {
    /// Opens a connection to a port.
    async fn connect(&self, port: u16) -> Result<TokioIo<Upgraded>, String> {
        let mut query = Query::default();
        query.add("port", &port.to_string());
        let path = format!("/portforward/{}{}", self.target.uid(), query.0);
        let connecting = self.agents.upgrade(&self.target.node.value, &path, "tcp");
        connecting.await.map_err(|error| {
            format!(
                "error forwarding port {port} to pod {}, uid {}: {}",
                self.target.name(),
                self.target.uid(),
                error.message
            )
        })
    }
}

/// Where something is said to the client.
trait Outlet: Send + Sync {
    /// Says something.
    fn send(&self, bytes: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
    /// Says no more.
    fn finish(&self) -> impl Future<Output = io::Result<()>> + Send;
    /// Completes when the client wants no more of it.
    fn unwanted(&self) -> impl Future<Output = ()> + Send;
}

impl Outlet for spdy::Output {
    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        spdy::Output::send(self, bytes).await
    }

    async fn finish(&self) -> io::Result<()> {
        spdy::Output::finish(self).await
    }

    async fn unwanted(&self) {
        self.reset().await;
    }
}

/// Carries one connection; `data` and `error` end when the pod has closed it.
async fn carry(
    destination: &Destination,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    data: &impl Outlet,
    error: &impl Outlet,
) -> io::Result<()> {
    let pod = match destination.connect(port).await {
        Ok(pod) => pod,
        Err(why) => {
            error.send(why.as_bytes()).await?;
            error.finish().await?;
            return data.finish().await;
        }
    };
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let outward = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match from_pod.read(&mut chunk).await {
                Ok(0) => break,
                Ok(length) => data.send(&chunk[..length]).await?,
                Err(why) => {
                    error.send(why.to_string().as_bytes()).await?;
                    break;
                }
            }
        }
        data.finish().await?;
        error.finish().await
    };
    let inward = async {
        while let Some(bytes) = input.recv().await {
            to_pod.write_all(&bytes).await?;
        }
        // The pod may still have something to say.
        to_pod.shutdown().await?;
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! {
        done = outward => done,
        failed = inward => {
            data.finish().await?;
            error.finish().await?;
            failed
        }
        () = data.unwanted() => error.finish().await,
    }
}

/// Connections as a client opens them, a pair of streams each.
async fn streams<C>(client: C, destination: &Destination) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send + 'static,
{
    let (connection, mut opened) = spdy::accept(client)?;
    let mut carrying = JoinSet::new();
    let serving = async {
        let mut waiting: HashMap<String, spdy::Stream> = HashMap::new();
        while let Some(stream) = opened.recv().await {
            let request = stream.header("requestid").to_owned();
            let Some(first) = waiting.remove(&request) else {
                waiting.insert(request, stream);
                continue;
            };
            let (data, error) = match (first.header("streamtype"), stream.header("streamtype")) {
                ("error", "data") => (stream, first),
                ("data", "error") => (first, stream),
                kinds => {
                    tracing::debug!(?kinds, request, "streams that are no pair");
                    continue;
                }
            };
            let port = data.header("port").parse::<u16>();
            let destination = destination.clone();
            carrying.spawn(async move {
                let Ok(port) = port else {
                    error.output.send(b"the stream names no port").await?;
                    error.output.finish().await?;
                    return data.output.finish().await;
                };
                carry(&destination, port, data.input, &data.output, &error.output).await
            });
            while carrying.try_join_next().is_some() {}
        }
        std::future::pending::<io::Result<()>>().await
    };
    tokio::select! {
        ended = connection.run() => ended,
        ended = serving => ended,
    }
}

/// A channel of a WebSocket.
#[derive(Clone)]
struct Channel {
    number: u8,
    to: Arc<Writer<WriteHalf<TokioIo<Upgraded>>>>,
}

impl Outlet for Channel {
    async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.to.data(&[&[self.number], bytes].concat()).await
    }

    /// Channels have no end of their own.
    async fn finish(&self) -> io::Result<()> {
        Ok(())
    }

    async fn unwanted(&self) {
        std::future::pending::<()>().await;
    }
}

/// One connection a port, a pair of channels each; the WebSocket ends with the last of them.
async fn channels(
    client: TokioIo<Upgraded>,
    destination: &Destination,
    ports: &[u16],
) -> io::Result<()> {
    let (mut reading, writing) = websocket::split(client);
    let writing = Arc::new(writing);
    let (mut carrying, mut inputs) = (JoinSet::new(), Vec::new());
    for (at, port) in ports.iter().copied().enumerate() {
        let number = u8::try_from(at * 2).map_err(io::Error::other)?;
        let [data, error] = [number, number + 1].map(|number| Channel {
            number,
            to: writing.clone(),
        });
        // Each channel begins with its port.
        data.send(&port.to_le_bytes()).await?;
        error.send(&port.to_le_bytes()).await?;
        let (sender, input) = mpsc::channel(DEPTH);
        inputs.push(sender);
        let destination = destination.clone();
        carrying.spawn(async move { carry(&destination, port, input, &data, &error).await });
    }
    let inward = async {
        while let Some(message) = reading.next().await? {
            match message {
                Message::Data(data) => {
                    if let [channel, payload @ ..] = data.as_slice()
                        && channel % 2 == 0
                        && let Some(input) = inputs.get(usize::from(channel / 2))
                        && input.send(Bytes::copy_from_slice(payload)).await.is_err()
                    {
                        tracing::trace!(channel, "the pod has closed this port");
                    }
                }
                Message::Ping(payload) => writing.pong(&payload).await?,
            }
        }
        io::Result::Ok(())
    };
    let all_ended = async {
        while let Some(ended) = carrying.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        writing.close().await
    };
    tokio::select! {
        done = inward => done,
        done = all_ended => done,
    }
}
