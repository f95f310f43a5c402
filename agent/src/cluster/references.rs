//! `ConfigMap`s and Secrets that pods refer to, read when a container is about to start.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use super::{ClusterError, request};
use crate::pod::{ReferenceError, References};

/// Reads references from the API. A container that starts later sees what is there then, as with kubelet.
pub struct ApiReferences {
    client: Client,
}

impl ApiReferences {
    /// Over a client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

#[async_trait]
impl References for ApiReferences {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<ConfigMap, ReferenceError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("{namespace}/{name}");
        request("get configmap", &object, api.get(name))
            .await
            .map_err(|error| reference_error("configmap", name, error))
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Secret, ReferenceError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("{namespace}/{name}");
        request("get secret", &object, api.get(name))
            .await
            .map_err(|error| reference_error("secret", name, error))
    }
}

fn reference_error(kind: &'static str, name: &str, error: ClusterError) -> ReferenceError {
    let name = name.to_owned();
    if error.code() == Some(404) {
        return ReferenceError::NotFound { kind, name };
    }
    ReferenceError::Unavailable {
        kind,
        name,
        source: Box::new(error),
    }
}
