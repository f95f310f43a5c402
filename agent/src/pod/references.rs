//! What pods refer to by name: the API objects that a container's environment and volumes are made from.

use std::error::Error;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, Secret};

use super::{PodRef, Token, TokenRequest};
use crate::names::Names;

/// Reads what pods refer to; `cluster` implements it over the API, tests over a map.
#[async_trait]
pub trait References: Send + Sync + 'static {
    /// A `ConfigMap` of the pod's namespace.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, ReferenceError>;

    /// A Secret of the pod's namespace.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ReferenceError>;

    /// The volume that a claim of the pod's namespace is bound to.
    async fn claimed(
        &self,
        namespace: &str,
        claim: &str,
    ) -> Result<PersistentVolume, ReferenceError>;

    /// The cluster's Services.
    fn names(&self) -> Names;

    /// A token of the pod's service account, bound to the pod.
    async fn token(&self, pod: &PodRef, wanted: &TokenRequest) -> Result<Token, ReferenceError>;
}

/// Why a reference could not be read; shown to users in `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// There is none of that name. `kind` is the API's lower-case singular: "configmap", "secret", "serviceaccount".
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// "configmap", "secret" or "serviceaccount".
        kind: &'static str,
        /// metadata.name.
        name: String,
    },
    /// It waits for a volume.
    #[error("persistentvolumeclaim \"{0}\" is not bound")]
    Unbound(String),
    /// The control plane did not answer; tried again later.
    #[error("failed to read {kind} \"{name}\": {source}")]
    Unavailable {
        /// "configmap", "secret" or "serviceaccount".
        kind: &'static str,
        /// metadata.name.
        name: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}
