//! Persistent volumes and their claims: who has which, in which phase each is, and when each may go.
//!
//! A claim of a class that waits for its first consumer is bound once the scheduler has chosen a volume, by writing the
//! claim into it; all others are given the best volume that there is. Every step is seen in the objects themselves:
//! `claimRef` of the volume, then `volumeName` of the claim, then their phases.
//!
//! Source of the rules: k8s.io/kubernetes, `pkg/controller/volume/{persistentvolume,pvcprotection,pvprotection}`.

pub mod matching;
mod volume;

use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::{
    Context,
    cache::{Change, Object, key_of},
    events::{Regarding, Severity},
    informers::{BY_CLAIM, Informers, claim_word},
    meta,
    pod_control::gone_is_fine,
    pods,
    resources::{PERSISTENT_VOLUMES, VOLUME_CLAIMS},
    worker::{Controller, Error, Outcome, own_key},
};
use crate::{
    api::{ObjectKey, ResourceId},
    resource::kinds::persistent_volumes::CLAIM_PROTECTION,
};
use matching::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, class_of_claim, class_of_volume, is_bound, is_meant_for,
    volume_name,
};

pub use volume::controller as volume_controller;

/// The row of claims.
pub fn claim_controller(context: &Arc<Context>) -> Controller<ObjectKey> {
    let informers = &context.informers;
    let shared = Arc::clone(context);
    let (of_volumes, of_classes) = (Arc::clone(context), Arc::clone(context));
    Controller::new("persistentvolumeclaim", &context.clock, move |key| {
        let context = Arc::clone(&shared);
        async move { reconcile(&context, &key).await }
    })
    .watch(&informers.volume_claims, own_key)
    .watch(
        &informers.persistent_volumes,
        move |change: &Change<PersistentVolume>| {
            let mut keys: Vec<_> = change
                .sides()
                .filter_map(|volume| matching::holder(volume).map(|(key, _)| key))
                .collect();
            if let Some(volume) = &change.new {
                let class = class_of_volume(volume);
                keys.extend(waiting(&of_volumes.informers, class));
            }
            keys
        },
    )
    .watch(
        &informers.storage_classes,
        move |change: &Change<StorageClass>| {
            let name = change.key().map(|key| key.name);
            name.map_or_else(Vec::new, |name| waiting(&of_classes.informers, &name))
        },
    )
    .watch(&informers.pods, |change: &Change<Pod>| {
        let pods = change.sides();
        pods.flat_map(|pod| claims_of(pod)).collect()
    })
}

/// The keys of the claims of a pod.
fn claims_of(pod: &Pod) -> Vec<ObjectKey> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let key = |name: String| ObjectKey {
        namespace: pod.metadata.namespace.clone(),
        name,
    };
    let claims = crate::scheduler::demand::claims(pod, spec);
    claims.into_iter().map(key).collect()
}

