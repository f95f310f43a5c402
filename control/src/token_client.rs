//! `portolan-control token create`: makes a join token through the API, as any client could.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Api, Client, Config};
use rustls::pki_types::CertificateDer;

use crate::cli::TokenCreate;
use crate::grpc::token::{Joins, NAMESPACE, Token};
use crate::pki::Fingerprint;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig can't be read or lacks something.
    #[error("can't use the kubeconfig")]
    Kubeconfig(#[source] Box<KubeconfigError>),
    /// Nodes are to know the cluster by its authority, so there has to be one.
    #[error("the kubeconfig has no certificate authority")]
    Authority,
    /// The server does not answer or refuses.
    #[error("can't create the token")]
    Api(#[source] Box<kube::Error>),
    /// The token is not what the API takes for a Secret.
    #[error("can't write the token as a Secret")]
    Secret(#[from] serde_json::Error),
}

/// Makes a token and returns it.
pub async fn create(options: &TokenCreate) -> Result<Token, Error> {
    let kubeconfig = |error| Error::Kubeconfig(Box::new(error));
    let api = |error| Error::Api(Box::new(error));
    let file = Kubeconfig::read_from(&options.kubeconfig).map_err(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(kubeconfig)?;
    let roots = config.root_cert.as_ref().ok_or(Error::Authority)?;
    let [authority] = &roots[..] else {
        return Err(Error::Authority);
    };
    let authority = Fingerprint::of(&CertificateDer::from(authority.as_slice()));
    let token = Token::generate(&authority.to_string());
    let joins = if options.server {
        Joins::Server
    } else {
        Joins::Node
    };
    let secret = token.to_secret(joins, options.uses, Timestamp::now() + options.ttl);
    let secret: Secret = serde_json::from_value(secret)?;
    let client = Client::try_from(config).map_err(api)?;
    let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
    secrets
        .create(&kube::api::PostParams::default(), &secret)
        .await
        .map_err(api)?;
    Ok(token)
}
