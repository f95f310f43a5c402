//! The API as controllers write to it: each call says what it tried when it fails, and deleting what is gone succeeds.

use std::sync::Arc;

use serde_json::{Value, json};

use super::worker::Error;
use crate::api::{
    Api, Caller, DeleteOptions, ListOptions, ObjectKey, PatchKind, ResourceId, Status, WriteOptions,
};

/// The API with a name to call it by.
#[derive(Clone)]
pub struct Client {
    api: Arc<dyn Api>,
    caller: Caller,
    manager: String,
}

/// Which version of an object a write is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    /// metadata.uid.
    pub uid: Option<String>,
    /// metadata.resourceVersion.
    pub resource_version: Option<String>,
}

impl Client {
    /// Calls as a component, for example "kube-scheduler".
    pub fn new(api: Arc<dyn Api>, component: &str) -> Self {
        Self {
            api,
            caller: Caller::system(component),
            manager: component.to_owned(),
        }
    }

    /// What it calls.
    pub fn api(&self) -> &Arc<dyn Api> {
        &self.api
    }

    fn write_options(&self) -> WriteOptions {
        WriteOptions {
            field_manager: Some(self.manager.clone()),
            ..WriteOptions::default()
        }
    }

    /// Reads an object from the store, past every cache; `None` when it does not exist.
    pub async fn live(
        &self,
        resource: ResourceId,
        key: &ObjectKey,
    ) -> Result<Option<Value>, Error> {
        match self.api.get(&self.caller, resource, key).await {
            Ok(object) => Ok(Some(object)),
            Err(status) if status.code == 404 => Ok(None),
            Err(source) => Err(failed("get", resource, key, source)),
        }
    }

    /// Reads up to `limit` objects of a namespace (or all), past every cache.
    pub async fn live_list(
        &self,
        resource: ResourceId,
        namespace: Option<&str>,
        limit: Option<usize>,
    ) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        let mut options = ListOptions {
            limit: Some(limit.unwrap_or(500)),
            ..ListOptions::default()
        };
        loop {
            let page = self
                .api
                .list(&self.caller, resource, namespace, &options)
                .await
                .map_err(|source| Error::Api {
                    action: format!("list {}", resource.plural),
                    source,
                })?;
            items.extend(page.items);
            if limit.is_some() || page.continue_token.is_none() {
                return Ok(items);
            }
            options.continue_token = page.continue_token;
        }
    }

    /// Creates an object; the refusal is the API's own, as callers show it in conditions and events.
    pub async fn create(
        &self,
        resource: ResourceId,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, Status> {
        self.api
            .create(
                &self.caller,
                resource,
                namespace,
                object,
                &self.write_options(),
            )
            .await
    }

    /// Patches an object.
    pub async fn patch(
        &self,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: Value,
    ) -> Result<Value, Error> {
        self.api
            .patch(
                &self.caller,
                resource,
                key,
                subresource,
                kind,
                patch,
                &self.write_options(),
            )
            .await
            .map_err(|source| failed("patch", resource, key, source))
    }

    /// Merges a patch into an object if it is still at this version.
    pub async fn merge_at(
        &self,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        version: Option<&str>,
        mut patch: Value,
    ) -> Result<Value, Error> {
        if let Some(version) = version {
            patch["metadata"]["resourceVersion"] = json!(version);
        }
        self.patch(resource, key, subresource, PatchKind::Merge, patch)
            .await
    }

    /// Replaces an object or a subresource.
    pub async fn update(
        &self,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: Value,
    ) -> Result<Value, Error> {
        self.api
            .update(
                &self.caller,
                resource,
                key,
                subresource,
                object,
                &self.write_options(),
            )
            .await
            .map_err(|source| failed("update", resource, key, source))
    }

    /// Binds a pod to a node.
    pub async fn bind(&self, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), Error> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": uid},
            "target": {"kind": "Node", "name": node},
        });
        self.update(super::resources::PODS, pod, Some("binding"), binding)
            .await?;
        Ok(())
    }

    /// Deletes an object; one that is gone, or gone and made anew, is as good as deleted.
    pub async fn delete(
        &self,
        resource: ResourceId,
        key: &ObjectKey,
        precondition: Precondition,
        grace_period_seconds: Option<i64>,
        propagation_policy: Option<&str>,
    ) -> Result<(), Error> {
        let options = DeleteOptions {
            grace_period_seconds,
            propagation_policy: propagation_policy.map(str::to_owned),
            uid: precondition.uid,
            resource_version: precondition.resource_version,
            dry_run: false,
        };
        match self.api.delete(&self.caller, resource, key, &options).await {
            Ok(_) => Ok(()),
            Err(status) if status.code == 404 => Ok(()),
            Err(source) => Err(failed("delete", resource, key, source)),
        }
    }
}

fn failed(verb: &str, resource: ResourceId, key: &ObjectKey, source: Status) -> Error {
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let slash = if namespace.is_empty() { "" } else { "/" };
    Error::Api {
        action: format!("{verb} {} {namespace}{slash}{}", resource.plural, key.name),
        source,
    }
}
