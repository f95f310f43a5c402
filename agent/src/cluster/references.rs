//! `ConfigMap`s and Secrets that pods refer to, read when a container is about to start.

use async_trait::async_trait;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest as Asked, TokenRequestSpec},
    core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};

use super::{ClusterError, request};
use crate::{
    names::Names,
    pod::{PodRef, ReferenceError, References, Token, TokenRequest},
};

/// Reads references from the API. A container that starts later sees what is there then, as with kubelet.
pub struct ApiReferences {
    client: Client,
    names: Names,
}

impl ApiReferences {
    /// Over a client; names are followed already.
    pub fn new(client: Client, names: Names) -> Self {
        Self { client, names }
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

    async fn claimed(
        &self,
        namespace: &str,
        claim: &str,
    ) -> Result<PersistentVolume, ReferenceError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("{namespace}/{claim}");
        let found = request("get persistentvolumeclaim", &object, api.get(claim))
            .await
            .map_err(|error| reference_error("persistentvolumeclaim", claim, error))?;
        let bound = found
            .status
            .is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        let name = found.spec.and_then(|spec| spec.volume_name);
        let name = name
            .filter(|_| bound)
            .ok_or_else(|| ReferenceError::Unbound(claim.to_owned()))?;
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        request("get persistentvolume", &name, api.get(&name))
            .await
            .map_err(|error| reference_error("persistentvolume", &name, error))
    }

    fn names(&self) -> Names {
        self.names.clone()
    }

    async fn token(&self, pod: &PodRef, wanted: &TokenRequest) -> Result<Token, ReferenceError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &pod.namespace);
        let name = &wanted.account;
        let audiences = Some(wanted.audience.clone()).filter(|audience| !audience.is_empty());
        let body = Asked {
            spec: Some(TokenRequestSpec {
                audiences: audiences.map(|audience| vec![audience]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
                expiration_seconds: Some(wanted.seconds),
            }),
            ..Asked::default()
        };
        let object = format!("{}/{name}", pod.namespace);
        let how = PostParams::default();
        let asking = api.create_token_request(name, &how, &body);
        let issued = request("request a token of", &object, asking)
            .await
            .map_err(|error| reference_error("serviceaccount", name, error))?;
        let status = issued.status.unwrap_or_default();
        let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
            return Err(ReferenceError::Unavailable {
                kind: "serviceaccount",
                name: name.clone(),
                source: "the answer holds no token".into(),
            });
        };
        Ok(Token {
            text,
            expires: expires.0,
        })
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
