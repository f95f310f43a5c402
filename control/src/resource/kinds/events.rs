//! Events: what happened to objects, kept for people.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Behaviour, Column, Faults, Path, columns};
use super::fill;
use crate::api::meta;

/// The fields that select events.
pub const SELECTABLE: &[(&str, &str)] = &[
    ("involvedObject.kind", ""),
    ("involvedObject.namespace", ""),
    ("involvedObject.name", ""),
    ("involvedObject.uid", ""),
    ("involvedObject.apiVersion", ""),
    ("involvedObject.resourceVersion", ""),
    ("involvedObject.fieldPath", ""),
    ("reason", ""),
    ("reportingComponent", ""),
    ("source", ""),
    ("type", ""),
];

/// Where events about cluster-scoped objects are.
const CLUSTER_NAMESPACE: &str = "default";

/// What events do.
pub struct Events;

impl Behaviour for Events {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fill(fields, "type", "Normal");
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let about = meta::text(object, &["involvedObject", "namespace"]);
        let own = meta::namespace(object);
        let path = Path::new("involvedObject.namespace");
        if about.is_empty() {
            if own != CLUSTER_NAMESPACE && own != "kube-system" {
                faults.invalid_text(&path, about, "does not match event.namespace");
            }
        } else if about != own {
            faults.invalid_text(&path, about, "does not match event.namespace");
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::cluster::EVENTS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cluster::event(object, now)
    }
}
