//! The tables of deployments and replica sets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, NONE, age, column, joined, name, wide};
use crate::api::meta;
use crate::api::selector::LabelSelector;

const CONTAINERS: Column = wide(
    "Containers",
    "string",
    "Names of each container in the template.",
);
const IMAGES: Column = wide(
    "Images",
    "string",
    "Images referenced by each container in the template.",
);
const SELECTOR: Column = wide(
    "Selector",
    "string",
    "Selector for the pods of the workload.",
);

/// The columns of deployments.
pub const DEPLOYMENTS: &[Column] = &[
    NAME,
    column("Ready", "string", "Number of the pod with ready state"),
    column(
        "Up-to-date",
        "string",
        "Total number of non-terminated pods that have the desired template.",
    ),
    column("Available", "string", "Total number of available pods."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of replica sets.
pub const REPLICA_SETS: &[Column] = &[
    NAME,
    column("Desired", "integer", "Number of desired pods."),
    column(
        "Current",
        "integer",
        "Most recently observed number of pods.",
    ),
    column("Ready", "integer", "Number of pods that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn number(object: &Value, path: &[&str]) -> i64 {
    meta::number(object, path).unwrap_or(0)
}

fn template(object: &Value) -> [Value; 3] {
    let containers = meta::list(object, &["spec", "template", "spec", "containers"]);
    let selector = LabelSelector::from_spec(&object["spec"]["selector"]).text();
    [
        json!(joined(containers, &["name"])),
        json!(joined(containers, &["image"])),
        json!(if selector.is_empty() { NONE } else { &selector }),
    ]
}

/// The cells of a deployment.
pub fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = number(object, &["status", "readyReplicas"]);
    let desired = number(object, &["spec", "replicas"]);
    let mut cells = vec![
        name(object),
        json!(format!("{ready}/{desired}")),
        json!(number(object, &["status", "updatedReplicas"])),
        json!(number(object, &["status", "availableReplicas"])),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

/// The cells of a replica set.
pub fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![
        name(object),
        json!(number(object, &["spec", "replicas"])),
        json!(number(object, &["status", "replicas"])),
        json!(number(object, &["status", "readyReplicas"])),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}
