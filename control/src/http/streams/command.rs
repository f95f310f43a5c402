//! Commands in containers over a WebSocket: `v5.channel.k8s.io` and its elder, whose channels are the agents' own.

use std::io;

use axum::body::Body;
use http::{HeaderValue, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use portolan_wire::frames::{self, Decoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::handlers::Exchange;
use super::websocket::{self, Message};
use super::{Query, Target, text};
use crate::api::Status;

/// What is spoken, the best first.
const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Bytes read at once.
const CHUNK: usize = 32 * 1024;

/// Runs a command on the pod's node, and connects it with the client.
pub async fn answer(
    exchange: &mut Exchange<'_>,
    target: &Target,
) -> Result<Response<Body>, Status> {
    let asked = &exchange.query;
    let container = target.container(asked.get("container").filter(|name| !name.is_empty()))?;
    let mut query = Query::default();
    for word in asked.all("command") {
        query.add("command", word);
    }
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if asked.flag(flag) {
            query.add(flag, "true");
        }
    }
    let headers = &exchange.parts.headers;
    let Some(key) = websocket::key(headers) else {
        return Err(Status::bad_request("Upgrade request required"));
    };
    let offered = text(headers, websocket::PROTOCOL);
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let protocol = PROTOCOLS.iter().find(|known| offered.contains(known));
    let Some(protocol) = protocol else {
        return Err(Status::bad_request(format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {PROTOCOLS:?}"
        )));
    };
    let mut response = websocket::accepted(key);
    let chosen = HeaderValue::from_static(protocol);
    response.headers_mut().insert(websocket::PROTOCOL, chosen);
    let client = exchange.parts.extensions.remove::<OnUpgrade>();
    let client = client.ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let path = format!("/exec/{}/{container}{}", target.uid(), query.0);
    let agents = &exchange.server.agents;
    let agent = agents
        .upgrade(&target.node.value, &path, frames::PROTOCOL)
        .await?;
    let stop = exchange.stop.clone();
    tokio::spawn(async move {
        let Ok(client) = client.await else {
            return;
        };
        tokio::select! {
            carried = carry(TokioIo::new(client), agent) => {
                if let Err(error) = carried {
                    tracing::debug!(%error, "a command's connection broke");
                }
            }
            () = stop.cancelled() => {}
        }
    });
    Ok(response)
}

/// Carries what both sides say until the command ends or the client goes.
async fn carry(client: TokioIo<Upgraded>, agent: TokioIo<Upgraded>) -> io::Result<()> {
    let (reading, writing) = tokio::io::split(client);
    let (mut reading, writing) = (
        websocket::Reader::new(reading),
        websocket::Writer::new(writing),
    );
    let (mut from_agent, mut to_agent) = tokio::io::split(agent);
    let inward = async {
        while let Some(message) = reading.next().await? {
            match message {
                Message::Data(data) => {
                    if let [channel, payload @ ..] = data.as_slice() {
                        to_agent
                            .write_all(&frames::encode(*channel, payload))
                            .await?;
                    }
                }
                Message::Ping(payload) => writing.pong(&payload).await?,
            }
        }
        io::Result::Ok(())
    };
    let outward = async {
        let mut decoder = Decoder::default();
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = from_agent.read(&mut chunk).await?;
            if length == 0 {
                return writing.close().await;
            }
            decoder.push(&chunk[..length]);
            while let Some(frame) = decoder.frame().map_err(io::Error::other)? {
                writing
                    .data(&[&[frame.channel], frame.payload.as_slice()].concat())
                    .await?;
            }
        }
    };
    tokio::select! {
        done = inward => done,
        done = outward => done,
    }
}
