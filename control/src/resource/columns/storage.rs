//! The tables of persistent volumes, claims, storage classes and priority classes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, age, column, name, wide};
use crate::api::meta;

/// What a cell shows whose field is not set.
const UNSET: &str = "<unset>";
/// Marks a class as the one of claims that name none.
pub const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

const ATTRIBUTES: Column = column(
    "VolumeAttributesClass",
    "string",
    "The name of the VolumeAttributesClass.",
);
const MODE: Column = wide(
    "VolumeMode",
    "string",
    "Whether the volume is used with a formatted filesystem or in raw block state.",
);

/// The columns of persistent volumes.
pub const VOLUMES: &[Column] = &[
    NAME,
    column("Capacity", "string", "The volume's resources and capacity."),
    column(
        "Access Modes",
        "string",
        "All ways the volume can be mounted.",
    ),
    column(
        "Reclaim Policy",
        "string",
        "What happens to the volume when it is released from its claim.",
    ),
    column(
        "Status",
        "string",
        "Whether it is available, bound or released.",
    ),
    column("Claim", "string", "The claim that it is bound to."),
    column("StorageClass", "string", "The class that it belongs to."),
    ATTRIBUTES,
    column("Reason", "string", "Why it failed."),
    AGE,
    MODE,
];

/// The columns of claims.
pub const CLAIMS: &[Column] = &[
    NAME,
    column("Status", "string", "The claim's phase."),
    column("Volume", "string", "The volume that it is bound to."),
    column("Capacity", "string", "The resources of the volume."),
    column(
        "Access Modes",
        "string",
        "The ways the volume can be mounted.",
    ),
    column("StorageClass", "string", "The class that it asks for."),
    ATTRIBUTES,
    AGE,
    MODE,
];

/// The columns of storage classes.
pub const CLASSES: &[Column] = &[
    NAME,
    column("Provisioner", "string", "Who makes volumes of the class."),
    column("ReclaimPolicy", "string", "What becomes of its volumes."),
    column("VolumeBindingMode", "string", "When claims are bound."),
    column(
        "AllowVolumeExpansion",
        "string",
        "Whether its volumes may grow.",
    ),
    AGE,
];

/// The columns of priority classes.
pub const PRIORITY_CLASSES: &[Column] = &[
    NAME,
    column("Value", "integer", "The priority of pods of the class."),
    column(
        "Global-Default",
        "boolean",
        "Whether pods that name no class belong to it.",
    ),
    AGE,
    column(
        "PreemptionPolicy",
        "string",
        "Whether its pods may take the place of others.",
    ),
];

/// "RWO,ROX": each mode once, in Kubernetes' order.
fn modes(object: &Value, path: &[&str]) -> Value {
    let given = meta::list(object, path);
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let short: Vec<_> = known
        .iter()
        .filter(|(mode, _)| given.iter().any(|one| one == mode))
        .map(|(_, short)| *short)
        .collect();
    Value::from(short.join(","))
}

fn or_unset(object: &Value, path: &[&str]) -> Value {
    let text = meta::at(object, path).and_then(Value::as_str);
    Value::from(text.unwrap_or(UNSET))
}

fn phase(object: &Value) -> &str {
    if meta::is_terminating(object) {
        "Terminating"
    } else {
        meta::text(object, &["status", "phase"])
    }
}

/// The cells of a persistent volume.
pub fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let text = |path: &[&str]| Value::from(meta::text(object, path));
    let claim = match meta::at(object, &["spec", "claimRef"]) {
        Some(claim) => format!(
            "{}/{}",
            meta::text(claim, &["namespace"]),
            meta::text(claim, &["name"])
        ),
        None => String::new(),
    };
    vec![
        name(object),
        text(&["spec", "capacity", "storage"]),
        modes(object, &["spec", "accessModes"]),
        text(&["spec", "persistentVolumeReclaimPolicy"]),
        Value::from(phase(object)),
        Value::from(claim),
        text(&["spec", "storageClassName"]),
        or_unset(object, &["spec", "volumeAttributesClassName"]),
        text(&["status", "reason"]),
        age(object, now),
        or_unset(object, &["spec", "volumeMode"]),
    ]
}

/// The cells of a claim. What it holds is shown once it has a volume.
pub fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let text = |path: &[&str]| Value::from(meta::text(object, path));
    let has_volume = !meta::text(object, &["spec", "volumeName"]).is_empty();
    let (capacity, access) = if has_volume {
        (
            text(&["status", "capacity", "storage"]),
            modes(object, &["status", "accessModes"]),
        )
    } else {
        (json!(""), json!(""))
    };
    vec![
        name(object),
        Value::from(phase(object)),
        text(&["spec", "volumeName"]),
        capacity,
        access,
        text(&["spec", "storageClassName"]),
        or_unset(object, &["spec", "volumeAttributesClassName"]),
        age(object, now),
        or_unset(object, &["spec", "volumeMode"]),
    ]
}

/// The cells of a storage class.
pub fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let text = |field: &str| Value::from(meta::text(object, &[field]));
    let is_default = meta::text(object, &["metadata", "annotations", IS_DEFAULT]) == "true";
    let shown = if is_default {
        Value::from(format!("{} (default)", meta::name(object)))
    } else {
        name(object)
    };
    vec![
        shown,
        text("provisioner"),
        text("reclaimPolicy"),
        text("volumeBindingMode"),
        json!(object["allowVolumeExpansion"] == true),
        age(object, now),
    ]
}

/// The cells of a priority class.
pub fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(meta::number(object, &["value"]).unwrap_or(0)),
        json!(object["globalDefault"] == true),
        age(object, now),
        Value::from(meta::text(object, &["preemptionPolicy"])),
    ]
}
