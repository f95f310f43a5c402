//! Rules for where pods want to be: affinities, spreading, and the selectors of labels and nodes that these use.

use serde_json::Value;

use super::super::{Faults, Path, metadata, names};
use crate::api::meta;

const EMPTY: &str = "can not be empty";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// What is wrong with where a pod's spec wants to be.
pub fn validate(spec: &Value, path: &Path, faults: &mut Faults) {
    let affinity = path.child("affinity");
    if let Some(nodes) = meta::at(spec, &["affinity", "nodeAffinity"]) {
        node_affinity(nodes, &affinity.child("nodeAffinity"), faults);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = meta::at(spec, &["affinity", kind]) else {
            continue;
        };
        let path = affinity.child(kind);
        for (at, term) in meta::list(pods, &[REQUIRED]).iter().enumerate() {
            pod_term(term, &path.child(REQUIRED).index(at), faults);
        }
        for (at, weighted) in meta::list(pods, &[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(at);
            weight(weighted, &path, faults);
            let term = &weighted["podAffinityTerm"];
            pod_term(term, &path.child("podAffinityTerm"), faults);
        }
    }
    spread(spec, &path.child("topologySpreadConstraints"), faults);
}

fn weight(term: &Value, path: &Path, faults: &mut Faults) {
    let weight = meta::number(term, &["weight"]).unwrap_or(0);
    if !(1..=100).contains(&weight) {
        let why = "must be in the range 1-100";
        faults.invalid(&path.child("weight"), &Value::from(weight), why);
    }
}

fn node_affinity(affinity: &Value, path: &Path, faults: &mut Faults) {
    if let Some(required) = affinity.get(REQUIRED) {
        node_selector(required, &path.child(REQUIRED), faults);
    }
    for (at, preferred) in meta::list(affinity, &[PREFERRED]).iter().enumerate() {
        let path = path.child(PREFERRED).index(at);
        weight(preferred, &path, faults);
        node_term(&preferred["preference"], &path.child("preference"), faults);
    }
}

/// What is wrong with a selector of nodes.
pub fn node_selector(selector: &Value, path: &Path, faults: &mut Faults) {
    let path = path.child("nodeSelectorTerms");
    let terms = meta::list(selector, &["nodeSelectorTerms"]);
    if terms.is_empty() {
        faults.required(&path, "must have at least one node selector term");
    }
    for (at, term) in terms.iter().enumerate() {
        node_term(term, &path.index(at), faults);
    }
}

fn node_term(term: &Value, path: &Path, faults: &mut Faults) {
    let place = path.child("matchExpressions");
    for (at, expression) in meta::list(term, &["matchExpressions"]).iter().enumerate() {
        let path = place.index(at);
        let values = meta::list(expression, &["values"]);
        let operator = meta::text(expression, &["operator"]);
        match operator {
            "In" | "NotIn" if values.is_empty() => faults.required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => faults.forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "Gt" | "Lt" if values.len() != 1 => faults.required(
                &path.child("values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => faults.invalid_text(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        let key = meta::text(expression, &["key"]);
        faults.invalid_each(&path.child("key"), key, &names::qualified_name(key));
    }
    let place = path.child("matchFields");
    for (at, field) in meta::list(term, &["matchFields"]).iter().enumerate() {
        let path = place.index(at);
        if !matches!(meta::text(field, &["operator"]), "In" | "NotIn") {
            let operator = meta::text(field, &["operator"]);
            let why = "not a valid selector operator";
            faults.invalid_text(&path.child("operator"), operator, why);
        } else if meta::list(field, &["values"]).len() != 1 {
            let why =
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            faults.required(&path.child("values"), why);
        }
        let key = meta::text(field, &["key"]);
        if key != "metadata.name" {
            let why = "not a valid field selector key";
            faults.invalid_text(&path.child("key"), key, why);
        }
    }
}

fn pod_term(term: &Value, path: &Path, faults: &mut Faults) {
    for field in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.get(field) {
            label_selector(selector, &path.child(field), faults);
        }
    }
    for name in meta::list(term, &["namespaces"]) {
        let name = name.as_str().unwrap_or_default();
        let found = names::label_1123(name);
        faults.invalid_each(&path.child("namespace"), name, &found);
    }
    topology_key(term, path, faults);
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        label_keys(term, field, path, faults);
    }
}

fn topology_key(term: &Value, path: &Path, faults: &mut Faults) {
    let (path, key) = (
        path.child("topologyKey"),
        meta::text(term, &["topologyKey"]),
    );
    if key.is_empty() {
        faults.required(&path, EMPTY);
    } else {
        faults.invalid_each(&path, key, &names::qualified_name(key));
    }
}

fn label_keys(term: &Value, field: &str, path: &Path, faults: &mut Faults) {
    let keys = meta::list(term, &[field]);
    if keys.is_empty() {
        return;
    }
    let path = path.child(field);
    if term.get("labelSelector").is_none() {
        faults.forbidden(&path, "must not be specified when labelSelector is not set");
    }
    for (at, key) in keys.iter().enumerate() {
        let key = key.as_str().unwrap_or_default();
        faults.invalid_each(&path.index(at), key, &names::qualified_name(key));
    }
}

fn spread(spec: &Value, path: &Path, faults: &mut Faults) {
    let constraints = meta::list(spec, &["topologySpreadConstraints"]);
    for (at, constraint) in constraints.iter().enumerate() {
        let path = path.index(at);
        let number = |field: &str| meta::number(constraint, &[field]);
        for field in ["maxSkew", "minDomains"] {
            let given = number(field).or((field == "maxSkew").then_some(0));
            if let Some(value) = given.filter(|value| *value < 1) {
                let why = "must be greater than zero";
                faults.invalid(&path.child(field), &Value::from(value), why);
            }
        }
        topology_key(constraint, &path, faults);
        let when = meta::text(constraint, &["whenUnsatisfiable"]);
        let known = &["DoNotSchedule", "ScheduleAnyway"];
        if !known.contains(&when) {
            faults.unsupported(&path.child("whenUnsatisfiable"), when, known);
        } else if let Some(domains) = number("minDomains").filter(|_| when != "DoNotSchedule") {
            let why =
                format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {when}");
            faults.invalid(&path.child("minDomains"), &Value::from(domains), &why);
        }
        let same = |other: &&Value| {
            other["topologyKey"] == constraint["topologyKey"]
                && other["whenUnsatisfiable"] == constraint["whenUnsatisfiable"]
        };
        if constraints[..at].iter().any(|other| same(&other)) {
            let key = meta::text(constraint, &["topologyKey"]);
            let pair = format!("{{{key}, {when}}}");
            let place = path.child("{topologyKey, whenUnsatisfiable}");
            faults.duplicate(&place, &Value::from(pair));
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            let text = meta::text(constraint, &[field]);
            if !text.is_empty() && !["Honor", "Ignore"].contains(&text) {
                faults.unsupported(&path.child(field), text, &["Honor", "Ignore"]);
            }
        }
        if let Some(selector) = constraint.get("labelSelector") {
            label_selector(selector, &path.child("labelSelector"), faults);
        }
        label_keys(constraint, "matchLabelKeys", &path, faults);
    }
}

/// What is wrong with a label selector of a spec.
pub fn label_selector(selector: &Value, path: &Path, faults: &mut Faults) {
    metadata::labels(
        selector.get("matchLabels"),
        &path.child("matchLabels"),
        faults,
    );
    for (at, expression) in meta::list(selector, &["matchExpressions"])
        .iter()
        .enumerate()
    {
        let path = path.child("matchExpressions").index(at);
        let values = meta::list(expression, &["values"]);
        match meta::text(expression, &["operator"]) {
            "In" | "NotIn" if values.is_empty() => faults.required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => faults.forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid_text(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            ),
        }
        let key = meta::text(expression, &["key"]);
        let found = names::qualified_name(key);
        faults.invalid_each(&path.child("key"), key, &found);
    }
}