/// The claims of a class that have no volume.
fn waiting(informers: &Informers, class: &str) -> Vec<ObjectKey> {
    let claims = informers.volume_claims.cache().all();
    claims
        .iter()
        .filter(|claim| !is_bound(claim) && class_of_claim(claim) == class)
        .map(|claim| key_of(&claim.metadata))
        .collect()
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Result<Outcome, Error> {
    let informers = &context.informers;
    let Some(claim) = informers.volume_claims.cache().get(key) else {
        return Ok(Outcome::Done);
    };
    if meta::is_terminating(&claim.metadata) && !is_used(informers, key) {
        let name = CLAIM_PROTECTION;
        take_off(context, VOLUME_CLAIMS, claim.as_ref(), name).await?;
        return Ok(Outcome::Done);
    }
    let volume = ObjectKey {
        namespace: None,
        name: volume_name(&claim).to_owned(),
    };
    if volume.name.is_empty() {
        return find_volume(context, &claim).await;
    }
    match informers.persistent_volumes.cache().get(&volume) {
        Some(volume) => settle(context, &claim, &volume).await?,
        None if is_bound(&claim) => {
            let why = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            lose(context, &claim, "ClaimLost", why).await?;
        }
        None => {}
    }
    Ok(Outcome::Done)
}

/// Whether a pod that has a node, and may still read or write, uses a claim.
fn is_used(informers: &Informers, claim: &ObjectKey) -> bool {
    let namespace = claim.namespace.as_deref().unwrap_or_default();
    let users = informers
        .pods
        .cache()
        .find(BY_CLAIM, &claim_word(namespace, &claim.name));
    let mut users = users.iter();
    users.any(|pod| pods::node(pod).is_some() && !pods::is_finished(pod))
}

/// Takes a finalizer off, if the object is as it was seen.
async fn take_off<T: Object>(
    context: &Context,
    resource: ResourceId,
    object: &T,
    finalizer: &str,
) -> Result<(), Error> {
    let metadata = object.metadata();
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    let before = finalizers.len();
    finalizers.retain(|one| one != finalizer);
    if finalizers.len() == before {
        return Ok(());
    }
    let patch = json!({"metadata": {"finalizers": finalizers}});
    let version = metadata.resource_version.as_deref();
    let key = key_of(metadata);
    let patched = context
        .client
        .merge_at(resource, &key, None, version, patch)
        .await;
    gone_is_fine(patched)
}

/// A claim that has no volume gets one, if it is to have one now.
async fn find_volume(context: &Context, claim: &PersistentVolumeClaim) -> Result<Outcome, Error> {
    if meta::is_terminating(&claim.metadata) {
        return Ok(Outcome::Done);
    }
    let informers = &context.informers;
    let volumes = informers.persistent_volumes.cache().all();
    let waits = waits_for_consumer(informers, claim);
    let best = matching::best(
        volumes
            .iter()
            .filter(|volume| !waits || is_meant_for(volume, claim)),
        claim,
    );
    if let Some(volume) = best {
        settle(context, claim, volume).await?;
        return Ok(Outcome::Done);
    }
    let (severity, reason, message) = why_none(informers, claim, waits);
    context
        .events
        .record(Regarding::object(claim), severity, reason, message);
    Ok(Outcome::Done)
}

/// Whether a claim is bound only when the scheduler has chosen a node for a pod that uses it.
pub fn waits_for_consumer(informers: &Informers, claim: &PersistentVolumeClaim) -> bool {
    let key = ObjectKey {
        namespace: None,
        name: class_of_claim(claim).to_owned(),
    };
    let class = informers.storage_classes.cache().get(&key);
    class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
}

fn why_none(
    informers: &Informers,
    claim: &PersistentVolumeClaim,
    waits: bool,
) -> (Severity, &'static str, String) {
    let name = class_of_claim(claim).to_owned();
    if waits {
        let message = "waiting for first consumer to be created before binding";
        return (Severity::Normal, "WaitForFirstConsumer", message.to_owned());
    }
    if name.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return (Severity::Normal, "FailedBinding", message.to_owned());
    }
    let key = ObjectKey {
        namespace: None,
        name: name.clone(),
    };
    match informers.storage_classes.cache().get(&key) {
        None => (
            Severity::Warning,
            "ProvisioningFailed",
            format!("storageclass.storage.k8s.io \"{name}\" not found"),
        ),
        Some(class) if class.provisioner.starts_with("kubernetes.io/") => (
            Severity::Warning,
            "ProvisioningFailed",
            format!("no volume plugin matched name: {}", class.provisioner),
        ),
        Some(class) => (
            Severity::Normal,
            "ExternalProvisioning",
            format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system \
                 administrator. If volume creation is delayed, please verify that the provisioner is running and \
                 correctly registered.",
                class.provisioner
            ),
        ),
    }
}

