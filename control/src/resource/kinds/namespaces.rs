//! Namespaces.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, columns};
use super::fill;
use crate::api::meta;

/// The label that carries a namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// What namespaces do.
pub struct Namespaces;

impl Behaviour for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if !name.is_empty() {
            let labels = meta::metadata_mut(object)
                .entry("labels")
                .or_insert_with(|| json!({}));
            labels[NAME_LABEL] = json!(name);
        }
        fill(
            meta::child_mut(object, "spec"),
            "finalizers",
            json!(["kubernetes"]),
        );
    }

    fn prepare_create(&self, object: &mut Value) {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        object["spec"] = old["spec"].clone();
    }

    fn protected(&self, object: &Value) -> Option<&'static str> {
        let own = matches!(
            meta::name(object),
            "default" | "kube-system" | "kube-public"
        );
        own.then_some("this namespace may not be deleted")
    }

    fn returns_deleted(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::cluster::NAMESPACES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cluster::namespace(object, now)
    }
}
