//! Values seen through their types: which fields they have, how two of them differ, and what merging and taking fields
//! out makes of them. Source: sigs.k8s.io/structured-merge-diff, `typed`.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::set::FieldSet;
use crate::resource::schema::{Node, Set, Topology};

/// What the schema says of a value.
#[derive(Clone, Copy)]
pub struct Typed<'a> {
    set: &'a Set,
    node: &'a Node,
    topology: &'a Topology,
    /// An empty value that is there though it is not written.
    standing: Option<&'static Value>,
}

/// An object without fields, and a list without elements.
static NOTHING: LazyLock<[Value; 2]> = LazyLock::new(|| [json!({}), json!([])]);

/// How one value differs from another.
#[derive(Debug, Default)]
pub struct Comparison {
    /// In the new one only.
    pub added: FieldSet,
    /// In both, not alike.
    pub modified: FieldSet,
    /// In the old one only.
    pub removed: FieldSet,
}

/// What a value is to its owners.
enum Shape<'v> {
    /// Owned as a whole.
    Leaf,
    /// Fields of a map or object.
    Fields(&'v Map<String, Value>),
    /// Elements with names of their own.
    Elements(&'v [Value]),
}

impl<'a> Typed<'a> {
    /// An object of the type at `root`, a [`Node::Object`].
    pub fn new(set: &'a Set, root: &'a Node) -> Self {
        Self {
            set,
            node: root,
            topology: &Topology::Plain,
            standing: None,
        }
    }

    fn field(&self, name: &str) -> Self {
        let unknown = Self {
            set: self.set,
            node: &Node::Any,
            topology: &Topology::Plain,
            standing: None,
        };
        match self.node {
            Node::Object(index) => match self.set.get(*index).fields.get(name) {
                Some(field) => Self {
                    set: self.set,
                    node: &field.node,
                    topology: &field.traits.topology,
                    standing: match &field.node {
                        Node::Object(_) if field.always => Some(&NOTHING[0]),
                        Node::List(_) if field.always => Some(&NOTHING[1]),
                        _ => None,
                    },
                },
                None => unknown,
            },
            Node::Map(each) => Self {
                node: each,
                ..unknown
            },
            _ => unknown,
        }
    }

    fn element(&self) -> Self {
        Self {
            set: self.set,
            node: match self.node {
                Node::List(each) => each,
                _ => &Node::Any,
            },
            topology: &Topology::Plain,
            standing: None,
        }
    }

    fn shape<'v>(&self, value: &'v Value) -> Shape<'v> {
        let named = matches!(self.topology, Topology::Keyed(_) | Topology::Set);
        match (value, self.node) {
            _ if *self.topology == Topology::Atomic => Shape::Leaf,
            (Value::Object(fields), Node::Object(_) | Node::Map(_)) => Shape::Fields(fields),
            (Value::Array(items), Node::List(_)) if named => Shape::Elements(items),
            _ => Shape::Leaf,
        }
    }

    /// The name of a list's element; `None`: it lacks a key.
    fn name(&self, item: &Value) -> Option<String> {
        let Topology::Keyed(keys) = self.topology else {
            return Some(format!("v:{item}"));
        };
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        let mut parts = Vec::with_capacity(keys.len());
        for key in sorted {
            let value = item.get(key).cloned().or_else(|| default_key(key));
            parts.push(format!("\"{key}\":{}", value?));
        }
        Some(format!("k:{{{}}}", parts.join(",")))
    }

    /// The parts of a value that have owners of their own, each with its element; `None`: it is a leaf.
    fn parts<'v>(&self, value: &'v Value) -> Option<Vec<(String, Self, &'v Value)>> {
        match self.shape(value) {
            Shape::Leaf => None,
            Shape::Fields(fields) => Some(
                fields
                    .iter()
                    .map(|(name, value)| (format!("f:{name}"), self.field(name), value))
                    .collect(),
            ),
            Shape::Elements(items) => {
                let mut parts: Vec<(String, Self, &Value)> = Vec::with_capacity(items.len());
                for item in items {
                    // Whatever has no name, or one that is taken, goes with the list as a whole.
                    if let Some(name) = self.name(item)
                        && parts.iter().all(|(taken, ..)| *taken != name)
                    {
                        parts.push((name, self.element(), item));
                    }
                }
                Some(parts)
            }
        }
    }

    /// The first element that has no name of its own: it lacks a key, or another has the same.
    pub fn nameless(&self, value: &Value) -> Option<String> {
        if let Shape::Elements(items) = self.shape(value) {
            let mut taken = Vec::new();
            for item in items {
                match self.name(item) {
                    None => {
                        return Some(format!(
                            "element {}: associative list with keys has an element that omits key field",
                            taken.len()
                        ));
                    }
                    Some(name) if taken.contains(&name) => {
                        return Some(format!("duplicate entries for key [{}]", &name[2..]));
                    }
                    Some(name) => taken.push(name),
                }
            }
        }
        let parts = self.parts(value)?;
        parts
            .into_iter()
            .find_map(|(_, typed, value)| typed.nameless(value))
    }

    /// The fields that a value has.
    pub fn fields(&self, value: &Value) -> FieldSet {
        let mut set = FieldSet::default();
        for (element, typed, value) in self.parts(value).unwrap_or_default() {
            let mut below = typed.fields(value);
            if below.is_empty() || !element.starts_with("f:") {
                below.insert();
            }
            set.put(&element, below);
        }
        set
    }

    /// How `new` differs from `old`; either may be absent.
    pub fn compare(&self, old: Option<&Value>, new: Option<&Value>) -> Comparison {
        let mut result = Comparison::default();
        let leaf = |value: Option<&Value>| {
            value.is_none_or(|value| self.parts(value).is_none_or(|parts| parts.is_empty()))
        };
        if leaf(old) && leaf(new) {
            match (old, new) {
                (None, Some(_)) => result.added.insert(),
                (Some(_), None) => result.removed.insert(),
                (Some(old), Some(new)) if old != new => result.modified.insert(),
                _ => {}
            }
            return result;
        }
        let old_parts = old.map(|old| self.parts(old).unwrap_or_default());
        let new_parts = new.map(|new| self.parts(new).unwrap_or_default());
        match (&old_parts, &new_parts) {
            (None, Some(_)) => result.added.insert(),
            (Some(_), None) => result.removed.insert(),
            _ => {}
        }
        // What is always there is not added by being written, unless what it is part of is added.
        let stand_in = old_parts.is_some() && new_parts.is_some();
        let (old_parts, new_parts) = (old_parts.unwrap_or_default(), new_parts.unwrap_or_default());
        let find = |parts: &[(String, Self, &'_ Value)], wanted: &str| {
            parts.iter().position(|(element, ..)| element == wanted)
        };
        for (element, typed, new) in &new_parts {
            let old = find(&old_parts, element).map(|at| old_parts[at].2);
            let old = old.or(typed.standing.filter(|_| stand_in));
            result.put(element, typed.compare(old, Some(new)));
        }
        for (element, typed, old) in &old_parts {
            if find(&new_parts, element).is_none() {
                let new = typed.standing.filter(|_| stand_in);
                result.put(element, typed.compare(Some(old), new));
            }
        }
        result
    }

    /// The live value with what the configuration says laid over it.
    pub fn merge(&self, live: &Value, config: &Value) -> Value {
        match (self.shape(live), self.shape(config)) {
            (Shape::Fields(live), Shape::Fields(config)) => {
                let mut merged = live.clone();
                for (name, change) in config {
                    let value = match live.get(name) {
                        Some(live) => self.field(name).merge(live, change),
                        None => change.clone(),
                    };
                    merged.insert(name.clone(), value);
                }
                Value::Object(merged)
            }
            (Shape::Elements(live), Shape::Elements(config)) => {
                Value::Array(self.merge_elements(live, config))
            }
            _ => config.clone(),
        }
    }

    /// The configuration's elements in its order; the others keep their places among them.
    fn merge_elements(&self, live: &[Value], config: &[Value]) -> Vec<Value> {
        let configured: Vec<Option<String>> = config.iter().map(|item| self.name(item)).collect();
        let stranger = |item: &Value| !configured.contains(&self.name(item));
        let mut merged = Vec::with_capacity(live.len() + config.len());
        let mut rest = live;
        for (item, name) in config.iter().zip(&configured) {
            while let [first, after @ ..] = rest
                && stranger(first)
            {
                merged.push(first.clone());
                rest = after;
            }
            if let [first, after @ ..] = rest
                && self.name(first) == *name
            {
                rest = after;
            }
            let before = live.iter().find(|live| self.name(live) == *name);
            merged.push(match before {
                Some(before) => self.element().merge(before, item),
                None => item.clone(),
            });
        }
        merged.extend(rest.iter().filter(|item| stranger(item)).cloned());
        merged
    }

    /// The value without the fields of a set; `None`: nothing is left of it.
    pub fn without(&self, value: &Value, doomed: &FieldSet) -> Option<Value> {
        let kept = |element: &str, typed: Self, value: &Value| match doomed.child(element) {
            None => Some(value.clone()),
            Some(below) if below.is_member() => None,
            Some(below) => typed.without(value, below),
        };
        match self.shape(value) {
            Shape::Leaf => Some(value.clone()),
            Shape::Fields(fields) => {
                let left: Map<String, Value> = fields
                    .iter()
                    .filter_map(|(name, value)| {
                        let value = kept(&format!("f:{name}"), self.field(name), value)?;
                        Some((name.clone(), value))
                    })
                    .collect();
                (!left.is_empty() || fields.is_empty()).then_some(Value::Object(left))
            }
            Shape::Elements(items) => {
                let left: Vec<Value> = items
                    .iter()
                    .filter_map(|item| match self.name(item) {
                        Some(name) => kept(&name, self.element(), item),
                        None => Some(item.clone()),
                    })
                    .collect();
                (!left.is_empty() || items.is_empty()).then_some(Value::Array(left))
            }
        }
    }

    /// The set with every field of an object type put in below which it has something: such fields exist as soon as
    /// something in them does, and are hardly ever said to.
    pub fn with_named_fields(&self, set: &FieldSet) -> FieldSet {
        let mut result = FieldSet::default();
        if set.is_member() {
            result.insert();
        }
        for (element, below) in set.children() {
            let (typed, named) = match element.strip_prefix("f:") {
                Some(name) => (self.field(name), matches!(self.node, Node::Object(_))),
                None => (self.element(), false),
            };
            let mut below = typed.with_named_fields(below);
            if named {
                below.insert();
            }
            result.put(element, below);
        }
        result
    }
}

impl Comparison {
    fn put(&mut self, element: &str, below: Self) {
        self.added.put(element, below.added);
        self.modified.put(element, below.modified);
        self.removed.put(element, below.removed);
    }
}

/// The default of a key of a keyed list.
fn default_key(key: &str) -> Option<Value> {
    (key == "protocol").then(|| json!("TCP"))
}
