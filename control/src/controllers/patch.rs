//! Merge patches made by comparing what is with what is wanted, so that a write names only what it changes.

use serde::Serialize;
use serde_json::{Map, Value};

/// The RFC 7386 patch that turns `old` into `new`; `None` when they are equal. Lists are replaced whole.
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for (key, value) in after {
        match before.get(key) {
            Some(old) => {
                if let Some(difference) = merge_diff(old, value) {
                    patch.insert(key.clone(), difference);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in before.keys().filter(|key| !after.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

/// [`merge_diff`] of anything that has a JSON form.
pub fn diff<T: Serialize>(old: &T, new: &T) -> Result<Option<Value>, serde_json::Error> {
    Ok(merge_diff(
        &serde_json::to_value(old)?,
        &serde_json::to_value(new)?,
    ))
}

/// A new object without the fields that have no value.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_patch_names_only_what_changes() {
        let old = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2], "gone": 1});
        let new = json!({"a": 1, "b": {"c": 2, "d": 4}, "e": [2], "come": 1});
        assert_eq!(
            merge_diff(&old, &new),
            Some(json!({"b": {"d": 4}, "e": [2], "gone": null, "come": 1}))
        );
        assert_eq!(merge_diff(&old, &old), None);
    }
}
