//! Pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, Faults, columns};
use super::{pod_defaults, pod_rules};
use crate::api::meta;

/// The fields that select pods.
pub const SELECTABLE: &[(&str, &str)] = &[
    ("spec.nodeName", ""),
    ("spec.restartPolicy", ""),
    ("spec.schedulerName", ""),
    ("spec.serviceAccountName", ""),
    ("spec.hostNetwork", "false"),
    ("status.phase", ""),
    ("status.podIP", ""),
    ("status.nominatedNodeName", ""),
];

/// Seconds that a pod has to end where neither it nor the deletion says.
const DEFAULT_GRACE: i64 = 30;

/// What pods do.
pub struct Pods;

impl Behaviour for Pods {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        pod_defaults::pod_only(spec);
        pod_defaults::spec(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        pod_defaults::admitted(meta::child_mut(object, "spec"));
        let class = pod_defaults::quality_of_service(object);
        object["status"] = json!({"phase": "Pending", "qosClass": class});
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        pod_rules::pod(object, faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        pod_rules::pod_update(object, old, faults);
    }

    fn grace(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        let ended = matches!(
            meta::text(object, &["status", "phase"]),
            "Succeeded" | "Failed"
        );
        let unbound = meta::text(object, &["spec", "nodeName"]).is_empty();
        if unbound || (ended && !meta::is_terminating(object)) {
            return Some(0);
        }
        let own = meta::number(object, &["spec", "terminationGracePeriodSeconds"]);
        let grace = asked.or(own).unwrap_or(DEFAULT_GRACE);
        Some(if grace < 0 { 1 } else { grace })
    }

    fn returns_deleted(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::pods::COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::pods::cells(object, now)
    }
}
