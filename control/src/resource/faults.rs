//! Faults of an object's fields, in Kubernetes' words: a path, a type of fault, the value and why.

use std::fmt;

use serde_json::Value;

use crate::api::status::Cause;

/// Where a field is: "spec.containers[0].ports\[name\]".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A top-level field, or several joined by dots.
    pub fn new(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// A field of this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self::new(name)
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// An element of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// An entry of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }
}

impl fmt::Display for Path {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What was found wrong so far.
#[derive(Debug, Default)]
pub struct Faults(Vec<Cause>);

impl Faults {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is wrong.
    pub fn into_causes(self) -> Vec<Cause> {
        self.0
    }

    fn add(&mut self, reason: &str, path: &Path, message: String) {
        self.0.push(Cause {
            reason: reason.to_owned(),
            message,
            field: path.to_string(),
        });
    }

    /// A field that must be there is not; `detail` may be empty.
    pub fn required(&mut self, path: &Path, detail: &str) {
        self.add(
            "FieldValueRequired",
            path,
            detailed("Required value", detail),
        );
    }

    /// A value is malformed.
    pub fn invalid(&mut self, path: &Path, value: &Value, detail: &str) {
        let what = format!("Invalid value: {}", shown(value));
        self.add("FieldValueInvalid", path, detailed(&what, detail));
    }

    /// A text is malformed.
    pub fn invalid_text(&mut self, path: &Path, value: &str, detail: &str) {
        self.invalid(path, &Value::from(value), detail);
    }

    /// A value is not one of a fixed set.
    pub fn unsupported(&mut self, path: &Path, value: &str, supported: &[&str]) {
        let listed: Vec<String> = supported.iter().map(|name| format!("{name:?}")).collect();
        let what = format!(
            "Unsupported value: {value:?}: supported values: {}",
            listed.join(", ")
        );
        self.add("FieldValueNotSupported", path, what);
    }

    /// A value that must be unique is not.
    pub fn duplicate(&mut self, path: &Path, value: &Value) {
        let what = format!("Duplicate value: {}", shown(value));
        self.add("FieldValueDuplicate", path, what);
    }

    /// A value that may not be given here.
    pub fn forbidden(&mut self, path: &Path, detail: &str) {
        self.add("FieldValueForbidden", path, detailed("Forbidden", detail));
    }

    /// A value that refers to something that is not there.
    pub fn not_found(&mut self, path: &Path, value: &str) {
        let what = format!("Not found: {value:?}");
        self.add("FieldValueNotFound", path, what);
    }

    /// A text or a sum of texts that is over its limit.
    pub fn too_long(&mut self, path: &Path, limit: usize) {
        let what = format!("Too long: may not be more than {limit} bytes");
        self.add("FieldValueTooLong", path, what);
    }

    /// Every fault that a rule of [`super::names`] found with a text.
    pub fn invalid_each(&mut self, path: &Path, value: &str, details: &[String]) {
        for detail in details {
            self.invalid_text(path, value, detail);
        }
    }
}

fn detailed(what: &str, detail: &str) -> String {
    if detail.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {detail}")
    }
}

/// A value as Kubernetes shows it in a message: texts quoted, all else as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

/// A text in Go's double quotes, which JSON's agree with for what can appear in a field.
pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_speak_kubernetes() {
        let mut faults = Faults::new();
        let containers = Path::new("spec").child("containers");
        faults.required(&containers, "");
        faults.required(&containers.index(0).child("image"), "why");
        faults.invalid(&Path::new("spec.replicas"), &json!(-1), "must be greater");
        faults.invalid(&Path::new("metadata.labels"), &json!({"a": "b"}), "no");
        faults.unsupported(&Path::new("spec.type"), "X", &["A", "B"]);
        faults.duplicate(&containers.index(1).child("name"), &json!("web"));
        faults.forbidden(&Path::new("spec").key("k"), "not now");
        faults.too_long(&Path::new("data"), 10);
        let lines: Vec<String> = faults.into_causes().iter().map(Cause::line).collect();
        assert_eq!(
            lines,
            [
                "spec.containers: Required value",
                "spec.containers[0].image: Required value: why",
                "spec.replicas: Invalid value: -1: must be greater",
                "metadata.labels: Invalid value: {\"a\":\"b\"}: no",
                "spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\"",
                "spec.containers[1].name: Duplicate value: \"web\"",
                "spec[k]: Forbidden: not now",
                "data: Too long: may not be more than 10 bytes",
            ]
        );
    }
}
