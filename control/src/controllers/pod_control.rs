//! The pods of a workload: which it has, taking over and letting go, making and deleting, each write expected to show in
//! the cache before the next round counts.

use std::sync::Arc;

use futures::future::join_all;
use k8s_openapi::{
    api::core::v1::{Pod, PodTemplateSpec},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::key_of,
    client::Precondition,
    events::{Regarding, Severity},
    expectations::{Expectations, Expected},
    informers::{BY_CONTROLLER, ORPHANS},
    meta, patch,
    resources::PODS,
    worker::{Error, chain},
};
use crate::api::{ObjectKey, ResourceId, Status};

/// A workload, as its pods see it.
#[derive(Clone, Copy)]
pub struct Owner<'a> {
    /// How URLs name its kind.
    pub resource: ResourceId,
    /// "apps/v1".
    pub api_version: &'static str,
    /// "ReplicaSet".
    pub kind: &'static str,
    /// Its metadata.
    pub metadata: &'a ObjectMeta,
}

/// What went wrong with pods, in the words of conditions.
pub struct Failure {
    /// "FailedCreate" or "FailedDelete".
    pub reason: &'static str,
    /// Why.
    pub message: String,
    /// For the loop.
    pub error: Error,
}

/// The pods of a workload, and those that are about to be or no longer to be.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Those that it controls and that match.
    pub own: Vec<Arc<Pod>>,
    /// Matching ones without a controller, to take over.
    pub adopt: Vec<Arc<Pod>>,
    /// Those that it controls and that no longer match, to let go.
    pub release: Vec<Arc<Pod>>,
}

