//! Persistent volumes, claims of them, and storage classes.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::quantity::Quantity;
use super::super::{Behaviour, Column, Faults, Path, columns, metadata, names};
use super::placement_rules::{label_selector, node_selector};
use super::{fill, map_mut};
use crate::api::meta;

/// Holds a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Holds a volume while a claim is bound to it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const ACCESS_MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// The fields of a volume's spec that are not its source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// What persistent volumes do.
pub struct PersistentVolumes;
/// What claims do.
pub struct PersistentVolumeClaims;
/// What storage classes do.
pub struct StorageClasses;

/// Adds a finalizer that every new object of a kind has.
fn hold(object: &mut Value, finalizer: &str) {
    let metadata = meta::metadata_mut(object);
    let finalizers = metadata
        .entry("finalizers".to_owned())
        .or_insert_with(|| json!([]));
    if let Some(all) = finalizers.as_array_mut()
        && !all.iter().any(|one| one == finalizer)
    {
        all.push(json!(finalizer));
    }
}

fn access_modes(spec: &Value, path: &Path, faults: &mut Faults, at_least: &str) {
    let path = path.child("accessModes");
    let modes = meta::list(spec, &["accessModes"]);
    if modes.is_empty() {
        faults.required(&path, at_least);
    }
    for mode in modes {
        let mode = mode.as_str().unwrap_or_default();
        if !ACCESS_MODES.contains(&mode) {
            faults.unsupported(&path, mode, ACCESS_MODES);
        }
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        faults.forbidden(&path, why);
    }
}

fn class_and_mode(spec: &Value, path: &Path, faults: &mut Faults) {
    let class = meta::text(spec, &["storageClassName"]);
    if !class.is_empty() {
        let found = names::subdomain(class);
        faults.invalid_each(&path.child("storageClassName"), class, &found);
    }
    let mode = meta::text(spec, &["volumeMode"]);
    if !mode.is_empty() && !VOLUME_MODES.contains(&mode) {
        faults.unsupported(&path.child("volumeMode"), mode, VOLUME_MODES);
    }
}

/// An amount of storage must be one, and more than nothing.
fn storage(list: &Value, path: &Path, faults: &mut Faults) {
    let text = meta::text(list, &["storage"]);
    match text.parse::<Quantity>() {
        Ok(amount) if !amount.is_negative() && amount.milli() > 0 => {}
        Ok(_) => faults.invalid_text(&path.key("storage"), text, "must be greater than zero"),
        Err(malformed) => {
            faults.invalid_text(&path.key("storage"), text, &malformed.to_string());
        }
    }
}

