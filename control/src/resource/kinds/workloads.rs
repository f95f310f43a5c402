//! Deployments, replica sets, daemon sets and the history of templates.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::metadata;
use super::super::{Behaviour, Column, Faults, Path, columns};
use super::placement_rules::label_selector;
use super::{each_mut, fill, map_mut, persistent_volumes, pod_defaults, pod_rules};
use crate::api::meta;
use crate::api::selector::LabelSelector;

/// What deployments do.
pub struct Deployments;
/// What replica sets do.
pub struct ReplicaSets;
/// What daemon sets do.
pub struct DaemonSets;
/// What stateful sets do.
pub struct StatefulSets;
/// What controller revisions do.
pub struct Revisions;

impl Behaviour for Deployments {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "progressDeadlineSeconds", 600);
        fill(spec, "strategy", json!({}));
        if let Some(strategy) = map_mut(spec, "strategy") {
            fill(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                fill(strategy, "rollingUpdate", json!({}));
                if let Some(rolling) = map_mut(strategy, "rollingUpdate") {
                    fill(rolling, "maxSurge", "25%");
                    fill(rolling, "maxUnavailable", "25%");
                }
            }
        }
        template(spec);
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        workload(object, "deployment", faults);
        metadata::not_negative(object, &["spec", "revisionHistoryLimit"], faults);
        strategy(
            &object["spec"]["strategy"],
            &Path::new("spec.strategy"),
            faults,
        );
        let deadline = meta::number(object, &["spec", "progressDeadlineSeconds"]);
        let ready = meta::number(object, &["spec", "minReadySeconds"]).unwrap_or(0);
        metadata::not_negative(object, &["spec", "progressDeadlineSeconds"], faults);
        if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
            faults.invalid(
                &Path::new("spec.progressDeadlineSeconds"),
                &Value::from(deadline),
                "must be greater than minReadySeconds",
            );
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        metadata::immutable(object, old, &["spec", "selector"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::DEPLOYMENTS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::deployment(object, now)
    }
}

