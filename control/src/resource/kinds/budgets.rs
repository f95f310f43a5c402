//! Pod disruption budgets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, Faults, Path, columns, metadata};
use crate::api::meta;

/// What pod disruption budgets do.
pub struct Budgets;

impl Behaviour for Budgets {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({
            "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
        });
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let (path, spec) = (Path::new("spec"), &object["spec"]);
        let given = |field: &str| spec.get(field).is_some();
        if given("minAvailable") && given("maxUnavailable") {
            let why = "minAvailable and maxUnavailable cannot be both set";
            faults.invalid(&path, spec, why);
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let place = path.child(field);
            match spec.get(field) {
                Some(Value::String(text)) => {
                    let percent = text
                        .strip_suffix('%')
                        .and_then(|text| text.parse::<u8>().ok());
                    if percent.is_none_or(|percent| percent > 100) {
                        faults.invalid_text(&place, text, "must not be greater than 100%");
                    }
                }
                Some(Value::Number(number)) if number.as_i64().is_some_and(|number| number < 0) => {
                    faults.invalid(&place, &spec[field], metadata::NOT_NEGATIVE);
                }
                _ => {}
            }
        }
        let policy = meta::text(spec, &["unhealthyPodEvictionPolicy"]);
        let known = &["IfHealthyBudget", "AlwaysAllow"];
        if !policy.is_empty() && !known.contains(&policy) {
            faults.unsupported(&path.child("unhealthyPodEvictionPolicy"), policy, known);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::BUDGETS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::budget(object, now)
    }
}
