//! Attaching to a running container: its shim shows what it prints and takes what it is to read.

use std::{fs::File, io, os::fd::AsRawFd as _, sync::Arc};

use http::{Request, Response};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use portolan_wire::frames::{self, Decoder, Frame};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{Body, Node, Query, Refusal, exec, switching};
use crate::runtime::{bundle::Bundle, terminal::size};

/// Bytes read at once.
const CHUNK: usize = 32 * 1024;

/// Which streams are asked for.
#[derive(Clone, Copy)]
struct Asked {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

/// Answers 101 and attaches, or says why not.
pub async fn answer(
    node: &Arc<Node>,
    uid: &str,
    container: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let asked = Asked {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    let bundle = node.running(uid, container)?;
    let shim = connect(&bundle)
        .await
        .map_err(|error| Refusal::internal(&error))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return;
        };
        if let Err(error) = run(asked, shim, upgraded).await {
            tracing::debug!(%error, "a connection to a container broke");
        }
    });
    Ok(switching(frames::PROTOCOL))
}

/// Through the folder's descriptor: the names of sockets are short.
async fn connect(bundle: &Bundle) -> io::Result<UnixStream> {
    let folder = File::open(bundle.path())?;
    UnixStream::connect(bundle.attach_in(folder.as_raw_fd())).await
}

async fn run(asked: Asked, shim: UnixStream, upgraded: Upgraded) -> io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(TokioIo::new(upgraded));
    let (from_shim, mut to_shim) = shim.into_split();
    tokio::select! {
        shown = show(asked, from_shim, &mut to_client) => {
            shown?;
            let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
            exec::end(&mut to_client, &success).await
        }
        typed = take_input(asked, from_client, &mut to_shim) => {
            if asked.stdin {
                close_input(&mut to_shim).await?;
            }
            match typed {
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    exec::end(&mut to_client, &exec::misunderstood(&error)).await
                }
                typed => typed,
            }
        }
    }
}

async fn close_input(shim: &mut OwnedWriteHalf) -> io::Result<()> {
    shim.write_all(&frames::encode(frames::CLOSE, &[frames::STDIN]))
        .await
}

/// What the container prints, until it ends.
async fn show(
    asked: Asked,
    mut shim: OwnedReadHalf,
    client: &mut WriteHalf<TokioIo<Upgraded>>,
) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = shim.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&chunk[..length]);
        while let Some(Frame { channel, payload }) = decoder.frame().map_err(io::Error::other)? {
            let wanted = match channel {
                frames::STDOUT => asked.stdout,
                frames::STDERR => asked.stderr,
                _ => false,
            };
            if wanted {
                pass(client, channel, &payload).await?;
            }
        }
    }
}

/// What it is to read, until the client goes.
async fn take_input(
    asked: Asked,
    mut client: ReadHalf<TokioIo<Upgraded>>,
    shim: &mut OwnedWriteHalf,
) -> io::Result<()> {
    let mut decoder = Decoder::default();
    let mut chunk = vec![0; CHUNK];
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    loop {
        let length = client.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&chunk[..length]);
        while let Some(Frame { channel, payload }) = decoder.frame().map_err(broken)? {
            match channel {
                frames::RESIZE => {
                    size(&payload)?;
                }
                frames::STDIN | frames::CLOSE if asked.stdin => {}
                _ => continue,
            }
            pass(shim, channel, &payload).await?;
        }
    }
}

async fn pass(to: &mut (impl AsyncWrite + Unpin), channel: u8, payload: &[u8]) -> io::Result<()> {
    to.write_all(&frames::encode(channel, payload)).await?;
    to.flush().await
}
