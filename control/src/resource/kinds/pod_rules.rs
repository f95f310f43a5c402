//! Rules for pods and the pods of templates.

use serde_json::{Value, json};

use super::super::metadata::NOT_NEGATIVE;
use super::super::{Faults, Path, metadata, names};
use super::pod_defaults::CONTAINER_LISTS;
use super::{containers, placement_rules, volumes};
use crate::api::meta;
use crate::routing::options;

/// What of a pod's spec an update may change.
const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// What is wrong with a pod.
pub fn pod(object: &Value, faults: &mut Faults) {
    weight(object, faults);
    spec(&object["spec"], &Path::new("spec"), faults);
}

/// A pod's share of new flows, where its annotation says one.
fn weight(object: &Value, faults: &mut Faults) {
    let annotations = &object["metadata"]["annotations"];
    if let Some(text) = annotations[options::WEIGHT].as_str()
        && options::weight(text).is_none()
    {
        let why = format!(
            "must be a whole number from 0 to {}",
            options::LARGEST_WEIGHT
        );
        let path = Path::new("metadata.annotations").key(options::WEIGHT);
        faults.invalid_text(&path, text, &why);
    }
}

/// What is wrong with a pod's spec.
pub fn spec(spec: &Value, path: &Path, faults: &mut Faults) {
    let known = volumes::validate(spec, &path.child("volumes"), faults);
    containers::validate(spec, path, &known, faults);
    one_of(
        spec,
        path,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        faults,
    );
    one_of(
        spec,
        path,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        faults,
    );
    metadata::labels(
        spec.get("nodeSelector"),
        &path.child("nodeSelector"),
        faults,
    );
    if let Some(seconds) = meta::number(spec, &["activeDeadlineSeconds"])
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        faults.invalid(
            &path.child("activeDeadlineSeconds"),
            &Value::from(seconds),
            "must be between 1 and 2147483647, inclusive",
        );
    }
    let grace = meta::number(spec, &["terminationGracePeriodSeconds"]);
    if let Some(seconds) = grace.filter(|seconds| *seconds < 0) {
        faults.invalid(
            &path.child("terminationGracePeriodSeconds"),
            &Value::from(seconds),
            NOT_NEGATIVE,
        );
    }
    for field in ["hostname", "subdomain"] {
        let text = meta::text(spec, &[field]);
        if !text.is_empty() {
            faults.invalid_each(&path.child(field), text, &names::label_1123(text));
        }
    }
    for field in ["serviceAccountName", "nodeName"] {
        let text = meta::text(spec, &[field]);
        if !text.is_empty() {
            faults.invalid_each(&path.child(field), text, &names::subdomain(text));
        }
    }
    tolerations(spec, &path.child("tolerations"), faults);
    placement_rules::validate(spec, path, faults);
}

/// A required text out of a fixed set.
pub fn one_of(value: &Value, path: &Path, field: &str, allowed: &[&str], faults: &mut Faults) {
    let path = path.child(field);
    match meta::text(value, &[field]) {
        "" => faults.required(&path, ""),
        text if allowed.contains(&text) => {}
        other => faults.unsupported(&path, other, allowed),
    }
}

fn tolerations(spec: &Value, path: &Path, faults: &mut Faults) {
    for (at, toleration) in meta::list(spec, &["tolerations"]).iter().enumerate() {
        let path = path.index(at);
        let text = |field: &str| meta::text(toleration, &[field]);
        if !text("key").is_empty() {
            faults.invalid_each(
                &path.child("key"),
                text("key"),
                &names::qualified_name(text("key")),
            );
        } else if text("operator") != "Exists" {
            faults.invalid_text(
                &path.child("operator"),
                text("operator"),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        match text("operator") {
            "" | "Equal" => {
                let value = text("value");
                faults.invalid_each(&path.child("operator"), value, &names::label_value(value));
            }
            "Exists" => {
                if !text("value").is_empty() {
                    faults.invalid(
                        &path.child("operator"),
                        toleration,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            other => faults.unsupported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !text("effect").is_empty() && !effects.contains(&text("effect")) {
            faults.unsupported(&path.child("effect"), text("effect"), &effects);
        }
        if toleration.get("tolerationSeconds").is_some() && text("effect") != "NoExecute" {
            faults.invalid_text(
                &path.child("effect"),
                text("effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
    }
}

/// What is wrong with a change of a pod.
pub fn pod_update(object: &Value, old: &Value, faults: &mut Faults) {
    let path = Path::new("spec");
    for list in ["containers", "initContainers"] {
        let (now, before) = (
            meta::list(object, &["spec", list]),
            meta::list(old, &["spec", list]),
        );
        if now.len() != before.len() {
            faults.forbidden(
                &path.child(list),
                "pod updates may not add or remove containers",
            );
            return;
        }
    }
    let tolerations = |pod: &Value| pod["spec"]["tolerations"].clone();
    let (now, before) = (tolerations(object), tolerations(old));
    let kept = |one: &Value| {
        let all = now.as_array();
        all.is_some_and(|all| all.contains(one))
    };
    if !before
        .as_array()
        .is_none_or(|before| before.iter().all(kept))
    {
        faults.forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
    // With what may change made equal, the rest must be equal.
    let mut masked = object["spec"].clone();
    let original = &old["spec"];
    // A negative grace might become 1, but none is ever stored.
    for field in ["tolerations", "activeDeadlineSeconds"] {
        let Some(fields) = masked.as_object_mut() else {
            return;
        };
        match original.get(field) {
            Some(value) => {
                fields.insert(field.to_owned(), value.clone());
            }
            None => {
                fields.remove(field);
            }
        }
    }
    for list in CONTAINER_LISTS {
        let before = meta::list(original, &[list]);
        let now = masked.get_mut(list).and_then(Value::as_array_mut);
        for (container, before) in now.into_iter().flatten().zip(before) {
            container["image"] = before.get("image").cloned().unwrap_or_else(|| json!(""));
        }
    }
    if masked != *original {
        faults.forbidden(&path, CHANGEABLE);
    }
}
