//! Patches: JSON patch, merge patch and strategic merge patch, and their faults in Kubernetes' words.

use serde_json::Value;

use super::status::Cause;
use super::{PatchKind, Status};
use crate::resource::schema;

mod strategic;

pub use strategic::strategic_merge;

/// Operations that one JSON patch may have.
const OPERATIONS_LIMIT: usize = 10_000;

/// Why a patch can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// It is no patch of its kind.
    #[error("{0}")]
    Malformed(String),
    /// It does not fit the object, for example because a test in it fails.
    #[error("{0}")]
    DoesNotFit(String),
    /// An element of a list lacks the key that tells it apart.
    #[error("{0}")]
    Nameless(String),
    /// It has too many operations.
    #[error("The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {0}")]
    TooMany(usize),
    /// Patches of this kind are not taken.
    #[error("{0}")]
    Unsupported(String),
}

impl PatchError {
    /// What the client is told.
    pub fn into_status(self) -> Status {
        let text = self.to_string();
        match self {
            Self::Malformed(_) => Status::bad_request(text),
            Self::DoesNotFit(_) => Status::unprocessable(),
            // Kubernetes has no reason for this one.
            Self::Nameless(_) => Status {
                code: 500,
                reason: String::new(),
                message: text,
                details: None,
            },
            Self::TooMany(_) => Status {
                message: text,
                ..Status::too_large(OPERATIONS_LIMIT)
            },
            Self::Unsupported(_) => Status::unsupported_media_type(text),
        }
    }
}

/// Applies a patch to an object; the type is what a strategic merge patch looks merge keys up in.
pub fn apply(
    kind: PatchKind,
    current: &Value,
    patch: &Value,
    described: Option<(&schema::Set, usize)>,
) -> Result<Value, PatchError> {
    match kind {
        PatchKind::Json => apply_json(current, patch),
        PatchKind::Merge => {
            require_object(patch)?;
            let mut patched = current.clone();
            json_patch::merge(&mut patched, patch);
            Ok(patched)
        }
        PatchKind::Strategic => {
            require_object(patch)?;
            strategic_merge(current, patch, described)
        }
        PatchKind::Apply => Err(PatchError::Unsupported(
            "server-side apply is no patch of a value".to_owned(),
        )),
    }
}

fn require_object(patch: &Value) -> Result<(), PatchError> {
    if patch.is_object() {
        return Ok(());
    }
    Err(PatchError::Malformed(format!(
        "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
        match patch {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Null | Value::Object(_) => "null",
        }
    )))
}

fn apply_json(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|error| PatchError::Malformed(format!("error decoding patch: {error}")))?;
    if operations.len() > OPERATIONS_LIMIT {
        return Err(PatchError::TooMany(operations.len()));
    }
    let mut patched = current.clone();
    json_patch::patch(&mut patched, &operations)
        .map_err(|error| PatchError::DoesNotFit(error.to_string()))?;
    Ok(patched)
}

/// What the client is told when the object that its patch makes can't be decoded.
pub fn undecodable(kind: PatchKind, patch: &Value, status: Status) -> Status {
    if status.code != 400 {
        return status;
    }
    let why = status
        .message
        .split_once(" cannot be handled as a ")
        .and_then(|(_, rest)| rest.split_once(": "))
        .map_or(status.message.as_str(), |(_, why)| why);
    let shown = match kind {
        PatchKind::Strategic => go_text(patch),
        PatchKind::Json | PatchKind::Merge | PatchKind::Apply => patch.to_string(),
    };
    let cause = Cause {
        reason: "FieldValueInvalid".to_owned(),
        message: format!("Invalid value: {}: {why}", Value::from(shown)),
        field: "patch".to_owned(),
    };
    Status::invalid("", "", "", vec![cause])
}

/// A value as Go prints it with `%+v`: "map[spec:map[replicas:2]]".
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(key, value)| format!("{key}:{}", go_text(value)))
                .collect();
            format!("map[{}]", fields.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches_apply_or_say_why_not() {
        let current = json!({"spec": {"replicas": 1}});
        let patch = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
        let patched = apply(PatchKind::Json, &current, &patch, None).expect("fits");
        assert_eq!(patched, json!({"spec": {"replicas": 3}}));
        let failing = json!([{"op": "test", "path": "/spec/replicas", "value": 9}]);
        let error = apply(PatchKind::Json, &current, &failing, None).expect_err("the test fails");
        assert_eq!(error.into_status().code, 422);
        let malformed = json!({"op": "x"});
        let error = apply(PatchKind::Json, &current, &malformed, None).expect_err("no list");
        assert_eq!(error.into_status().code, 400);
    }

    #[test]
    fn merge_patches_delete_with_null() {
        let current = json!({"a": {"b": 1, "c": 2}});
        let patch = json!({"a": {"b": null, "d": 3}});
        let patched = apply(PatchKind::Merge, &current, &patch, None).expect("fits");
        assert_eq!(patched, json!({"a": {"c": 2, "d": 3}}));
        let error = apply(PatchKind::Merge, &current, &json!([]), None).expect_err("no object");
        assert_eq!(error.into_status().code, 400);
    }

    #[test]
    fn go_shows_maps_its_own_way() {
        let value = json!({"spec": {"a": [1, "x"], "b": null}});
        assert_eq!(go_text(&value), "map[spec:map[a:[1 x] b:<nil>]]");
    }
}