impl Behaviour for ReplicaSets {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "replicas", 1);
        template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        workload(object, "replicaset", faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        metadata::immutable(object, old, &["spec", "selector"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::REPLICA_SETS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::replica_set(object, now)
    }
}

impl Behaviour for DaemonSets {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "updateStrategy", json!({}));
        if let Some(strategy) = map_mut(spec, "updateStrategy") {
            fill(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                fill(strategy, "rollingUpdate", json!({}));
                if let Some(rolling) = map_mut(strategy, "rollingUpdate") {
                    fill(rolling, "maxSurge", 0);
                    fill(rolling, "maxUnavailable", 1);
                }
            }
        }
        template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        });
        count_template(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let counted = meta::text(old, &["metadata", "annotations", TEMPLATES]);
        let moved = object["spec"]["template"] != old["spec"]["template"];
        let count = counted.parse().unwrap_or(0) + i64::from(moved);
        if count > 0 {
            count_template(object, count);
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        workload(object, "daemonset", faults);
        metadata::not_negative(object, &["spec", "revisionHistoryLimit"], faults);
        let (strategy, path) = (
            &object["spec"]["updateStrategy"],
            Path::new("spec.updateStrategy"),
        );
        match meta::text(strategy, &["type"]) {
            "OnDelete" => {}
            "RollingUpdate" => {
                let (rolling, path) = (&strategy["rollingUpdate"], path.child("rollingUpdate"));
                let surge = share(rolling, "maxSurge", &path, faults);
                let unavailable = share(rolling, "maxUnavailable", &path, faults);
                let zero = |number: Option<i64>| number.is_none_or(|number| number == 0);
                let place = path.child("maxUnavailable");
                let given = &rolling["maxUnavailable"];
                if zero(surge) && zero(unavailable) {
                    faults.invalid(&place, given, "cannot be 0 when maxSurge is 0");
                } else if !zero(surge) && !zero(unavailable) {
                    faults.invalid(&place, given, "may not be set when maxSurge is non-zero");
                }
            }
            other => faults.unsupported(&path.child("type"), other, &["RollingUpdate", "OnDelete"]),
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        metadata::immutable(object, old, &["spec", "selector"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::DAEMON_SETS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::daemon_set(object, now)
    }
}

/// Where a daemon set counts its templates; the field of old versions lives on in it.
const TEMPLATES: &str = "deprecated.daemonset.template.generation";

fn count_template(object: &mut Value, count: i64) {
    let metadata = meta::child_mut(object, "metadata");
    fill(metadata, "annotations", json!({}));
    if let Some(annotations) = map_mut(metadata, "annotations") {
        annotations.insert(TEMPLATES.to_owned(), json!(count.to_string()));
    }
}

/// What of a stateful set's spec may change.
const CHANGEABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

impl Behaviour for StatefulSets {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "replicas", 1);
        fill(spec, "podManagementPolicy", "OrderedReady");
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
        if let Some(policy) = map_mut(spec, "persistentVolumeClaimRetentionPolicy") {
            fill(policy, "whenDeleted", "Retain");
            fill(policy, "whenScaled", "Retain");
        }
        fill(spec, "updateStrategy", json!({}));
        if let Some(strategy) = map_mut(spec, "updateStrategy") {
            fill(strategy, "type", "RollingUpdate");
            if strategy["type"] == "RollingUpdate" {
                fill(strategy, "rollingUpdate", json!({}));
                if let Some(rolling) = map_mut(strategy, "rollingUpdate") {
                    fill(rolling, "partition", 0);
                }
            }
        }
        fill(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
        if let Some(policy) = map_mut(spec, "persistentVolumeClaimRetentionPolicy") {
            fill(policy, "whenDeleted", "Retain");
            fill(policy, "whenScaled", "Retain");
        }
        for claim in each_mut(spec, "volumeClaimTemplates") {
            fill(claim, "apiVersion", "v1");
            fill(claim, "kind", "PersistentVolumeClaim");
            fill(claim, "spec", json!({}));
            if let Some(wanted) = map_mut(claim, "spec") {
                fill(wanted, "volumeMode", "Filesystem");
            }
            fill(claim, "status", json!({"phase": "Pending"}));
        }
        template(spec);
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"replicas": 0});
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        // Containers mount the claims that are made for their pod as if its template had these volumes.
        let mut with_claims = object.clone();
        claims_as_volumes(&mut with_claims);
        workload(&with_claims, "statefulset", faults);
        let (path, spec) = (Path::new("spec"), &object["spec"]);
        claim_templates(spec, &path, faults);
        for field in [
            &["spec", "revisionHistoryLimit"][..],
            &["spec", "ordinals", "start"],
            &["spec", "updateStrategy", "rollingUpdate", "partition"],
        ] {
            metadata::not_negative(object, field, faults);
        }
        for (field, known) in [
            ("podManagementPolicy", &["OrderedReady", "Parallel"]),
            ("updateStrategy", &["RollingUpdate", "OnDelete"]),
        ] {
            let (place, text) = match field {
                "updateStrategy" => (
                    path.child(field).child("type"),
                    meta::text(spec, &[field, "type"]),
                ),
                _ => (path.child(field), meta::text(spec, &[field])),
            };
            if !known.contains(&text) {
                faults.unsupported(&place, text, known);
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        let fixed = |object: &Value| {
            let mut spec = object["spec"].clone();
            if let Some(fields) = spec.as_object_mut() {
                fields.retain(|field, _| !CHANGEABLE.contains(&field.as_str()));
            }
            spec
        };
        if fixed(object) != fixed(old) {
            faults.forbidden(
                &Path::new("spec"),
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                 'minReadySeconds' are forbidden",
            );
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::STATEFUL_SETS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::stateful_set(object, now)
    }
}

/// Adds the claims' volumes to the template's, in place of those that have the same names.
fn claims_as_volumes(set: &mut Value) {
    let claims: Vec<Value> = meta::list(set, &["spec", "volumeClaimTemplates"]).to_vec();
    let Some(pod) = set.pointer_mut("/spec/template/spec") else {
        return;
    };
    if claims.is_empty() || !pod.is_object() {
        return;
    }
    let mut volumes = meta::list(pod, &["volumes"]).to_vec();
    for claim in &claims {
        let name = meta::name(claim);
        volumes.retain(|volume| volume["name"] != name);
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    }
    pod["volumes"] = Value::from(volumes);
}

/// What is wrong with a stateful set's claims, and with what is to become of them.
fn claim_templates(spec: &Value, path: &Path, faults: &mut Faults) {
    let templates = meta::list(spec, &["volumeClaimTemplates"]);
    for (at, claim) in templates.iter().enumerate() {
        let path = path.child("volumeClaimTemplates").index(at).child("spec");
        persistent_volumes::claim_spec(&claim["spec"], &path, faults);
    }
    let place = path.child("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        let text = meta::text(spec, &["persistentVolumeClaimRetentionPolicy", field]);
        if !["Delete", "Retain"].contains(&text) {
            faults.unsupported(&place.child(field), text, &["Delete", "Retain"]);
        }
    }
}

impl Behaviour for Revisions {
    fn validate(&self, object: &Value, faults: &mut Faults) {
        metadata::not_negative(object, &["revision"], faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        metadata::immutable(object, old, &["data"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::workloads::REVISIONS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::workloads::revision(object, now)
    }
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(template) = map_mut(spec, "template") {
        fill(template, "metadata", json!({}));
        let pod = template
            .entry("spec")
            .or_insert_with(|| json!({}))
            .as_object_mut();
        if let Some(pod) = pod {
            pod_defaults::spec(pod);
        }
    }
}

/// What all workloads with a selector and a template share.
fn workload(object: &Value, noun: &str, faults: &mut Faults) {
    let path = Path::new("spec");
    let spec = &object["spec"];
    metadata::not_negative(object, &["spec", "replicas"], faults);
    metadata::not_negative(object, &["spec", "minReadySeconds"], faults);
    let selector = spec.get("selector");
    let selector_path = path.child("selector");
    match selector {
        None => faults.required(&selector_path, ""),
        Some(selector) => {
            label_selector(selector, &selector_path, faults);
            if LabelSelector::from_spec(selector).is_empty() {
                let why = format!("empty selector is invalid for {noun}");
                faults.invalid(&selector_path, selector, &why);
            }
        }
    }
    let template_path = path.child("template");
    let Some(template) = spec.get("template") else {
        faults.required(&template_path, "");
        return;
    };
    let labels = meta::at(template, &["metadata", "labels"]);
    let labels_path = template_path.child("metadata").child("labels");
    if let Some(selector) = selector {
        let selector = LabelSelector::from_spec(selector);
        if !selector.is_empty() && !selector.matches_labels(labels) {
            let none = Value::Null;
            faults.invalid(
                &labels_path,
                labels.unwrap_or(&none),
                "`selector` does not match template `labels`",
            );
        }
    }
    metadata::labels(labels, &template_path.child("labels"), faults);
    let empty = json!({});
    let pod = template.get("spec").unwrap_or(&empty);
    pod_rules::spec(pod, &template_path.child("spec"), faults);
    let policy = meta::text(pod, &["restartPolicy"]);
    if matches!(policy, "Never" | "OnFailure") {
        let place = template_path.child("spec").child("restartPolicy");
        faults.unsupported(&place, policy, &["Always"]);
    }
}

fn strategy(strategy: &Value, path: &Path, faults: &mut Faults) {
    match meta::text(strategy, &["type"]) {
        "Recreate" => {
            if strategy.get("rollingUpdate").is_some() {
                faults.forbidden(
                    &path.child("rollingUpdate"),
                    "may not be specified when strategy `type` is 'Recreate'",
                );
            }
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let rolling = &strategy["rollingUpdate"];
            let surge = share(rolling, "maxSurge", &path, faults);
            let unavailable = share(rolling, "maxUnavailable", &path, faults);
            if surge == Some(0) && unavailable == Some(0) {
                faults.invalid(
                    &path.child("maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            let percentage = rolling["maxUnavailable"].is_string();
            if percentage && unavailable.is_some_and(|percent| percent > 100) {
                faults.invalid(
                    &path.child("maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "must not be greater than 100%",
                );
            }
        }
        other => faults.unsupported(&path.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// A count or percentage; its number, where it is one.
fn share(rolling: &Value, field: &str, path: &Path, faults: &mut Faults) -> Option<i64> {
    let path = path.child(field);
    match rolling.get(field)? {
        Value::String(text) => {
            let percent = text
                .strip_suffix('%')
                .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok());
            if percent.is_none() {
                faults.invalid_text(
                    &path,
                    text,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
                     regex used for validation is '[0-9]+%')",
                );
            }
            percent
        }
        number => {
            let count = number.as_i64();
            if count.is_some_and(|count| count < 0) {
                faults.invalid(&path, number, metadata::NOT_NEGATIVE);
            }
            count
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_set_counts_its_templates() {
        let count =
            |object: &Value| meta::text(object, &["metadata", "annotations", TEMPLATES]).to_owned();
        let mut old = json!({"metadata": {"name": "d"}, "spec": {"template": {"spec": {}}}});
        DaemonSets.prepare_create(&mut old);
        assert_eq!(count(&old), "1");
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
        DaemonSets.prepare_update(&mut new, &old);
        assert_eq!(count(&new), "2");
        let mut same = new.clone();
        same["metadata"]["annotations"] = json!({});
        DaemonSets.prepare_update(&mut same, &new);
        assert_eq!(count(&same), "2");
    }
}
