//! The claims of a `StatefulSet`'s pods: made before their pods, with names that last, and kept or let go as the set's
//! retention policy says.

use std::sync::Arc;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod, Volume},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use serde_json::{Value, json};

use super::{
    super::{
        Context, cache::key_of, meta, patch::without_nulls, pod_control::gone_is_fine,
        resources::VOLUME_CLAIMS, worker::Error,
    },
    owner,
    plan::ordinal,
};
use crate::api::ObjectKey;

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.volume_claim_templates.as_deref())
        .unwrap_or_default()
}

/// The claim of a template for an ordinal: "data-web-0".
fn name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i64) -> String {
    let (template, set) = (meta::name(&template.metadata), meta::name(&set.metadata));
    format!("{template}-{set}-{ordinal}")
}

/// Whether claims go with the set (`whenDeleted`) and with pods that are too many (`whenScaled`).
fn goes(set: &StatefulSet) -> (bool, bool) {
    let spec = set.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let is_delete = |text: Option<&String>| text.is_some_and(|text| text == "Delete");
    let deleted = policy.and_then(|policy| policy.when_deleted.as_ref());
    let scaled = policy.and_then(|policy| policy.when_scaled.as_ref());
    (is_delete(deleted), is_delete(scaled))
}

/// Puts the claims of an ordinal among the volumes of its pod, in place of the template's that have the same names.
pub fn mount(set: &StatefulSet, ordinal: i64, volumes: &mut Vec<Volume>) {
    for template in templates(set) {
        let of = meta::name(&template.metadata);
        volumes.retain(|volume| volume.name != of);
        volumes.push(Volume {
            name: of.to_owned(),
            persistent_volume_claim: Some(
                k8s_openapi::api::core::v1::PersistentVolumeClaimVolumeSource {
                    claim_name: name(set, template, ordinal),
                    read_only: None,
                },
            ),
            ..Volume::default()
        });
    }
}

/// Makes the claims of a pod that is about to be made. Those that are there stay as they are.
pub async fn make(context: &Context, set: &StatefulSet, ordinal: i64) -> Result<(), Error> {
    let namespace = meta::namespace(&set.metadata);
    for template in templates(set) {
        let key = ObjectKey {
            namespace: set.metadata.namespace.clone(),
            name: name(set, template, ordinal),
        };
        let cache = context.informers.volume_claims.cache();
        if cache.get(&key).is_some() {
            continue;
        }
        let claim = claim_of(set, template, &key.name);
        match context
            .client
            .create(VOLUME_CLAIMS, Some(namespace), claim)
            .await
        {
            Ok(_) => {}
            Err(status) if status.reason == "AlreadyExists" => {}
            Err(source) => {
                let action = format!("create claim {namespace}/{}", key.name);
                return Err(Error::Api { action, source });
            }
        }
    }
    Ok(())
}

fn claim_of(set: &StatefulSet, template: &PersistentVolumeClaim, name: &str) -> Value {
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    let spec = set.spec.as_ref();
    let selected = spec.and_then(|spec| spec.selector.match_labels.clone());
    labels.extend(selected.unwrap_or_default());
    let owners = goes(set).0.then(|| vec![of_set(set)]);
    without_nulls(json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": set.metadata.namespace,
            "labels": labels,
            "annotations": template.metadata.annotations,
            "ownerReferences": owners,
        },
        "spec": template.spec,
    }))
}

fn of_set(set: &StatefulSet) -> OwnerReference {
    let owner = owner(set);
    OwnerReference {
        block_owner_deletion: None,
        ..meta::controller_reference(owner.api_version, owner.kind, &set.metadata)
    }
}

fn of_pod(pod: &Pod) -> OwnerReference {
    OwnerReference {
        controller: None,
        block_owner_deletion: None,
        ..meta::controller_reference("v1", "Pod", &pod.metadata)
    }
}

/// Writes into the claims of the set's pods who takes them along: the set, a pod that is one too many, or nobody.
pub async fn retain(
    context: &Context,
    set: &StatefulSet,
    own: &[Arc<Pod>],
    wanted: std::ops::Range<i64>,
) -> Result<(), Error> {
    let (deleted, scaled) = goes(set);
    for pod in own {
        let Some(ordinal) = ordinal(meta::name(&set.metadata), pod) else {
            continue;
        };
        let taker = match (deleted, scaled) {
            (_, true) if !wanted.contains(&ordinal) => Some(of_pod(pod)),
            (true, _) => Some(of_set(set)),
            _ => None,
        };
        for template in templates(set) {
            let key = ObjectKey {
                namespace: set.metadata.namespace.clone(),
                name: name(set, template, ordinal),
            };
            if let Some(claim) = context.informers.volume_claims.cache().get(&key) {
                hand_over(context, set, &claim, taker.clone()).await?;
            }
        }
    }
    Ok(())
}

async fn hand_over(
    context: &Context,
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    taker: Option<OwnerReference>,
) -> Result<(), Error> {
    let before = claim.metadata.owner_references.clone().unwrap_or_default();
    // Owners of other kinds are none of ours.
    let is_ours = |owner: &OwnerReference| {
        owner.uid == meta::uid(&set.metadata) || (owner.kind == "Pod" && owner.api_version == "v1")
    };
    let mut owners: Vec<_> = before.iter().filter(|one| !is_ours(one)).cloned().collect();
    owners.extend(taker);
    let uids = |owners: &[OwnerReference]| -> Vec<String> {
        owners.iter().map(|owner| owner.uid.clone()).collect()
    };
    if uids(&owners) == uids(&before) {
        return Ok(());
    }
    let patch = json!({"metadata": {"ownerReferences": owners}});
    let version = claim.metadata.resource_version.as_deref();
    let key = key_of(&claim.metadata);
    let written = context
        .client
        .merge_at(VOLUME_CLAIMS, &key, None, version, patch)
        .await;
    gone_is_fine(written)
}
