//! Admission of pods by service account: a new pod's account must be there, and its containers find a token, the
//! cluster's certificate and their namespace in /var/run/secrets/kubernetes.io/serviceaccount.
//!
//! Source: k8s.io/kubernetes, `plugin/pkg/admission/serviceaccount`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::admission::{Admission, Operation, Review};
use super::object::parse;
use super::{ResourceId, Status, meta};
use crate::resource::rows::PODS;
use crate::store::Store;

/// Where accounts are in the store.
const PREFIX: &str = "/registry/core/serviceaccounts/";
/// The account that every namespace gets, a moment after it was made.
const DEFAULT: &str = "default";
/// How often that moment is waited for.
const ATTEMPTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
/// Where containers look.
const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The ConfigMap of each namespace that holds the cluster's certificate.
pub const ROOT: &str = "kube-root-ca.crt";
/// An hour, and some seconds by which these tokens are known.
const LIFE: i64 = 3607;

/// See the file's front page.
pub struct AccountAdmission {
    store: Arc<dyn Store>,
}

impl AccountAdmission {
    /// Reads accounts from the store.
    pub fn new(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { store })
    }

    async fn account(&self, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let key = format!("{PREFIX}{namespace}/{name}");
        let attempts = if name == DEFAULT { ATTEMPTS } else { 1 };
        for attempt in 1..=attempts {
            if let Some(stored) = self.store.get(key.as_bytes()).await? {
                return Ok(Some(parse(&stored)?.value.clone()));
            }
            if attempt < attempts {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Admission for AccountAdmission {
    fn handles(&self, resource: ResourceId) -> bool {
        resource == PODS
    }

    async fn admit(&self, review: &Review<'_>, pod: &mut Value) -> Result<(), Status> {
        if review.operation != Operation::Create || review.subresource.is_some() {
            return Ok(());
        }
        let namespace = review.key.namespace.as_deref().unwrap_or_default();
        let name = meta::text(pod, &["spec", "serviceAccountName"]).to_owned();
        let account = self.account(namespace, &name).await?.ok_or_else(|| {
            let why = format!(
                "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
            );
            Status::forbidden(PODS, &review.key.name, &why)
        })?;
        let own = pod["spec"]["automountServiceAccountToken"].as_bool();
        if own.or(account["automountServiceAccountToken"].as_bool()) != Some(false) {
            mount_token(pod, &meta::generated_name("kube-api-access-"));
        }
        Ok(())
    }

    async fn committed(&self, _: &Review<'_>, _: &Value) {}

    async fn abandoned(&self, _: &Review<'_>, _: &Value) {}
}

/// Shows the token to every container that has nothing else in its place.
fn mount_token(pod: &mut Value, volume: &str) {
    let spec = meta::child_mut(pod, "spec");
    let mut is_mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = meta::list(container, &["volumeMounts"]);
            if mounts.iter().any(|mount| mount["mountPath"] == PLACE) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": PLACE});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
            is_mounted = true;
        }
    }
    if !is_mounted {
        return;
    }
    let namespace = json!({"apiVersion": "v1", "fieldPath": "metadata.namespace"});
    let projected = json!({
        "name": volume,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": LIFE, "path": "token"}},
                {"configMap": {"name": ROOT, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": namespace}]}},
            ],
        },
    });
    match spec.get_mut("volumes").and_then(Value::as_array_mut) {
        Some(volumes) => volumes.push(projected),
        None => {
            spec.insert("volumes".to_owned(), json!([projected]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_find_their_token_unless_something_else_is_there() {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "own", "volumeMounts": [{"name": "x", "mountPath": PLACE}]}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "y", "mountPath": "/y"}]}],
            "volumes": [{"name": "x", "emptyDir": {}}, {"name": "y", "emptyDir": {}}],
        }});
        mount_token(&mut pod, "t");
        let spec = &pod["spec"];
        let mount = json!({"name": "t", "readOnly": true, "mountPath": PLACE});
        assert_eq!(
            spec["initContainers"][0]["volumeMounts"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        assert_eq!(spec["containers"][0]["volumeMounts"], json!([mount]));
        assert_eq!(spec["containers"][1]["volumeMounts"][1], mount);
        assert_eq!(spec["volumes"][2]["name"], "t");
        assert_eq!(spec["volumes"].as_array().map(Vec::len), Some(3));
        let mut without = json!({"spec": {"containers": [
            {"name": "own", "volumeMounts": [{"name": "x", "mountPath": PLACE}]},
        ]}});
        mount_token(&mut without, "t");
        assert!(without["spec"].get("volumes").is_none());
    }
}
