//! Leases: who holds what, until when.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Behaviour, Column, Faults, Path, columns};
use crate::api::meta;

/// What leases do.
pub struct Leases;

impl Behaviour for Leases {
    fn validate(&self, object: &Value, faults: &mut Faults) {
        let path = Path::new("spec");
        let duration = meta::number(object, &["spec", "leaseDurationSeconds"]);
        if let Some(seconds) = duration.filter(|seconds| *seconds <= 0) {
            faults.invalid(
                &path.child("leaseDurationSeconds"),
                &Value::from(seconds),
                "must be greater than 0",
            );
        }
        let transitions = meta::number(object, &["spec", "leaseTransitions"]);
        if let Some(count) = transitions.filter(|count| *count < 0) {
            faults.invalid(
                &path.child("leaseTransitions"),
                &Value::from(count),
                super::super::metadata::NOT_NEGATIVE,
            );
        }
        let holder = meta::at(object, &["spec", "holderIdentity"]);
        if holder.is_some_and(|holder| holder == "") {
            faults.invalid_text(&path.child("holderIdentity"), "", "must not be empty");
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::cluster::LEASES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::cluster::lease(object, now)
    }
}