impl Behaviour for PersistentVolumes {
    fn default(&self, object: &mut Value) {
        let spec = meta::child_mut(object, "spec");
        fill(spec, "persistentVolumeReclaimPolicy", "Retain");
        fill(spec, "volumeMode", "Filesystem");
        if let Some(path) = map_mut(spec, "hostPath") {
            fill(path, "type", "");
        }
        if let Some(claim) = map_mut(spec, "claimRef") {
            fill(claim, "apiVersion", "v1");
            fill(claim, "kind", "PersistentVolumeClaim");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        hold(object, VOLUME_PROTECTION);
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let (path, spec) = (Path::new("spec"), &object["spec"]);
        access_modes(spec, &path, faults, "");
        let capacity = path.child("capacity");
        match spec["capacity"].as_object() {
            Some(entries) if entries.len() == 1 && entries.contains_key("storage") => {
                storage(&spec["capacity"], &capacity, faults);
            }
            Some(entries) if !entries.is_empty() => {
                let given: Vec<_> = entries.keys().map(String::as_str).collect();
                faults.unsupported(&capacity, &given.join(","), &["storage"]);
            }
            _ => faults.required(&capacity, ""),
        }
        let policies = &["Delete", "Recycle", "Retain"];
        let policy = meta::text(spec, &["persistentVolumeReclaimPolicy"]);
        let place = path.child("persistentVolumeReclaimPolicy");
        if !policies.contains(&policy) {
            faults.unsupported(&place, policy, policies);
        }
        if let Some(selector) = meta::at(spec, &["nodeAffinity", "required"]) {
            let place = path.child("nodeAffinity").child("required");
            node_selector(selector, &place, faults);
        }
        volume_source(spec, &path, faults);
        if policy == "Recycle" && spec["hostPath"]["path"] == "/" {
            let why = "may not be 'recycle' for a hostPath mount of '/'";
            faults.forbidden(&place, why);
        }
        class_and_mode(spec, &path, faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        let path = Path::new("spec");
        let source = |object: &Value| {
            let sources = object["spec"].as_object().cloned().unwrap_or_default();
            let sources = sources.into_iter();
            sources
                .filter(|(field, _)| !NOT_SOURCES.contains(&field.as_str()))
                .collect::<Map<_, _>>()
        };
        if source(object) != source(old) {
            let why = "spec.persistentvolumesource is immutable after creation";
            faults.forbidden(&path.child("persistentvolumesource"), why);
        }
        metadata::immutable(object, old, &["spec", "volumeMode"], faults);
        if old["spec"].get("nodeAffinity").is_some()
            && object["spec"]["nodeAffinity"] != old["spec"]["nodeAffinity"]
        {
            let why = "field is immutable, except for updating from beta label to GA";
            let now = &object["spec"]["nodeAffinity"];
            faults.invalid(&path.child("nodeAffinity"), now, why);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::storage::VOLUMES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::storage::volume(object, now)
    }
}

fn volume_source(spec: &Value, path: &Path, faults: &mut Faults) {
    let fields = spec.as_object().into_iter().flat_map(Map::keys);
    let sources: Vec<&String> = fields
        .filter(|field| !NOT_SOURCES.contains(&field.as_str()))
        .collect();
    match sources.as_slice() {
        [] => faults.required(path, "must specify a volume type"),
        [_] => {}
        [_, more @ ..] => {
            for source in more {
                let why = "may not specify more than 1 volume type";
                faults.forbidden(&path.child(source), why);
            }
        }
    }
    for kind in ["hostPath", "local"] {
        let Some(source) = spec.get(kind) else {
            continue;
        };
        let (place, text) = (
            path.child(kind).child("path"),
            meta::text(source, &["path"]),
        );
        if text.is_empty() {
            faults.required(&place, "");
        } else if text.split('/').any(|part| part == "..") {
            faults.invalid_text(&place, text, "must not contain '..'");
        }
    }
    if spec.get("local").is_some() && meta::at(spec, &["nodeAffinity", "required"]).is_none() {
        let why = "Local volume requires node affinity";
        faults.required(&Path::new("metadata.annotations"), why);
    }
}

impl Behaviour for PersistentVolumeClaims {
    fn default(&self, object: &mut Value) {
        fill(meta::child_mut(object, "spec"), "volumeMode", "Filesystem");
    }

    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
        hold(object, CLAIM_PROTECTION);
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        claim_spec(&object["spec"], &Path::new("spec"), faults);
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        claim_update(object, old, faults);
    }

    fn returns_deleted(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        columns::storage::CLAIMS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::storage::claim(object, now)
    }
}

/// What is wrong with what a claim, or a template of claims, asks for.
pub fn claim_spec(spec: &Value, path: &Path, faults: &mut Faults) {
    access_modes(spec, path, faults, "at least 1 access mode is required");
    if let Some(selector) = spec.get("selector") {
        label_selector(selector, &path.child("selector"), faults);
    }
    let resources = path.child("resources");
    if meta::text(spec, &["resources", "requests", "storage"]).is_empty() {
        faults.required(&resources.key("storage"), "");
    } else {
        storage(&spec["resources"]["requests"], &resources, faults);
    }
    class_and_mode(spec, path, faults);
}

/// What a claim asks for stays: but it may be given a volume, and a class where it has none, and ask for more once bound.
fn claim_update(object: &Value, old: &Value, faults: &mut Faults) {
    let (path, before) = (Path::new("spec"), &old["spec"]);
    let mut masked = object["spec"].clone();
    let Some(fields) = masked.as_object_mut() else {
        return;
    };
    let mut may_change = vec![];
    if meta::text(before, &["volumeName"]).is_empty() {
        may_change.push("volumeName");
    }
    if before.get("storageClassName").is_none() {
        may_change.push("storageClassName");
    }
    if old["status"]["phase"] == "Bound" {
        may_change.extend(["resources", "volumeAttributesClassName"]);
    }
    for field in may_change {
        match before.get(field) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    if masked != *before {
        let why = "spec is immutable after creation except resources.requests and \
                   volumeAttributesClassName for bound claims";
        faults.forbidden(&path, why);
        return;
    }
    let amount = |object: &Value, place: &[&str]| meta::text(object, place).parse::<Quantity>();
    let request = ["spec", "resources", "requests", "storage"];
    let (now, had) = (amount(object, &request), amount(old, &request));
    let holds = amount(old, &["status", "capacity", "storage"]);
    if let (Ok(now), Ok(had)) = (now, had)
        && now < had
        && holds.is_ok_and(|holds| now < holds)
    {
        let place = path.child("resources").child("requests").child("storage");
        faults.forbidden(&place, "field can not be less than status.capacity");
    }
}

impl Behaviour for StorageClasses {
    fn default(&self, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fill(fields, "reclaimPolicy", "Delete");
            fill(fields, "volumeBindingMode", "Immediate");
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let provisioner = meta::text(object, &["provisioner"]);
        let path = Path::new("provisioner");
        if provisioner.is_empty() {
            faults.required(&path, provisioner);
        } else {
            let found = names::qualified_name(&provisioner.to_lowercase());
            faults.invalid_each(&path, provisioner, &found);
        }
        for (field, known) in [
            ("reclaimPolicy", &["Delete", "Retain"]),
            ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
        ] {
            let text = meta::text(object, &[field]);
            if !known.contains(&text) {
                faults.unsupported(&Path::new(field), text, known);
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        for field in ["parameters", "provisioner", "reclaimPolicy"] {
            if object[field] != old[field] {
                let why = format!("updates to {field} are forbidden.");
                faults.forbidden(&Path::new(field), &why);
            }
        }
        metadata::immutable(object, old, &["volumeBindingMode"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::storage::CLASSES
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::storage::class(object, now)
    }
}
