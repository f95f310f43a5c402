//! Nodes.

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::{Behaviour, Column, Faults, Path, columns, names};
use crate::api::meta;

/// What nodes do.
pub struct Nodes;

impl Behaviour for Nodes {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        // podCIDR is the first of podCIDRs, whichever of them was given.
        match (spec.get("podCIDR").cloned(), spec.get("podCIDRs").cloned()) {
            (Some(first), None) => {
                spec.insert("podCIDRs".to_owned(), json!([first]));
            }
            (None, Some(all)) => {
                if let Some(first) = all.get(0) {
                    spec.insert("podCIDR".to_owned(), first.clone());
                }
            }
            _ => {}
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let path = Path::new("spec.podCIDRs");
        for (at, cidr) in meta::list(object, &["spec", "podCIDRs"]).iter().enumerate() {
            let text = cidr.as_str().unwrap_or("");
            if text.parse::<IpNet>().is_err() {
                faults.invalid_text(
                    &path.index(at),
                    text,
                    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                );
            }
        }
        taints(object, faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        let before = meta::list(old, &["spec", "podCIDRs"]);
        let now = meta::list(object, &["spec", "podCIDRs"]);
        if !before.is_empty() && before != now {
            faults.forbidden(
                &Path::new("spec.podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            );
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::nodes::COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::nodes::cells(object, now)
    }
}

fn taints(object: &Value, faults: &mut Faults) {
    let path = Path::new("metadata.taints");
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (at, taint) in meta::list(object, &["spec", "taints"]).iter().enumerate() {
        let path = path.index(at);
        let key = meta::text(taint, &["key"]);
        let effect = meta::text(taint, &["effect"]);
        faults.invalid_each(&path.child("key"), key, &names::qualified_name(key));
        let value = meta::text(taint, &["value"]);
        faults.invalid_each(&path.child("value"), value, &names::label_value(value));
        match effect {
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            "" => faults.required(&path.child("effect"), ""),
            other => faults.unsupported(
                &path.child("effect"),
                other,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ),
        }
        if seen.contains(&(key, effect)) {
            faults.duplicate(&path, taint);
        }
        seen.push((key, effect));
    }
}
