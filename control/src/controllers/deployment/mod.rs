//! Deployments: from one template's ReplicaSet to the next, within maxSurge and maxUnavailable.

mod action;
mod plan;
mod proportion;
mod sets;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet},
    core::v1::Pod,
};
use serde_json::json;

use super::{
    Context,
    cache::{Change, key_of},
    client::Precondition,
    events::{Regarding, Severity},
    informers::{BY_CONTROLLER, ORPHANS},
    meta, patch, pods,
    replica_set::patch_set,
    resources::{DEPLOYMENTS, REPLICA_SETS},
    worker::{Controller, Error, Outcome, controller_key, own_key},
};
use crate::api::{ObjectKey, PatchKind};

pub use action::Action;
pub use plan::{Plan, View, plan};

/// The row.
pub fn controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let sets = Arc::clone(&informers.replica_sets);
    let deployments = Arc::clone(&informers.deployments);
    let of_set = controller_key("Deployment");
    Controller::new("deployment", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.deployments, own_key)
    .watch(
        &informers.replica_sets,
        move |change: &Change<ReplicaSet>| {
            let mut keys = of_set(change);
            if let Some(set) = &change.new
                && meta::controller_of(&set.metadata).is_none()
            {
                let namespace = meta::namespace(&set.metadata);
                keys.extend(matching(&deployments.cache().in_namespace(namespace), set));
            }
            keys
        },
    )
    // Recreate waits for the last old pod to end; nothing else here looks at pods.
    .watch(&informers.pods, move |change: &Change<Pod>| {
        let gone = change.new.as_deref().is_none_or(pods::is_finished);
        let Some(pod) = change.sides().next().filter(|_| gone) else {
            return Vec::new();
        };
        let Some(owner) = meta::controller_of(&pod.metadata) else {
            return Vec::new();
        };
        let key = ObjectKey {
            namespace: pod.metadata.namespace.clone(),
            name: owner.name.clone(),
        };
        let set = sets.cache().get(&key);
        set.and_then(|set| {
            let owner = meta::controller_of(&set.metadata)?;
            Some(ObjectKey {
                namespace: key.namespace,
                name: owner.name.clone(),
            })
        })
        .into_iter()
        .collect()
    })
}

fn matching(deployments: &[Arc<Deployment>], set: &ReplicaSet) -> Vec<ObjectKey> {
    deployments
        .iter()
        .filter(|deployment| {
            deployment
                .spec
                .as_ref()
                .is_some_and(|spec| meta::matches(&spec.selector, set.metadata.labels.as_ref()))
        })
        .map(|deployment| key_of(&deployment.metadata))
        .collect()
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(deployment) = informers.deployments.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    let cache = informers.replica_sets.cache();
    let mut sets = cache.find(BY_CONTROLLER, meta::uid(&deployment.metadata));
    sets.extend(cache.find(ORPHANS, meta::namespace(&deployment.metadata)));
    let running = running(context, &sets);
    let plan = plan(&View {
        deployment: &deployment,
        sets: &sets,
        running: &running,
        now: context.clock.now(),
    });
    let mut executor = Executor {
        context,
        version: deployment.metadata.resource_version.clone(),
        collided: false,
        deployment: &deployment,
    };
    for action in &plan.actions {
        executor.apply(action).await?;
    }
    executor.write_status(plan.status).await?;
    Ok(plan.look_again.map_or(Outcome::Done, Outcome::After))
}

/// The sets that have pods which have not ended.
fn running(context: &Context, sets: &[Arc<ReplicaSet>]) -> BTreeSet<String> {
    let pods = context.informers.pods.cache();
    sets.iter()
        .map(|set| meta::uid(&set.metadata))
        .filter(|uid| {
            let of_set = pods.find(BY_CONTROLLER, uid);
            of_set.iter().any(|pod| !pods::is_finished(pod))
        })
        .map(str::to_owned)
        .collect()
}

struct Executor<'a> {
    context: &'a Context,
    deployment: &'a Deployment,
    /// Moves along with what is written, so that the status goes to the version that this round made.
    version: Option<String>,
    collided: bool,
}

