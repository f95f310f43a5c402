//! Reading and writing what every object has: metadata, labels, times, identities.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::ObjectKey;

/// The letters of generated names: none that makes words or is mistaken for another.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many letters are appended to generateName.
const SUFFIX_LENGTH: usize = 5;
/// The longest name that generateName makes.
const GENERATED_LIMIT: usize = 63;

/// A text field by its path of keys, "" where there is none.
pub fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or("")
}

/// A whole number by its path of keys.
pub fn number(object: &Value, path: &[&str]) -> Option<i64> {
    at(object, path).and_then(Value::as_i64)
}

/// A value by its path of keys.
pub fn at<'a>(object: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, key| value.get(key))
}

/// A list by its path of keys, empty where there is none.
pub fn list<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    at(object, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// metadata.name.
pub fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

/// metadata.namespace, "" for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    text(object, &["metadata", "namespace"])
}

/// metadata.uid.
pub fn uid(object: &Value) -> &str {
    text(object, &["metadata", "uid"])
}

/// metadata.resourceVersion.
pub fn resource_version(object: &Value) -> &str {
    text(object, &["metadata", "resourceVersion"])
}

/// Where the object lives.
pub fn key(object: &Value) -> ObjectKey {
    let namespace = namespace(object);
    ObjectKey {
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        name: name(object).to_owned(),
    }
}

/// Whether it is being deleted.
pub fn is_terminating(object: &Value) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some()
}

/// metadata.finalizers.
pub fn finalizers(object: &Value) -> Vec<&str> {
    list(object, &["metadata", "finalizers"])
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// metadata as a map that can be written to; made where it is missing.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// A field that is a map, made (or made a map) where it is not one.
pub fn child_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let child = &mut object[field];
    if !child.is_object() {
        *child = json!({});
    }
    child
        .as_object_mut()
        .expect("the child has just been made a map")
}

/// Writes a field of metadata, or takes it out.
pub fn set_metadata(object: &mut Value, field: &str, value: Option<Value>) {
    let metadata = metadata_mut(object);
    match value {
        Some(value) => {
            metadata.insert(field.to_owned(), value);
        }
        None => {
            metadata.remove(field);
        }
    }
}

/// A time as metav1.Time shows it: UTC, to the second.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `metav1.MicroTime` shows it.
pub fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A new version 4 UUID.
pub fn new_uid() -> String {
    let bits = fastrand::u128(..);
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// A name made from generateName.
pub fn generated_name(prefix: &str) -> String {
    let mut base = prefix;
    while base.len() > GENERATED_LIMIT - SUFFIX_LENGTH {
        let mut letters = base.chars();
        letters.next_back();
        base = letters.as_str();
    }
    let letter = || char::from(SUFFIX_LETTERS[fastrand::usize(..SUFFIX_LETTERS.len())]);
    let suffix: String = (0..SUFFIX_LENGTH).map(|_| letter()).collect();
    format!("{base}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_4() {
        let uid = new_uid();
        assert_eq!(uid.len(), 36);
        assert_eq!(uid.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&uid.as_bytes()[19]), "{uid}");
    }

    #[test]
    fn generated_names_stay_within_a_label() {
        let name = generated_name(&"a".repeat(100));
        assert_eq!(name.len(), GENERATED_LIMIT);
        assert!(generated_name("web-").starts_with("web-"));
    }

    #[test]
    fn times_are_utc() {
        let at: Timestamp = "2026-01-02T03:04:05.678901+01:00".parse().expect("a time");
        assert_eq!(time(at), "2026-01-02T02:04:05Z");
        assert_eq!(micro_time(at), "2026-01-02T02:04:05.678901Z");
    }
}
