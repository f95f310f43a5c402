//! How a new control server gets the keys of what is encrypted in the store: from another server, by a token, over TLS to
//! whoever has the authority that the token names. With them it opens the authority's own key, which is in the store.

use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_wire::v1::JoinServerRequest;
use portolan_wire::v1::join_client::JoinClient;
use tonic::transport::{ClientTlsConfig, Endpoint, Uri};

use crate::grpc::token::{Malformed, Token};
use crate::pki::{PinnedAuthority, write_private};

const PATIENCE: Duration = Duration::from_secs(15);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The token's file or the keys' can't be used.
    #[error("can't use {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error(transparent)]
    Token(#[from] Malformed),
    /// Not a server's URL.
    #[error("{0:?} is not the https URL of a control server")]
    Url(String),
    /// It can't be reached, or can't prove that it belongs to the cluster of the token.
    #[error("can't reach {server}")]
    Connect {
        /// Its URL.
        server: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It hands nothing over.
    #[error("{server} refused this server: {message}")]
    Refused {
        /// Its URL.
        server: String,
        /// Its words.
        message: String,
    },
}

/// Fetches the keys into a file that only its owner may read.
pub async fn fetch_keys(server: &str, token_file: &Path, key_file: &Path) -> Result<(), Error> {
    let text = std::fs::read_to_string(token_file).map_err(|source| Error::File {
        path: token_file.to_owned(),
        source,
    })?;
    let token: Token = text.parse()?;
    let wrong = || Error::Url(server.to_owned());
    let uri: Uri = server.parse().map_err(|_| wrong())?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
    let host = host.ok_or_else(wrong)?;
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let unreachable = |source| Error::Connect {
        server: server.to_owned(),
        source,
    };
    let channel = Endpoint::from(uri.clone())
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
        .tls_config_with_verifier(
            ClientTlsConfig::new().domain_name(name),
            PinnedAuthority::verifier(&token.authority.to_lowercase()),
        )
        .map_err(unreachable)?
        .connect()
        .await
        .map_err(unreachable)?;
    let request = JoinServerRequest {
        token: token.to_string(),
    };
    let answer = JoinClient::new(channel).join_server(request).await;
    let keys = answer.map_err(|status| Error::Refused {
        server: server.to_owned(),
        message: status.message().to_owned(),
    })?;
    write_private(key_file, &keys.into_inner().encryption_keys).map_err(|source| Error::File {
        path: key_file.to_owned(),
        source,
    })?;
    tracing::info!(server, path = %key_file.display(), "has the cluster's encryption keys");
    Ok(())
}
