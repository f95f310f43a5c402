//! Which volume does for a claim.

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec},
    apimachinery::pkg::api::resource::Quantity as Text,
};

use crate::{
    api::ObjectKey,
    controllers::{cache::key_of, meta},
    resource::quantity::Quantity,
    scheduler::terms::Selector,
};

/// Says of a claim that its binding is complete.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Says of a claim or a volume that it was bound to the other by the control plane, not by a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// The name of a class in objects that are older than the field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim asks for; "" for none.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    let named = spec.and_then(|spec| spec.storage_class_name.as_deref());
    named
        .or_else(|| meta::annotation(&claim.metadata, CLASS))
        .unwrap_or_default()
}

/// The class that a volume belongs to; "" for none.
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    let named = spec.and_then(|spec| spec.storage_class_name.as_deref());
    meta::annotation(&volume.metadata, CLASS)
        .or(named)
        .unwrap_or_default()
}

/// The volume that a claim names, or was given; "" for none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.volume_name.as_deref())
        .unwrap_or_default()
}

/// Whether a claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && meta::annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

fn amount(text: Option<&Text>) -> Option<Quantity> {
    text.and_then(|text| text.0.parse().ok())
}

/// How much a volume holds.
pub fn capacity(volume: &PersistentVolume) -> Option<Quantity> {
    let spec = volume.spec.as_ref()?;
    amount(spec.capacity.as_ref()?.get("storage"))
}

/// How much a claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> Option<Quantity> {
    let resources = claim.spec.as_ref()?.resources.as_ref()?;
    amount(resources.requests.as_ref()?.get("storage"))
}

/// The claim that a volume is meant for, with its uid where that is known.
pub fn holder(volume: &PersistentVolume) -> Option<(ObjectKey, &str)> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    let key = ObjectKey {
        namespace: claim.namespace.clone(),
        name: claim.name.clone().unwrap_or_default(),
    };
    Some((key, claim.uid.as_deref().unwrap_or_default()))
}

/// Whether a volume is meant for a claim: by its name, and not for an earlier one of the name.
pub fn is_meant_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    holder(volume).is_some_and(|(key, uid)| {
        key == key_of(&claim.metadata) && (uid.is_empty() || uid == meta::uid(&claim.metadata))
    })
}

/// Why a volume can't be what a claim asks for, its selector and access modes apart; `None`: it can.
pub fn mismatch(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let (of_volume, of_claim) = (volume.spec.as_ref(), claim.spec.as_ref());
    let (of_volume, of_claim) = (of_volume?, of_claim?);
    if capacity(volume) < request(claim) {
        return Some("requested PV is too small");
    }
    if class_of_volume(volume) != class_of_claim(claim) {
        return Some("storageClassName does not match");
    }
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".to_owned());
    if mode(&of_volume.volume_mode) != mode(&of_claim.volume_mode) {
        return Some("incompatible volumeMode");
    }
    let offered = of_volume.access_modes.as_deref().unwrap_or_default();
    let mut wanted = of_claim.access_modes.iter().flatten();
    if !wanted.all(|mode| offered.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}

/// Whether a volume that nobody has may be given to a claim.
pub fn is_free_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default();
    let is_free = match holder(volume) {
        Some(_) => is_meant_for(volume, claim),
        None => matches!(phase, "" | "Pending" | "Available"),
    };
    is_free
        && !meta::is_terminating(&volume.metadata)
        && is_selected(volume, claim.spec.as_ref())
        && mismatch(volume, claim).is_none()
}

fn is_selected(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaimSpec>) -> bool {
    let Some(selector) = claim.and_then(|claim| claim.selector.as_ref()) else {
        return true;
    };
    let labels = volume.metadata.labels.clone().unwrap_or_default();
    Selector::of(Some(selector)).matches(&labels)
}

/// The best of some volumes for a claim: one that is meant for it, else the smallest.
pub fn best<'a, T: AsRef<PersistentVolume>>(
    volumes: impl Iterator<Item = &'a T>,
    claim: &PersistentVolumeClaim,
) -> Option<&'a T> {
    volumes
        .filter(|volume| is_free_for((*volume).as_ref(), claim))
        .min_by_key(|volume| {
            let volume = (*volume).as_ref();
            let is_meant = holder(volume).is_some();
            (!is_meant, capacity(volume), volume.metadata.name.clone())
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, size: &str, change: &Value) -> Arc<PersistentVolume> {
        let mut object = json!({"metadata": {"name": name}, "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "hostPath": {"path": "/v"}}, "status": {"phase": "Available"}});
        json_patch::merge(&mut object, change);
        Arc::new(serde_json::from_value(object).expect("a volume"))
    }

    #[test]
    fn the_smallest_that_does_is_the_best_unless_one_is_meant() {
        let claim = |change: &Value| -> PersistentVolumeClaim {
            let mut object = json!({"metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}},
                "storageClassName": "local"}});
            json_patch::merge(&mut object, change);
            serde_json::from_value(object).expect("a claim")
        };
        let held =
            |name: &str| json!({"spec": {"claimRef": {"namespace": "default", "name": name}}});
        let volumes = [
            volume("small", "1Gi", &json!({})),
            volume("large", "9Gi", &json!({"metadata": {"labels": {"a": "b"}}})),
            volume("right", "2Gi", &json!({})),
            volume(
                "other-class",
                "2Gi",
                &json!({"spec": {"storageClassName": ""}}),
            ),
            volume("taken", "2Gi", &held("other")),
            volume("released", "2Gi", &json!({"status": {"phase": "Released"}})),
            volume(
                "shared",
                "8Gi",
                &json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}}),
            ),
        ];
        let found = |change: &Value| {
            let claim = claim(change);
            best(volumes.iter(), &claim).map(|volume| meta::name(&volume.metadata).to_owned())
        };
        assert_eq!(found(&json!({})).as_deref(), Some("right"));
        let many = json!({"spec": {"accessModes": ["ReadWriteMany"]}});
        assert_eq!(found(&many).as_deref(), Some("shared"));
        let selector = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        assert_eq!(found(&selector).as_deref(), Some("large"));
        let none = json!({"spec": {"resources": {"requests": {"storage": "10Gi"}}}});
        assert_eq!(found(&none), None);
        assert_eq!(
            found(&json!({"metadata": {"name": "other"}})).as_deref(),
            Some("taken")
        );
    }
}
