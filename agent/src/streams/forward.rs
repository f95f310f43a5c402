//! Connections to a pod's ports, from inside of its network: programs that listen on localhost only are reached too.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Body, Node, Query, Refusal, switching};
use crate::network::dial;

/// Connects and answers 101, or says why not.
pub async fn answer(
    node: &Arc<Node>,
    uid: &str,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let port = query
        .number("port")
        .and_then(|port| u16::try_from(port).ok());
    let port = port.ok_or_else(|| Refusal::bad_request("no port"))?;
    let pod = node
        .pod(uid)
        .ok_or_else(|| Refusal::not_found("pod not found".to_owned()))?;
    let connecting =
        tokio::task::spawn_blocking(move || dial::localhost(pod.netns.as_deref(), port));
    let connected = connecting
        .await
        .map_err(|error| Refusal::internal(&error))?;
    let stream = connected.map_err(|error| Refusal {
        code: StatusCode::BAD_GATEWAY,
        message: crate::errors::chain(&error),
    })?;
    let mut stream = TcpStream::from_std(stream).map_err(|error| Refusal::internal(&error))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else {
            return;
        };
        let mut upgraded = TokioIo::new(upgraded);
        if let Err(error) = tokio::io::copy_bidirectional(&mut upgraded, &mut stream).await {
            tracing::debug!(%error, port, "a forwarded connection broke");
        }
    });
    Ok(switching("tcp"))
}
