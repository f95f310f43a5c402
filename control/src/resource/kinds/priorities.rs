//! Priority classes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, Faults, Path, columns, metadata};
use super::fill;
use crate::api::meta;

/// The highest priority that users may give.
const HIGHEST: i64 = 1_000_000_000;
/// What names of system classes begin with.
const RESERVED: &str = "system-";
/// The classes of what the cluster itself needs: name, priority, description.
const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2 * HIGHEST,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2 * HIGHEST + 1000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// The classes that every cluster has.
pub fn system_classes() -> impl Iterator<Item = Value> {
    SYSTEM.into_iter().map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
        })
    })
}

/// What priority classes do.
pub struct PriorityClasses;

impl Behaviour for PriorityClasses {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fill(fields, "value", 0);
            fill(fields, "preemptionPolicy", "PreemptLowerPriority");
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let (name, value) = (meta::name(object), meta::number(object, &["value"]));
        if name.starts_with(RESERVED) {
            system(object, name, value, faults);
        } else if value.is_some_and(|value| value > HIGHEST) {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            faults.forbidden(&Path::new("value"), &why);
        }
        let policy = meta::text(object, &["preemptionPolicy"]);
        let known = &["Never", "PreemptLowerPriority"];
        if !known.contains(&policy) {
            faults.unsupported(&Path::new("preemptionPolicy"), policy, known);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        if object["value"] != old["value"] {
            faults.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        metadata::immutable(object, old, &["preemptionPolicy"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::storage::PRIORITY_CLASSES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::storage::priority_class(object, now)
    }
}

/// A reserved name belongs to a class of the system's own, which is as the system has it.
fn system(object: &Value, name: &str, value: Option<i64>, faults: &mut Faults) {
    let reserved = |why: &str| {
        format!(
            "priority class names with '{RESERVED}' prefix are reserved for system use only. error: {why}"
        )
    };
    let path = Path::new("metadata.name");
    let Some((_, wanted, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) else {
        let why = format!("{name} is not a known system priority class");
        faults.forbidden(&path, &reserved(&why));
        return;
    };
    if value != Some(*wanted) {
        let why = format!("value of {name} PriorityClass must be {wanted}");
        faults.forbidden(&path, &reserved(&why));
    } else if object["globalDefault"] == true {
        let why = format!("globalDefault of {name} PriorityClass must be false");
        faults.forbidden(&path, &reserved(&why));
    }
}
