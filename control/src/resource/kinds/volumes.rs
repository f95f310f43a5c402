//! Rules for the volumes of a pod.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::{Faults, Path, names};
use crate::api::meta;

/// What is wrong with a pod's volumes; returns the names that mounts may use.
pub fn validate(spec: &Value, path: &Path, faults: &mut Faults) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for (at, volume) in meta::list(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(at);
        let name = meta::text(volume, &["name"]);
        if name.is_empty() {
            faults.required(&path.child("name"), "");
        } else {
            faults.invalid_each(&path.child("name"), name, &names::label_1123(name));
            if !known.insert(name.to_owned()) {
                faults.duplicate(&path.child("name"), &Value::from(name));
            }
        }
        sources(volume, &path, faults);
    }
    known
}

fn sources(volume: &Value, path: &Path, faults: &mut Faults) {
    let mut found = 0;
    for (kind, source) in volume.as_object().into_iter().flatten() {
        if kind == "name" {
            continue;
        }
        found += 1;
        let path = path.child(kind);
        if found > 1 {
            faults.forbidden(&path, "may not specify more than 1 volume type");
            continue;
        }
        let required = match kind.as_str() {
            "configMap" => "name",
            "secret" => "secretName",
            "hostPath" => "path",
            "persistentVolumeClaim" => "claimName",
            _ => continue,
        };
        if meta::text(source, &[required]).is_empty() {
            faults.required(&path.child(required), "");
        }
        if kind == "hostPath"
            && meta::text(source, &["path"])
                .split('/')
                .any(|part| part == "..")
        {
            let text = meta::text(source, &["path"]);
            faults.invalid_text(&path.child("path"), text, "must not contain '..'");
        }
        if let Some(mode) = meta::number(source, &["defaultMode"])
            && !(0..=0o777).contains(&mode)
        {
            faults.invalid(
                &path.child("defaultMode"),
                &Value::from(mode),
                "must be a number between 0 and 0777 (octal), both inclusive",
            );
        }
    }
    if found == 0 {
        faults.required(path, "must specify a volume type");
    }
}
