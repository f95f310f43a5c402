//! Commands in containers, and their consoles: what the client's WebSocket messages or SPDY streams carry is carried on to
//! the agent in frames whose channels are those of Kubernetes' remote command protocol.

use std::io;
use std::time::Duration;

use axum::body::Body;
use http::Response;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use portolan_wire::frames::{self, Decoder, Frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::sync::mpsc;

use super::super::handlers::Exchange;
use super::upgrade::{self, Transport};
use super::websocket::{self, Message};
use super::{Kind, Query, Target, spdy};
use crate::api::Status;

/// What is spoken in a WebSocket, the best first.
const IN_WEBSOCKET: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// What is spoken in streams.
const IN_STREAMS: &[&str] = &["v4.channel.k8s.io"];
/// Bytes read at once.
const CHUNK: usize = 32 * 1024;
/// How long a client may take to open the streams that it has asked for.
const OPENING: Duration = Duration::from_secs(30);
/// How long a client may take to read how its command ended.
const PARTING: Duration = Duration::from_secs(10);
/// Frames that wait for the agent.
const DEPTH: usize = 8;

/// The streams that a client opens, by their type, and their channels.
const STREAMS: [(&str, u8); 5] = [
    ("error", frames::ERROR),
    ("stdin", frames::STDIN),
    ("stdout", frames::STDOUT),
    ("stderr", frames::STDERR),
    ("resize", frames::RESIZE),
];

/// Runs a command on the pod's node, or attaches to what runs there, and connects it with the client.
pub async fn answer(
    exchange: &mut Exchange<'_>,
    kind: Kind,
    target: &Target,
) -> Result<Response<Body>, Status> {
    let asked = &exchange.query;
    let container = target.container(asked.get("container").filter(|name| !name.is_empty()))?;
    let mut query = Query::default();
    if kind == Kind::Exec {
        for word in asked.all("command") {
            query.add("command", word);
        }
    }
    let mut wanted = vec![frames::ERROR];
    let tty = asked.flag("tty");
    for (flag, channel) in &STREAMS[1..4] {
        // A terminal shows both at one place.
        if asked.flag(flag) && !(tty && *flag == "stderr") {
            query.add(flag, "true");
            wanted.push(*channel);
        }
    }
    if tty {
        query.add("tty", "true");
        wanted.push(frames::RESIZE);
    }
    let path = format!("/{}/{}/{container}{}", kind.name(), target.uid(), query.0);
    let agreed = upgrade::agree(exchange, IN_WEBSOCKET, IN_STREAMS)?;
    let agents = &exchange.server.agents;
    let agent = agents
        .upgrade(&target.node.value, &path, frames::PROTOCOL)
        .await?;
    let transport = agreed.transport;
    Ok(agreed.then(exchange, async move |client| match transport {
        Transport::WebSocket => messages(client, agent).await,
        Transport::Spdy => streams(client, agent, &wanted).await,
    }))
}

/// Carries what both sides say until the command ends or the client goes.
async fn messages(client: TokioIo<Upgraded>, agent: TokioIo<Upgraded>) -> io::Result<()> {
    let (mut reading, writing) = websocket::split(client);
    let (from_agent, mut to_agent) = tokio::io::split(agent);
    let mut said = Said::by(from_agent);
    let inward = async {
        while let Some(message) = reading.next().await? {
            match message {
                Message::Data(data) => {
                    if let [channel, payload @ ..] = data.as_slice() {
                        let frame = frames::encode(*channel, payload);
                        to_agent.write_all(&frame).await?;
                    }
                }
                Message::Ping(payload) => writing.pong(&payload).await?,
            }
        }
        io::Result::Ok(())
    };
    let outward = async {
        while let Some(frame) = said.next().await? {
            writing
                .data(&[&[frame.channel], frame.payload.as_slice()].concat())
                .await?;
        }
        writing.close().await
    };
    tokio::select! {
        done = inward => done,
        done = outward => done,
    }
}

/// The same where the client has a stream for each channel.
async fn streams(
    client: TokioIo<Upgraded>,
    agent: TokioIo<Upgraded>,
    wanted: &[u8],
) -> io::Result<()> {
    let (connection, mut opened) = spdy::accept(client)?;
    let running = connection.run();
    tokio::pin!(running);
    let opening = tokio::time::timeout(OPENING, open_all(&mut opened, wanted));
    let streams = tokio::select! {
        // Gone before it has begun.
        ended = &mut running => return ended,
        streams = opening => streams.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?,
    };
    let (from_agent, mut to_agent) = tokio::io::split(agent);
    let mut said = Said::by(from_agent);
    let (to_send, mut sending) = mpsc::channel(DEPTH);
    let mut outputs = Vec::new();
    for (channel, stream) in streams {
        outputs.push((channel, stream.output));
        if matches!(channel, frames::STDIN | frames::RESIZE) {
            tokio::spawn(take(channel, stream.input, to_send.clone()));
        }
    }
    drop(to_send);
    let inward = async {
        while let Some(frame) = sending.recv().await {
            to_agent.write_all(&frame).await?;
        }
        // That the client says no more does not end the command.
        std::future::pending::<io::Result<()>>().await
    };
    let outward = async {
        while let Some(frame) = said.next().await? {
            let mut outputs = outputs.iter();
            if let Some((_, output)) = outputs.find(|(channel, _)| *channel == frame.channel) {
                output.send(&frame.payload).await?;
            }
        }
        for (_, output) in &outputs {
            output.finish().await?;
        }
        io::Result::Ok(())
    };
    tokio::select! {
        ended = &mut running => return ended,
        failed = inward => return failed,
        done = outward => done?,
    }
    // It hangs up when it has read all.
    match tokio::time::timeout(PARTING, running).await {
        Ok(ended) => ended,
        Err(_) => Ok(()),
    }
}

/// Waits for the streams of some channels.
async fn open_all(
    opened: &mut mpsc::Receiver<spdy::Stream>,
    wanted: &[u8],
) -> Vec<(u8, spdy::Stream)> {
    let mut streams: Vec<(u8, spdy::Stream)> = Vec::new();
    while streams.len() < wanted.len() {
        let Some(stream) = opened.recv().await else {
            break;
        };
        let kind = stream.header("streamtype");
        let known = STREAMS.iter().find(|(name, _)| *name == kind);
        let channel = known.map(|(_, channel)| *channel);
        let channel = channel.filter(|channel| wanted.contains(channel));
        let free = channel.filter(|channel| streams.iter().all(|(taken, _)| taken != channel));
        if let Some(channel) = free {
            streams.push((channel, stream));
        } else {
            tracing::debug!(kind, "a stream that nobody has asked for");
        }
    }
    streams
}

/// Makes frames of what a client says on a stream.
async fn take(channel: u8, mut input: mpsc::Receiver<bytes::Bytes>, to: mpsc::Sender<Vec<u8>>) {
    let mut begun = Vec::new();
    while let Some(bytes) = input.recv().await {
        // Sizes are lines of JSON; whatever is typed goes as it comes.
        let payload = if channel == frames::RESIZE {
            begun.extend_from_slice(&bytes);
            let Some(end) = begun.iter().rposition(|byte| *byte == b'\n') else {
                continue;
            };
            let lines: Vec<u8> = begun.drain(..=end).collect();
            let mut lines = lines.split(|byte| *byte == b'\n');
            // Only the last size counts.
            lines.rfind(|line| !line.is_empty()).map(<[u8]>::to_vec)
        } else {
            Some(bytes.to_vec())
        };
        let frame = payload.map(|payload| frames::encode(channel, &payload));
        if let Some(frame) = frame
            && to.send(frame).await.is_err()
        {
            return;
        }
    }
    if channel == frames::STDIN
        && to
            .send(frames::encode(frames::CLOSE, &[channel]))
            .await
            .is_err()
    {
        tracing::trace!("the command has ended before its input");
    }
}

/// What an agent says, frame by frame.
struct Said {
    from: ReadHalf<TokioIo<Upgraded>>,
    decoder: Decoder,
    chunk: Vec<u8>,
}

impl Said {
    fn by(from: ReadHalf<TokioIo<Upgraded>>) -> Self {
        Self {
            from,
            decoder: Decoder::default(),
            chunk: vec![0; CHUNK],
        }
    }

    async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.frame().map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            let length = self.from.read(&mut self.chunk).await?;
            if length == 0 {
                return Ok(None);
            }
            self.decoder.push(&self.chunk[..length]);
        }
    }
}
