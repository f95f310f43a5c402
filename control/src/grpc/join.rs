//! Join.Join: a token and a certificate request for a node certificate.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use portolan_wire::v1 as wire;
use tonic::{Request, Response, Status};

use super::members::{Members, Taken};
use super::token::{self, Joins, Refused, Token};
use crate::api::Api;
use crate::pki::{Authority, NodeRequest};

/// The longest name that a Kubernetes object may have.
const NAME_LIMIT: usize = 253;
const LABEL_LIMIT: usize = 63;

pub(super) struct Service {
    api: Arc<dyn Api>,
    authority: Arc<Authority>,
    members: Members,
    key_file: Option<PathBuf>,
}

impl Service {
    pub fn new(
        api: Arc<dyn Api>,
        authority: Arc<Authority>,
        members: Members,
        key_file: Option<PathBuf>,
    ) -> Self {
        Self {
            api,
            authority,
            members,
            key_file,
        }
    }
}

#[async_trait]
impl wire::join_server::Join for Service {
    /// Everything is checked before the token is spent, so that a mistake does not cost a use.
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let request = request.into_inner();
        let name = request.node_name.as_str();
        let now = Timestamp::now();
        let token: Token = request
            .token
            .parse()
            .map_err(|error: token::Malformed| Status::unauthenticated(error.to_string()))?;
        token::check(&*self.api, &token, Joins::Node, now)
            .await
            .map_err(|error| refused(&error))?;
        if !is_name(name) {
            return Err(Status::invalid_argument(format!(
                "{name:?} is no node name: lower-case letters, digits, '-' and '.' are"
            )));
        }
        let certificate_request = NodeRequest::parse(&request.certificate_request_pem)
            .map_err(|error| Status::invalid_argument(text(&error)))?;
        let key = certificate_request.key_fingerprint();
        self.members
            .admit(name, &key, now)
            .await
            .map_err(|error| taken(&error))?;
        token::spend(&*self.api, &token, Joins::Node, now)
            .await
            .map_err(|error| refused(&error))?;
        let certificate_pem = self
            .authority
            .node(name, &certificate_request)
            .map_err(|error| Status::internal(text(&error)))?;
        tracing::info!(node = name, token = token.id, "a node has joined");
        Ok(Response::new(wire::JoinResponse {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
        }))
    }

    async fn join_server(
        &self,
        request: Request<wire::JoinServerRequest>,
    ) -> Result<Response<wire::JoinServerResponse>, Status> {
        let token: Token = request
            .into_inner()
            .token
            .parse()
            .map_err(|error: token::Malformed| Status::unauthenticated(error.to_string()))?;
        let now = Timestamp::now();
        token::check(&*self.api, &token, Joins::Server, now)
            .await
            .map_err(|error| refused(&error))?;
        let file = self
            .key_file
            .as_ref()
            .ok_or_else(|| Status::failed_precondition("this server's store is not encrypted"))?;
        // As it is now, not as it was at the start: a key may have come since.
        let encryption_keys = tokio::fs::read_to_string(file)
            .await
            .map_err(|error| Status::internal(text(&error)))?;
        token::spend(&*self.api, &token, Joins::Server, now)
            .await
            .map_err(|error| refused(&error))?;
        tracing::info!(token = token.id, "a control server has joined");
        Ok(Response::new(wire::JoinServerResponse { encryption_keys }))
    }
}

fn refused(error: &Refused) -> Status {
    match error {
        Refused::Wrong | Refused::Expired(_) | Refused::UsedUp => {
            Status::unauthenticated(error.to_string())
        }
        Refused::Api(_) => Status::unavailable(text(error)),
    }
}

fn taken(error: &Taken) -> Status {
    match error {
        Taken::Alive(_) => Status::already_exists(error.to_string()),
        Taken::Store(_) | Taken::Api(_) => Status::unavailable(text(error)),
        Taken::Damaged { .. } => Status::internal(text(error)),
    }
}

/// An error with its causes.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// RFC 1123, as Kubernetes asks of a node's name.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
        (1..=LABEL_LIMIT).contains(&bytes.len())
            && bytes.iter().all(inner)
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
    };
    name.len() <= NAME_LIMIT && name.split('.').all(label)
}
