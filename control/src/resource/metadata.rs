//! Rules for the metadata that every object has.

use serde_json::{Map, Value};

use super::{Faults, Path, Resource, names};
use crate::api::meta;

/// How large all annotations together may be, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;
/// The finalizers whose names have no domain.
const FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// What a field answers that can't be changed.
pub const IMMUTABLE: &str = "field is immutable";
/// What a number answers that is below zero.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// What is wrong with an object's metadata.
pub fn validate(row: &Resource, object: &Value, faults: &mut Faults) {
    let path = Path::new("metadata");
    let name = meta::name(object);
    let prefix = meta::text(object, &["metadata", "generateName"]);
    if !prefix.is_empty() {
        let found = row.names.check(prefix, true);
        faults.invalid_each(&path.child("generateName"), prefix, &found);
    }
    if name.is_empty() {
        faults.required(&path.child("name"), "name or generateName is required");
    } else {
        let found = row.names.check(name, false);
        faults.invalid_each(&path.child("name"), name, &found);
    }
    if row.namespaced {
        let namespace = meta::namespace(object);
        faults.invalid_each(
            &path.child("namespace"),
            namespace,
            &names::label_1123(namespace),
        );
    }
    labels(
        meta::at(object, &["metadata", "labels"]),
        &path.child("labels"),
        faults,
    );
    annotations(
        meta::at(object, &["metadata", "annotations"]),
        &path.child("annotations"),
        faults,
    );
    owners(object, &path.child("ownerReferences"), faults);
    for (at, finalizer) in meta::finalizers(object).into_iter().enumerate() {
        let place = path.child("finalizers").index(at);
        let found = names::qualified_name(finalizer);
        if found.is_empty() && !finalizer.contains('/') && !FINALIZERS.contains(&finalizer) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            faults.invalid_text(&place, finalizer, why);
        }
        faults.invalid_each(&place, finalizer, &found);
    }
}

/// What is wrong with a change of metadata.
pub fn validate_update(object: &Value, old: &Value, faults: &mut Faults) {
    if !meta::is_terminating(old) {
        return;
    }
    let before = meta::finalizers(old);
    let added: Vec<String> = meta::finalizers(object)
        .into_iter()
        .filter(|finalizer| !before.contains(finalizer))
        .map(|finalizer| format!("{finalizer:?}"))
        .collect();
    if !added.is_empty() {
        faults.forbidden(
            &Path::new("metadata.finalizers"),
            &format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            ),
        );
    }
}

fn entries(map: Option<&Value>) -> impl Iterator<Item = (&String, &str)> {
    map.and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| (key, value.as_str().unwrap_or("")))
}

/// What is wrong with a map of labels.
pub fn labels(map: Option<&Value>, path: &Path, faults: &mut Faults) {
    for (key, value) in entries(map) {
        faults.invalid_each(path, key, &names::qualified_name(key));
        faults.invalid_each(path, value, &names::label_value(value));
    }
}

/// What is wrong with a map of annotations.
pub fn annotations(map: Option<&Value>, path: &Path, faults: &mut Faults) {
    let mut size = 0;
    for (key, value) in entries(map) {
        faults.invalid_each(path, key, &names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_LIMIT {
        faults.too_long(path, ANNOTATIONS_LIMIT);
    }
}

fn owners(object: &Value, path: &Path, faults: &mut Faults) {
    let mut controllers = 0;
    for (at, owner) in meta::list(object, &["metadata", "ownerReferences"])
        .iter()
        .enumerate()
    {
        let path = path.index(at);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if meta::text(owner, &[field]).is_empty() {
                faults.invalid_text(&path.child(field), "", "must not be empty");
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let value = meta::at(object, &["metadata", "ownerReferences"]);
        faults.invalid(
            path,
            value.unwrap_or(&Value::Null),
            "Only one reference can have Controller set to true.",
        );
    }
}

/// A field that may not change; both sides as they are in the object and its old state.
pub fn immutable(object: &Value, old: &Value, path: &[&str], faults: &mut Faults) {
    let (now, before) = (meta::at(object, path), meta::at(old, path));
    if now != before {
        faults.invalid(
            &Path::new(&path.join(".")),
            now.unwrap_or(&Value::Null),
            IMMUTABLE,
        );
    }
}

/// A number that may not be below zero.
pub fn not_negative(object: &Value, path: &[&str], faults: &mut Faults) {
    if let Some(number) = meta::number(object, path).filter(|number| *number < 0) {
        faults.invalid(
            &Path::new(&path.join(".")),
            &Value::from(number),
            NOT_NEGATIVE,
        );
    }
}
