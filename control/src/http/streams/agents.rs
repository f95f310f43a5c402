//! The nodes' agents as control asks them: HTTP/1.1 over TLS, each known by its node's name in a certificate of the
//! cluster's authority. See the agent's `streams` for what they answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::port_of;
use crate::api::{Status, meta};
use crate::pki::{self, Authority, client_config};

/// How long a node may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the file's front page.
#[derive(Clone)]
pub struct Agents(TlsConnector);

impl Agents {
    /// With a certificate of the authority's by which agents know control.
    pub fn new(authority: &Authority) -> Result<Self, pki::Error> {
        let config = client_config(authority, &authority.control()?)?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    async fn send(
        &self,
        node: &Value,
        method: Method,
        path: &str,
        upgrade: Option<&str>,
    ) -> Result<Response<Incoming>, Status> {
        let name = meta::name(node);
        let unreachable =
            |why: String| Status::internal(format!("node {name} can't be reached: {why}"));
        let connecting = tokio::time::timeout(PATIENCE, self.connect(node));
        let stream = connecting
            .await
            .map_err(|_| unreachable("it does not answer".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let failed = |error: hyper::Error| unreachable(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an agent ended");
            }
        });
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, name);
        if let Some(protocol) = upgrade {
            request = request
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, protocol);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| Status::bad_request(error.to_string()))?;
        sender.send_request(request).await.map_err(failed)
    }

    async fn connect(
        &self,
        node: &Value,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let addresses = meta::list(node, &["status", "addresses"]).iter();
        let mut internal = addresses.filter(|one| one["type"] == "InternalIP");
        let address = internal.next().map(|one| meta::text(one, &["address"]));
        let missing = || std::io::Error::other("it has not said where its agent listens");
        let (address, port) = address.zip(port_of(node)).ok_or_else(missing)?;
        let stream = TcpStream::connect((address, port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(meta::name(node).to_owned());
        let name = name.map_err(std::io::Error::other)?;
        self.0.connect(name, stream).await
    }

    /// Reads something; what the agent refuses is refused here in its words.
    pub async fn get(&self, node: &Value, path: &str) -> Result<Response<Incoming>, Status> {
        let response = self.send(node, Method::GET, path, None).await?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        Err(refusal(response).await)
    }

    /// Opens a stream that goes both ways.
    pub async fn upgrade(
        &self,
        node: &Value,
        path: &str,
        protocol: &str,
    ) -> Result<TokioIo<Upgraded>, Status> {
        let response = self.send(node, Method::POST, path, Some(protocol)).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let upgraded = hyper::upgrade::on(response).await;
        let upgraded = upgraded.map_err(|error| Status::internal(error.to_string()))?;
        Ok(TokioIo::new(upgraded))
    }
}

async fn refusal(response: Response<Incoming>) -> Status {
    let code = response.status();
    let said = match response.into_body().collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(error) => error.to_string(),
    };
    match code {
        StatusCode::BAD_REQUEST => Status::bad_request(said),
        StatusCode::NOT_FOUND => Status {
            message: said,
            ..Status::no_such_path()
        },
        _ => Status::internal(said),
    }
}