/// Brings a claim and its volume together, from wherever that stands.
async fn settle(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), Error> {
    let is_own = is_meant_for(volume, claim);
    if matching::holder(volume).is_some() && !is_own {
        if is_bound(claim) {
            let why = "Two claims are bound to the same volume, this one is bound incorrectly";
            lose(context, claim, "ClaimMisbound", why).await?;
        }
        return Ok(());
    }
    if !is_bound(claim)
        && let Some(mismatch) = matching::mismatch(volume, claim)
    {
        let name = meta::name(&volume.metadata);
        let message = format!("Cannot bind to requested volume \"{name}\": {mismatch}");
        let regarding = Regarding::object(claim);
        let severity = Severity::Warning;
        context
            .events
            .record(regarding, severity, "VolumeMismatch", message);
        return Ok(());
    }
    hold(context, claim, volume).await?;
    let bound = complete(context, claim, volume).await?;
    show_bound(context, claim, volume, bound).await
}

/// Writes the claim into the volume.
async fn hold(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), Error> {
    let (key, uid) = (key_of(&claim.metadata), meta::uid(&claim.metadata));
    if matching::holder(volume) == Some((key, uid)) {
        return Ok(());
    }
    let mut patch = claim_reference(claim);
    if matching::holder(volume).is_none() {
        patch["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
    }
    let version = volume.metadata.resource_version.as_deref();
    let key = key_of(&volume.metadata);
    context
        .client
        .merge_at(PERSISTENT_VOLUMES, &key, None, version, patch)
        .await?;
    Ok(())
}

/// What makes a volume a claim's.
pub fn claim_reference(claim: &PersistentVolumeClaim) -> Value {
    json!({"spec": {"claimRef": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": claim.metadata.namespace,
        "name": claim.metadata.name,
        "uid": claim.metadata.uid,
    }}})
}

/// Writes the volume into the claim; the claim's version then, where it was written.
async fn complete(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<Option<String>, Error> {
    if is_bound(claim) {
        return Ok(claim.metadata.resource_version.clone());
    }
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if volume_name(claim).is_empty() {
        annotations[BOUND_BY_CONTROLLER] = json!("yes");
    }
    let patch = json!({
        "metadata": {"annotations": annotations},
        "spec": {"volumeName": volume.metadata.name},
    });
    let version = claim.metadata.resource_version.as_deref();
    let key = key_of(&claim.metadata);
    let written = context
        .client
        .merge_at(VOLUME_CLAIMS, &key, None, version, patch)
        .await?;
    let version = written["metadata"]["resourceVersion"].as_str();
    Ok(version.map(str::to_owned))
}

/// Shows in the claim's status what it has.
async fn show_bound(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    version: Option<String>,
) -> Result<(), Error> {
    let offer = volume.spec.as_ref();
    let modes = offer.and_then(|spec| spec.access_modes.clone());
    let capacity = offer.and_then(|spec| spec.capacity.clone());
    let status = claim.status.as_ref();
    let is_shown = status.is_some_and(|status| {
        status.phase.as_deref() == Some("Bound")
            && status.access_modes == modes
            && status.capacity == capacity
    });
    if is_shown {
        return Ok(());
    }
    let patch = json!({"status": {"phase": "Bound", "accessModes": modes, "capacity": capacity}});
    let (key, version) = (key_of(&claim.metadata), version.as_deref());
    context
        .client
        .merge_at(VOLUME_CLAIMS, &key, Some("status"), version, patch)
        .await?;
    Ok(())
}

/// A claim whose volume is gone, or another's.
async fn lose(
    context: &Context,
    claim: &PersistentVolumeClaim,
    reason: &'static str,
    message: &str,
) -> Result<(), Error> {
    let status = claim.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()) == Some("Lost") {
        return Ok(());
    }
    let patch = json!({"status": {"phase": "Lost", "accessModes": null, "capacity": null}});
    let version = claim.metadata.resource_version.as_deref();
    let key = key_of(&claim.metadata);
    context
        .client
        .merge_at(VOLUME_CLAIMS, &key, Some("status"), version, patch)
        .await?;
    let regarding = Regarding::object(claim);
    let severity = Severity::Warning;
    context
        .events
        .record(regarding, severity, reason, message.to_owned());
    Ok(())
}
