//! The tables of deployments, replica sets, daemon sets and controller revisions.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, NONE, age, column, joined, name, wide};
use crate::api::meta;
use crate::api::selector::LabelSelector;

/// The names of a template's containers.
pub const CONTAINERS: Column = wide(
    "Containers",
    "string",
    "Names of each container in the template.",
);
/// The images of a template's containers.
pub const IMAGES: Column = wide(
    "Images",
    "string",
    "Images referenced by each container in the template.",
);
/// The selector of the pods.
pub const SELECTOR: Column = wide(
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

/// The columns of daemon sets.
pub const DAEMON_SETS: &[Column] = &[
    NAME,
    column("Desired", "integer", "Nodes that are to have a pod."),
    column("Current", "integer", "Nodes that have one."),
    column("Ready", "integer", "Nodes whose pod is ready."),
    column(
        "Up-to-date",
        "integer",
        "Nodes whose pod has the desired template.",
    ),
    column("Available", "integer", "Nodes whose pod is available."),
    column(
        "Node Selector",
        "string",
        "Selector which must match a node's labels.",
    ),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of stateful sets.
pub const STATEFUL_SETS: &[Column] = &[
    NAME,
    column("Ready", "string", "Number of the pod with ready state"),
    AGE,
    CONTAINERS,
    IMAGES,
];

/// The columns of pod disruption budgets.
pub const BUDGETS: &[Column] = &[
    NAME,
    column(
        "Min Available",
        "string",
        "The minimum number of pods that must be available.",
    ),
    column(
        "Max Unavailable",
        "string",
        "The maximum number of pods that may be unavailable.",
    ),
    column(
        "Allowed Disruptions",
        "integer",
        "How many pods may be evicted now.",
    ),
    AGE,
];

/// The columns of controller revisions.
pub const REVISIONS: &[Column] = &[
    NAME,
    column(
        "Controller",
        "string",
        "The workload whose template it was.",
    ),
    column(
        "Revision",
        "integer",
        "Its place in the workload's history.",
    ),
    AGE,
];

fn number(object: &Value, path: &[&str]) -> i64 {
    meta::number(object, path).unwrap_or(0)
}

/// The cells of [`CONTAINERS`], [`IMAGES`] and [`SELECTOR`].
pub fn template(object: &Value) -> [Value; 3] {
    let containers = meta::list(object, &["spec", "template", "spec", "containers"]);
    let selector = LabelSelector::from_spec(&object["spec"]["selector"]).text();
    [
        json!(joined(containers, &["name"])),
        json!(joined(containers, &["image"])),
        json!(if selector.is_empty() { NONE } else { &selector }),
    ]
}

/// The cells of a daemon set.
pub fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |field: &str| json!(number(object, &["status", field]));
    let selector = meta::at(object, &["spec", "template", "spec", "nodeSelector"]);
    let pairs = selector.and_then(Value::as_object).into_iter().flatten();
    let pairs: Vec<String> = pairs
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    let mut cells = vec![
        name(object),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        json!(if pairs.is_empty() {
            NONE.to_owned()
        } else {
            pairs.join(",")
        }),
        age(object, now),
    ];
    cells.extend(template(object));
    cells
}

/// The cells of a stateful set.
pub fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = number(object, &["status", "readyReplicas"]);
    let desired = number(object, &["spec", "replicas"]);
    let [containers, images, _] = template(object);
    vec![
        name(object),
        json!(format!("{ready}/{desired}")),
        age(object, now),
        containers,
        images,
    ]
}

/// The cells of a pod disruption budget.
pub fn budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let amount = |field: &str| match meta::at(object, &["spec", field]) {
        None => json!("N/A"),
        Some(Value::String(text)) => json!(text),
        Some(number) => json!(number.to_string()),
    };
    vec![
        name(object),
        amount("minAvailable"),
        amount("maxUnavailable"),
        json!(number(object, &["status", "disruptionsAllowed"])),
        age(object, now),
    ]
}

/// The cells of a controller revision.
pub fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owners = meta::list(object, &["metadata", "ownerReferences"]);
    let controller = owners.iter().find(|owner| owner["controller"] == true);
    let controller = controller.map_or(NONE.to_owned(), |owner| {
        let kind = meta::text(owner, &["kind"]).to_lowercase();
        let group = meta::text(owner, &["apiVersion"]).split('/').next();
        format!(
            "{kind}.{}/{}",
            group.unwrap_or(""),
            meta::text(owner, &["name"])
        )
    });
    vec![
        name(object),
        json!(controller),
        json!(number(object, &["revision"])),
        age(object, now),
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
