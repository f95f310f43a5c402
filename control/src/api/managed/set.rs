//! Sets of fields, as metadata.managedFields holds them (FieldsV1): trees of path elements in their serialized forms,
//! `f:NAME` for a field, `k:{"KEY":VALUE}` for an element of a keyed list, `v:VALUE` for one of a set.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of fields. A path is in the set or not, whatever is in it below that path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    /// Whether the path that leads here is in the set.
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// The set of the root alone, as a subtree's beginning.
    pub fn leaf() -> Self {
        Self {
            member: true,
            children: BTreeMap::new(),
        }
    }

    /// Whether nothing is in it, the root not counted.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Whether the path that leads here is in the set.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Puts the path that leads here in.
    pub fn insert(&mut self) {
        self.member = true;
    }

    /// What is below an element.
    pub fn child(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    /// The elements with what is below them.
    pub fn children(&self) -> impl Iterator<Item = (&String, &Self)> {
        self.children.iter()
    }

    /// Hangs a set below an element, unless it is empty.
    pub fn put(&mut self, element: &str, below: Self) {
        if below.member || !below.children.is_empty() {
            self.children.insert(element.to_owned(), below);
        }
    }

    /// Combines two sets, path by path.
    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let mut result = Self {
            member: keep(self.member, other.member),
            children: BTreeMap::new(),
        };
        let nothing = Self::default();
        for (element, below) in &self.children {
            let theirs = other.child(element).unwrap_or(&nothing);
            result.put(element, below.combine(theirs, keep));
        }
        for (element, theirs) in &other.children {
            if !self.children.contains_key(element) {
                result.put(element, nothing.combine(theirs, keep));
            }
        }
        result
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| ours || theirs)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| ours && !theirs)
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |ours, theirs| ours && theirs)
    }

    /// Takes out a path of fields with all that is below it.
    pub fn cut(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(&format!("f:{last}"));
            }
            [first, rest @ ..] => {
                let element = format!("f:{first}");
                if let Some(mut below) = self.children.remove(&element) {
                    below.cut(rest);
                    self.put(&element, below);
                }
            }
        }
    }

    /// Takes out a path of fields, not what is below it.
    pub fn omit(&mut self, path: &[&str]) {
        match path {
            [] => self.member = false,
            [first, rest @ ..] => {
                let element = format!("f:{first}");
                if let Some(mut below) = self.children.remove(&element) {
                    below.omit(rest);
                    self.put(&element, below);
                }
            }
        }
    }

    /// All paths, as conflicts name them: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk(&mut String::new(), &mut paths);
        paths
    }

    fn walk(&self, path: &mut String, paths: &mut Vec<String>) {
        for (element, below) in &self.children {
            let length = path.len();
            path.push_str(&shown(element));
            if below.member {
                paths.push(path.clone());
            }
            below.walk(path, paths);
            path.truncate(length);
        }
    }

    /// As FieldsV1.
    pub fn to_value(&self) -> Value {
        let mut fields = Map::new();
        if self.member && !self.children.is_empty() {
            fields.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, below) in &self.children {
            fields.insert(element.clone(), below.to_value());
        }
        Value::Object(fields)
    }

    /// From FieldsV1; what is not of its form is `None`.
    pub fn from_value(value: &Value) -> Option<Self> {
        let mut set = Self::below(value)?;
        set.member = false;
        Some(set)
    }

    fn below(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        let mut set = Self {
            member: fields.is_empty(),
            children: BTreeMap::new(),
        };
        for (element, below) in fields {
            if element == "." {
                set.member = true;
                continue;
            }
            if !matches!(element.get(..2), Some("f:" | "k:" | "v:" | "i:")) {
                return None;
            }
            let below = Self::below(below)?;
            set.children.insert(element.clone(), below);
        }
        Some(set)
    }
}

/// An element as paths show it.
fn shown(element: &str) -> String {
    match element.split_at_checked(2) {
        Some(("f:", name)) => format!(".{name}"),
        Some(("v:", value)) => format!("[={value}]"),
        Some(("i:", index)) => format!("[{index}]"),
        Some(("k:", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            format!("[{}]", keys.join(","))
        }
        _ => format!(".{element}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: &Value) -> FieldSet {
        FieldSet::from_value(value).expect("FieldsV1")
    }

    #[test]
    fn sets_go_to_fields_v1_and_back() {
        let value = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}}}},
        });
        assert_eq!(set(&value).to_value(), value);
        assert_eq!(FieldSet::from_value(&json!({"x": {}})), None);
        assert_eq!(FieldSet::from_value(&json!({"f:x": 1})), None);
    }

    #[test]
    fn paths_are_kubernetes() {
        let value = json!({
            "f:metadata": {"f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}}}},
        });
        assert_eq!(
            set(&value).paths(),
            [
                ".metadata.finalizers[=\"a\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].name",
            ]
        );
    }

    #[test]
    fn sets_combine_path_by_path() {
        let one = set(&json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let other = set(&json!({"f:a": {"f:b": {}, "f:d": {}}}));
        assert_eq!(one.difference(&other), set(&json!({"f:a": {}, "f:c": {}})));
        assert_eq!(one.intersection(&other), set(&json!({"f:a": {"f:b": {}}})));
        let both = json!({"f:a": {".": {}, "f:b": {}, "f:d": {}}, "f:c": {}});
        assert_eq!(one.union(&other), set(&both));
        let mut cut = one;
        cut.cut(&["a", "b"]);
        assert_eq!(cut, set(&json!({"f:a": {}, "f:c": {}})));
    }
}