impl Executor<'_> {
    async fn apply(&mut self, action: &Action) -> Result<(), Error> {
        match action {
            Action::Adopt(set) => self.adopt(set).await,
            Action::Release(set) => {
                let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
                owners.retain(|owner| owner.uid != meta::uid(&self.deployment.metadata));
                let patch = json!({"metadata": {"ownerReferences": owners}});
                patch_set(self.context, set, patch).await.map(|_| ())
            }
            Action::Create(set) => self.create(set).await,
            Action::Annotate { set, annotations } => {
                let spec = self.deployment.spec.as_ref();
                let seconds = spec.and_then(|spec| spec.min_ready_seconds);
                let patch = json!({
                    "metadata": {"annotations": annotations},
                    "spec": {"minReadySeconds": seconds},
                });
                patch_set(self.context, set, patch).await.map(|_| ())
            }
            Action::Scale { set, to } => self.scale(set, *to).await,
            Action::Delete(set) => {
                let precondition = Precondition {
                    uid: set.metadata.uid.clone(),
                    resource_version: set.metadata.resource_version.clone(),
                };
                let key = key_of(&set.metadata);
                let client = &self.context.client;
                client
                    .delete(REPLICA_SETS, &key, precondition, None, None)
                    .await
            }
            Action::SetRevision(revision) if !self.collided => {
                let revision = revision.to_string();
                let patch = json!({"metadata": {"annotations": {sets::REVISION: revision}}});
                let key = key_of(&self.deployment.metadata);
                let version = self.version.as_deref();
                let client = &self.context.client;
                let written = client
                    .merge_at(DEPLOYMENTS, &key, None, version, patch)
                    .await?;
                let version = &written["metadata"]["resourceVersion"];
                self.version = version.as_str().map(str::to_owned);
                Ok(())
            }
            Action::SetRevision(_) => Ok(()),
        }
    }

    async fn adopt(&self, set: &ReplicaSet) -> Result<(), Error> {
        // The cache may be behind: a Deployment that is being deleted, or was made anew, adopts nothing.
        let key = key_of(&self.deployment.metadata);
        let live = self.context.client.live(DEPLOYMENTS, &key).await?;
        let is_fresh = live.is_some_and(|live| {
            live["metadata"]["uid"].as_str() == self.deployment.metadata.uid.as_deref()
                && live["metadata"]["deletionTimestamp"].is_null()
        });
        if !is_fresh {
            return Ok(());
        }
        let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
        let owner = &self.deployment.metadata;
        owners.push(meta::controller_reference("apps/v1", "Deployment", owner));
        let patch = json!({"metadata": {"ownerReferences": owners}});
        patch_set(self.context, set, patch).await.map(|_| ())
    }

    async fn create(&mut self, set: &ReplicaSet) -> Result<(), Error> {
        let mut object = json!(set);
        object["apiVersion"] = json!("apps/v1");
        object["kind"] = json!("ReplicaSet");
        let namespace = self.deployment.metadata.namespace.as_deref();
        let client = &self.context.client;
        let key = key_of(&set.metadata);
        match client
            .create(REPLICA_SETS, namespace, patch::without_nulls(object))
            .await
        {
            Ok(_) => {
                let size = sets::replicas(set);
                if size > 0 {
                    self.say_scaled(set, 0, size);
                }
                Ok(())
            }
            Err(status) if status.code == 409 => self.meet_existing(&key).await,
            Err(source) => {
                let message = source.message.clone();
                self.context.events.record(
                    Regarding::object(self.deployment),
                    Severity::Warning,
                    "ReplicaSetCreateError",
                    format!(
                        "Failed to create new replica set \"{}\": {message}",
                        key.name
                    ),
                );
                let action = format!("create replica set {}", key.name);
                Err(Error::Api { action, source })
            }
        }
    }

    /// The new set's name is taken: by the set itself, which the cache has not shown yet, or by another.
    async fn meet_existing(&mut self, key: &ObjectKey) -> Result<(), Error> {
        let Some(live) = self.context.client.live(REPLICA_SETS, key).await? else {
            return Ok(());
        };
        let live: ReplicaSet = serde_json::from_value(live).map_err(|source| Error::Json {
            action: format!("read replica set {}", key.name),
            source,
        })?;
        let ours = meta::is_controlled_by(&live.metadata, meta::uid(&self.deployment.metadata));
        self.collided = !(ours && sets::has_template_of(&live, self.deployment));
        Ok(())
    }

    async fn scale(&self, set: &ReplicaSet, to: i32) -> Result<(), Error> {
        let patch = json!({
            "metadata": {"annotations": sets::size_annotations(self.deployment)},
            "spec": {"replicas": to},
        });
        patch_set(self.context, set, patch).await?;
        let from = sets::replicas(set);
        if from != to {
            self.say_scaled(set, from, to);
        }
        Ok(())
    }

    fn say_scaled(&self, set: &ReplicaSet, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let name = meta::name(&set.metadata);
        self.context.events.record(
            Regarding::object(self.deployment),
            Severity::Normal,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {name} from {from} to {to}"),
        );
    }

    async fn write_status(&self, mut status: DeploymentStatus) -> Result<(), Error> {
        if self.collided {
            let count = status.collision_count.unwrap_or(0);
            status.collision_count = Some(count + 1);
        }
        let before = self.deployment.status.clone().unwrap_or_default();
        let difference = patch::diff(&before, &status).map_err(|source| Error::Json {
            action: "compare the status of a deployment".to_owned(),
            source,
        })?;
        let Some(difference) = difference else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"resourceVersion": self.version},
            "status": difference,
        });
        let key = key_of(&self.deployment.metadata);
        let client = &self.context.client;
        client
            .patch(DEPLOYMENTS, &key, Some("status"), PatchKind::Merge, patch)
            .await
            .map(|_| ())
    }
}