impl Owner<'_> {
    /// Its key.
    pub fn key(&self) -> ObjectKey {
        key_of(self.metadata)
    }

    fn regarding(&self) -> Regarding {
        Regarding {
            api_version: self.api_version.to_owned(),
            kind: self.kind.to_owned(),
            namespace: self.metadata.namespace.clone(),
            name: meta::name(self.metadata).to_owned(),
            uid: meta::uid(self.metadata).to_owned(),
        }
    }

    /// The pods that it controls and those of its namespace that nobody does.
    pub fn candidates(&self, context: &Context) -> Vec<Arc<Pod>> {
        let pods = context.informers.pods.cache();
        let mut candidates = pods.find(BY_CONTROLLER, meta::uid(self.metadata));
        candidates.extend(pods.find(ORPHANS, meta::namespace(self.metadata)));
        candidates
    }

    /// Sorts candidates by a selector.
    pub fn claim(&self, candidates: &[Arc<Pod>], selector: &LabelSelector) -> Claimed {
        let mut claimed = Claimed::default();
        let terminating = meta::is_terminating(self.metadata);
        for pod in candidates {
            let matches = meta::matches(selector, pod.metadata.labels.as_ref());
            let mine = meta::is_controlled_by(&pod.metadata, meta::uid(self.metadata));
            let orphan = meta::controller_of(&pod.metadata).is_none();
            match (mine, matches) {
                (true, true) => claimed.own.push(Arc::clone(pod)),
                (true, false) if !terminating => claimed.release.push(Arc::clone(pod)),
                (false, true) if orphan && !terminating && !meta::is_terminating(&pod.metadata) => {
                    claimed.adopt.push(Arc::clone(pod));
                }
                _ => {}
            }
        }
        claimed
    }

    /// Takes over and lets go. What was taken over counts in the next round.
    pub async fn settle(&self, context: &Context, claimed: &Claimed) -> Result<(), Error> {
        for pod in &claimed.adopt {
            self.adopt(context, pod).await?;
        }
        for pod in &claimed.release {
            self.release(context, pod).await?;
        }
        Ok(())
    }

    /// Takes a pod over.
    pub async fn adopt(&self, context: &Context, pod: &Pod) -> Result<(), Error> {
        // The cache may be behind: an owner that is being deleted, or was made anew, adopts nothing.
        let live = context.client.live(self.resource, &self.key()).await?;
        let fresh = live.is_some_and(|live| {
            live["metadata"]["uid"].as_str() == self.metadata.uid.as_deref()
                && live["metadata"]["deletionTimestamp"].is_null()
        });
        if !fresh {
            return Ok(());
        }
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.push(meta::controller_reference(
            self.api_version,
            self.kind,
            self.metadata,
        ));
        set_owners(context, pod, json!(owners)).await
    }

    /// Lets a pod go.
    pub async fn release(&self, context: &Context, pod: &Pod) -> Result<(), Error> {
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != meta::uid(self.metadata));
        set_owners(context, pod, json!(owners)).await
    }

    /// A pod from a template, named after its owner.
    pub fn pod_of(&self, template: Option<PodTemplateSpec>) -> Value {
        let template = template.unwrap_or_default();
        let metadata = template.metadata.unwrap_or_default();
        let reference = meta::controller_reference(self.api_version, self.kind, self.metadata);
        patch::without_nulls(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": format!("{}-", meta::name(self.metadata)),
                "namespace": self.metadata.namespace,
                "labels": metadata.labels,
                "annotations": metadata.annotations,
                "finalizers": metadata.finalizers,
                "ownerReferences": [reference],
            },
            "spec": template.spec,
        }))
    }

    /// Makes pods in growing batches, so that a template that is always refused is refused once and not 500 times.
    pub async fn create(
        &self,
        context: &Context,
        expectations: &Expectations,
        pods: Vec<Value>,
    ) -> Option<Failure> {
        let mut pods = pods.into_iter().peekable();
        let mut batch = 1;
        while pods.peek().is_some() {
            let next = pods.by_ref().take(batch);
            let made = next.map(|pod| self.create_one(context, expectations, pod));
            let made = join_all(made.collect::<Vec<_>>()).await;
            if let Some(failure) = made.into_iter().find_map(Result::err) {
                return Some(failure);
            }
            batch *= 2;
        }
        None
    }

    async fn create_one(
        &self,
        context: &Context,
        expectations: &Expectations,
        pod: Value,
    ) -> Result<(), Failure> {
        let namespace = meta::namespace(self.metadata);
        match context.client.create(PODS, Some(namespace), pod).await {
            Ok(pod) => {
                let metadata = &pod["metadata"];
                let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
                let name = text("name");
                expectations.expect(
                    &self.key(),
                    Expected::Created {
                        key: ObjectKey {
                            namespace: self.metadata.namespace.clone(),
                            name: name.clone(),
                        },
                        uid: text("uid"),
                        revision: text("resourceVersion").parse().unwrap_or(0),
                    },
                );
                context.events.record(
                    self.regarding(),
                    Severity::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {name}"),
                );
                Ok(())
            }
            // The namespace is being cleared, and the owner goes with it.
            Err(source) if is_terminating(&source) => Ok(()),
            Err(source) => {
                let message = source.message.clone();
                context.events.record(
                    self.regarding(),
                    Severity::Warning,
                    "FailedCreate",
                    format!("Error creating: {message}"),
                );
                let name = meta::name(self.metadata);
                Err(Failure {
                    reason: "FailedCreate",
                    message,
                    error: Error::Api {
                        action: format!("create a pod of {namespace}/{name}"),
                        source,
                    },
                })
            }
        }
    }

    /// Deletes pods.
    pub async fn delete(
        &self,
        context: &Context,
        expectations: &Expectations,
        pods: &[Arc<Pod>],
    ) -> Option<Failure> {
        let deleted = pods
            .iter()
            .map(|pod| self.delete_one(context, expectations, pod));
        let deleted = join_all(deleted).await;
        deleted.into_iter().find_map(Result::err)
    }

    async fn delete_one(
        &self,
        context: &Context,
        expectations: &Expectations,
        pod: &Pod,
    ) -> Result<(), Failure> {
        let key = key_of(&pod.metadata);
        let precondition = Precondition {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        };
        let deleted = context
            .client
            .delete(PODS, &key, precondition, None, None)
            .await;
        match deleted {
            Ok(()) => {
                let uid = meta::uid(&pod.metadata).to_owned();
                context.events.record(
                    self.regarding(),
                    Severity::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {}", key.name),
                );
                expectations.expect(&self.key(), Expected::Deleted { key, uid });
                Ok(())
            }
            Err(error) => {
                let message = chain(&error);
                context.events.record(
                    self.regarding(),
                    Severity::Warning,
                    "FailedDelete",
                    format!("Error deleting: {message}"),
                );
                Err(Failure {
                    reason: "FailedDelete",
                    message,
                    error,
                })
            }
        }
    }

    /// Writes what differs of its status; at which revision, if anything does.
    pub async fn write_status<T: serde::Serialize>(
        &self,
        context: &Context,
        before: &T,
        status: &T,
    ) -> Result<Option<i64>, Error> {
        let difference = patch::diff(before, status).map_err(|source| Error::Json {
            action: format!("compare the status of a {}", self.kind),
            source,
        })?;
        let Some(difference) = difference else {
            return Ok(None);
        };
        let version = self.metadata.resource_version.as_deref();
        let patch = json!({"status": difference});
        let patched = context
            .client
            .merge_at(self.resource, &self.key(), Some("status"), version, patch)
            .await;
        match patched {
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
            Ok(object) => {
                let revision = object["metadata"]["resourceVersion"].as_str();
                Ok(revision.and_then(|revision| revision.parse().ok()))
            }
        }
    }
}

async fn set_owners(context: &Context, pod: &Pod, owners: Value) -> Result<(), Error> {
    let patch = json!({"metadata": {"ownerReferences": owners}});
    let version = pod.metadata.resource_version.as_deref();
    let key = key_of(&pod.metadata);
    let patched = context
        .client
        .merge_at(PODS, &key, None, version, patch)
        .await;
    gone_is_fine(patched)
}

/// What is gone needs no write.
pub fn gone_is_fine<T>(written: Result<T, Error>) -> Result<(), Error> {
    match written {
        Err(error) if error.code() == Some(404) => Ok(()),
        other => other.map(|_| ()),
    }
}

fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}
