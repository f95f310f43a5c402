//! Joining: a token and a certificate request go in, a node certificate comes out and is kept in STATE/pki.
//!
//! ```text
//! token ID.SECRET.PIN -> TLS to a server whose chain ends at the CA with that fingerprint -> Join(token, CSR)
//!                     -> certificate checked against key and CA -> STATE/pki, all of it or nothing
//! ```
//!
//! - Nothing is trusted before the CA's fingerprint has matched; the key never leaves the node.
//! - A refusal is final and ends the agent; a server that can't be reached is tried again for as long as it takes.

#![forbid(unsafe_code)]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use portolan_wire::v1::{JoinRequest, join_client::JoinClient};
use rcgen::{CertificateParams, DnType, KeyPair};
use tonic::transport::{ClientTlsConfig, Endpoint, Uri};

mod identity;
mod pinned;
mod token;

pub use identity::{IdentityError, NodeIdentity};
pub use pinned::WrongCa;
pub use token::{JoinToken, TokenError};

use crate::{
    errors::{Backoff, chain, find_cause},
    servers::Servers,
};
use pinned::PinnedCa;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The node has not joined, and no token was given.
    #[error(
        "the node has not joined a cluster yet: name a file with a join token (--join-token-file)"
    )]
    NoToken,
    /// The token's file can't be read.
    #[error("read the join token from {path}", path = .path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The token can't be right.
    #[error("the join token is malformed")]
    Token(#[from] TokenError),
    /// The server's URL is not one.
    #[error("{0:?} is not the https URL of a control server")]
    Server(String),
    /// The server is not the one that made the token, or someone stands between.
    #[error("{server} can't prove that it belongs to the cluster that made the token: {reason}")]
    Untrusted {
        /// Its URL.
        server: String,
        /// What the verifier said.
        reason: String,
    },
    /// The server said no.
    #[error("{server} refused the node: {message}")]
    Refused {
        /// Its URL.
        server: String,
        /// Its words.
        message: String,
    },
    /// The server did not answer.
    #[error("can't reach {server}: {reason}")]
    Unreachable {
        /// Its URL.
        server: String,
        /// How that showed.
        reason: String,
    },
    /// The answer is not a certificate for this node's key by the pinned CA.
    #[error("{server} answered with a certificate that can't be used")]
    Answer {
        /// Its URL.
        server: String,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
    /// No key could be made.
    #[error("make the node's key")]
    Key(#[from] rcgen::Error),
    /// The result could not be kept.
    #[error("keep the node's certificate")]
    Keep(#[source] IdentityError),
}

impl JoinError {
    /// Whether trying again may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// The host part of a server's URL, as certificates name it: an IPv6 address without its brackets.
pub fn server_name(server: &str) -> Option<String> {
    let uri: Uri = server.parse().ok()?;
    if uri.scheme_str() != Some("https") {
        return None;
    }
    let host = uri.host()?;
    Some(
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned(),
    )
}

/// The node's identity: from the state directory, or by joining, for as long as the server can't be reached.
pub async fn identity_or_join(
    state_dir: &Path,
    servers: &Servers,
    node_name: &str,
    token: impl FnOnce() -> Result<JoinToken, JoinError>,
) -> Result<NodeIdentity, JoinError> {
    if let Some(identity) = NodeIdentity::load(state_dir).map_err(JoinError::Keep)? {
        return Ok(identity);
    }
    let token = token()?;
    // One key for all attempts: a server that admitted it and could not say so admits it again.
    let key = KeyPair::generate()?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let server = servers.current();
        match join(&server, node_name, &token, &key).await {
            Ok(identity) => {
                identity.store(state_dir).map_err(JoinError::Keep)?;
                tracing::info!(server, node_name, "joined the cluster");
                return Ok(identity);
            }
            Err(error) if error.is_transient() => {
                servers.leave(&server, &chain(&error));
                let pause = backoff.pause();
                tracing::warn!(error = %chain(&error), retry_in = ?pause, "not joined yet");
                tokio::time::sleep(pause).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks once.
pub async fn join(
    server: &str,
    node_name: &str,
    token: &JoinToken,
    key: &KeyPair,
) -> Result<NodeIdentity, JoinError> {
    let request = JoinRequest {
        token: token.reveal(),
        node_name: node_name.to_owned(),
        certificate_request_pem: certificate_request(node_name, key)?,
    };
    let mut client = JoinClient::new(connect(server, token).await?);
    let response = client
        .join(request)
        .await
        .map_err(|status| refusal(server, &status))?
        .into_inner();
    let unusable = |source| JoinError::Answer {
        server: server.to_owned(),
        source,
    };
    let identity = NodeIdentity::new(
        response.certificate_pem,
        key.serialize_pem(),
        response.ca_pem,
    );
    identity.check(token.pin()).map_err(unusable)?;
    Ok(identity)
}

async fn connect(server: &str, token: &JoinToken) -> Result<tonic::transport::Channel, JoinError> {
    let malformed = || JoinError::Server(server.to_owned());
    let name = server_name(server).ok_or_else(malformed)?;
    let endpoint = Endpoint::from_shared(server.to_owned())
        .map_err(|_| malformed())?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .tls_config_with_verifier(
            ClientTlsConfig::new().domain_name(name),
            PinnedCa::verifier(token.pin()),
        )
        .map_err(|_| malformed())?;
    endpoint
        .connect()
        .await
        .map_err(|error| connection_failure(server, &error))
}

fn certificate_request(node_name: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{node_name}"));
    params.serialize_request(key)?.pem()
}

fn connection_failure(server: &str, error: &(dyn std::error::Error + 'static)) -> JoinError {
    let server = server.to_owned();
    match find_cause::<rustls::Error>(error) {
        Some(rustls::Error::InvalidCertificate(reason)) => JoinError::Untrusted {
            server,
            reason: pinned::explain(reason),
        },
        _ => JoinError::Unreachable {
            server,
            reason: chain(error),
        },
    }
}

fn refusal(server: &str, status: &tonic::Status) -> JoinError {
    use tonic::Code;
    let server = server.to_owned();
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => {
            JoinError::Unreachable {
                server,
                reason: status.message().to_owned(),
            }
        }
        _ => JoinError::Refused {
            server,
            message: status.message().to_owned(),
        },
    }
}
