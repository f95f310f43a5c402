//! Kubernetes' strategic merge patch: a merge patch that merges some lists element by element, by the keys that the
//! schema names, and obeys the directives `$patch`, `$retainKeys`, `$setElementOrder/…` and `$deleteFromPrimitiveList/…`.

use serde_json::{Map, Value};

use super::PatchError;
use crate::resource::schema::{Merge, Node, Set};

/// What to do with a map: "merge", "delete" or "replace".
const PATCH: &str = "$patch";
/// The only keys of a map that stay.
const RETAIN_KEYS: &str = "$retainKeys";
/// The order of a merged list.
const ORDER: &str = "$setElementOrder/";
/// What to take out of a list of scalars.
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies a strategic merge patch; without a type every list is replaced.
pub fn strategic_merge(
    current: &Value,
    patch: &Value,
    described: Option<(&Set, usize)>,
) -> Result<Value, PatchError> {
    let merger = Merger {
        set: described.map(|(set, _)| set),
    };
    let node = described.map_or(Node::Any, |(_, index)| Node::Object(index));
    let empty = Map::new();
    let (Value::Object(patch), current) = (patch, current.as_object().unwrap_or(&empty)) else {
        return Err(PatchError::Malformed(
            "a patch must be an object".to_owned(),
        ));
    };
    merger.object(&node, current, patch).map(Value::Object)
}

struct Merger<'a> {
    set: Option<&'a Set>,
}

/// What the schema says of a field.
struct Described<'a> {
    node: &'a Node,
    merge: Merge,
}

const UNKNOWN: Described<'static> = Described {
    node: &Node::Any,
    merge: Merge::Plain,
};

impl Merger<'_> {
    fn field<'n>(&'n self, node: &'n Node, name: &str) -> Described<'n> {
        match (node, self.set) {
            (Node::Object(index), Some(set)) => {
                set.get(*index)
                    .fields
                    .get(name)
                    .map_or(UNKNOWN, |field| Described {
                        node: &field.node,
                        merge: field.traits.merge,
                    })
            }
            (Node::Map(each), _) => Described {
                node: each,
                merge: Merge::Plain,
            },
            _ => UNKNOWN,
        }
    }

    fn object(
        &self,
        node: &Node,
        current: &Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Result<Map<String, Value>, PatchError> {
        let mut result = match patch.get(PATCH).map(Value::as_str) {
            None | Some(Some("merge")) => current.clone(),
            Some(Some("replace")) => Map::new(),
            Some(Some("delete")) => return Ok(Map::new()),
            Some(_) => return Err(unknown_directive(&patch[PATCH])),
        };
        if let Some(retained) = patch.get(RETAIN_KEYS) {
            let retained = retained.as_array().ok_or_else(|| {
                PatchError::Malformed("invalid patch format of retainKeys".to_owned())
            })?;
            result.retain(|key, _| retained.iter().any(|kept| kept == key));
        }
        for (key, change) in patch {
            if let Some(field) = key.strip_prefix(DELETE_PRIMITIVES) {
                delete_primitives(&mut result, field, change)?;
            }
        }
        for (key, change) in patch {
            if key == PATCH || key == RETAIN_KEYS || key.starts_with('$') {
                continue;
            }
            if change.is_null() {
                result.remove(key);
                continue;
            }
            let described = self.field(node, key);
            let merged = self.value(&described, result.get(key), change)?;
            result.insert(key.clone(), merged);
        }
        for (key, order) in patch {
            let Some(field) = key.strip_prefix(ORDER) else {
                continue;
            };
            let order = order.as_array().ok_or_else(|| {
                PatchError::Malformed("invalid patch format of setElementOrder list".to_owned())
            })?;
            let merge_key = self.field(node, field).merge.key();
            if let Some(Value::Array(items)) = result.get_mut(field) {
                let before = current.get(field).and_then(Value::as_array);
                let before = before.map_or(&[][..], Vec::as_slice);
                *items = reorder(std::mem::take(items), order, before, merge_key);
            }
        }
        Ok(result)
    }

    fn value(
        &self,
        described: &Described<'_>,
        current: Option<&Value>,
        patch: &Value,
    ) -> Result<Value, PatchError> {
        match (current, patch) {
            (Some(Value::Object(current)), Value::Object(patch)) => Ok(Value::Object(
                self.object(described.node, current, patch)?,
            )),
            (_, Value::Object(patch)) => Ok(Value::Object(self.object(
                described.node,
                &Map::new(),
                patch,
            )?)),
            (current, Value::Array(patch)) => {
                let current = current.and_then(Value::as_array);
                let current = current.map_or(&[][..], Vec::as_slice);
                self.list(described, current, patch).map(Value::Array)
            }
            (_, scalar) => Ok(scalar.clone()),
        }
    }

    fn list(
        &self,
        described: &Described<'_>,
        current: &[Value],
        patch: &[Value],
    ) -> Result<Vec<Value>, PatchError> {
        let each = match described.node {
            Node::List(each) => each,
            _ => &Node::Any,
        };
        match described.merge {
            Merge::ByKey(key) | Merge::ByKeyRetainKeys(key) => {
                self.keyed_list(each, key, current, patch)
            }
            Merge::AsSet => {
                let mut result = current.to_vec();
                for item in patch {
                    if !result.contains(item) {
                        result.push(item.clone());
                    }
                }
                Ok(result)
            }
            Merge::Plain | Merge::RetainKeys => patch
                .iter()
                .map(|item| {
                    self.value(
                        &Described {
                            node: each,
                            merge: Merge::Plain,
                        },
                        None,
                        item,
                    )
                })
                .collect(),
        }
    }

    fn keyed_list(
        &self,
        each: &Node,
        key: &str,
        current: &[Value],
        patch: &[Value],
    ) -> Result<Vec<Value>, PatchError> {
        let replaces = |item: &Value| item.get(PATCH).is_some_and(|what| what == "replace");
        let mut result = if patch.iter().any(replaces) {
            Vec::new()
        } else {
            current.to_vec()
        };
        for item in patch {
            let Value::Object(fields) = item else {
                return Err(PatchError::Malformed(format!(
                    "expected a map in a list that merges by {key:?}, got {item}"
                )));
            };
            let directive = fields.get(PATCH).and_then(Value::as_str);
            let Some(id) = fields.get(key) else {
                if directive == Some("replace") {
                    continue;
                }
                return Err(PatchError::Nameless(format!(
                    "map: {} does not contain declared merge key: {key}",
                    super::go_text(item)
                )));
            };
            let same = |found: &Value| found.get(key) == Some(id);
            match directive {
                Some("delete") => result.retain(|found| !same(found)),
                Some("merge" | "replace") | None => {
                    let at = result.iter().position(same);
                    let before = at.map(|at| &result[at]);
                    let before = before.and_then(Value::as_object).cloned();
                    let merged = self.object(each, &before.unwrap_or_default(), fields)?;
                    match at {
                        Some(at) => result[at] = Value::Object(merged),
                        None => result.push(Value::Object(merged)),
                    }
                }
                Some(_) => return Err(unknown_directive(&fields[PATCH])),
            }
        }
        Ok(result)
    }
}

fn unknown_directive(directive: &Value) -> PatchError {
    PatchError::Malformed(format!(
        "unknown patch type found: {}",
        super::go_text(directive)
    ))
}

fn delete_primitives(
    result: &mut Map<String, Value>,
    field: &str,
    doomed: &Value,
) -> Result<(), PatchError> {
    let doomed = doomed.as_array().ok_or_else(|| {
        PatchError::Malformed("invalid patch format of primitive list".to_owned())
    })?;
    if let Some(Value::Array(items)) = result.get_mut(field) {
        items.retain(|item| !doomed.contains(item));
    }
    Ok(())
}

/// Elements that the patch orders take its order; the others keep their places among them, as they were before.
fn reorder(
    items: Vec<Value>,
    order: &[Value],
    before: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let id = |item: &Value| match merge_key {
        Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
        None => item.clone(),
    };
    let position =
        |list: &[Value], wanted: &Value| list.iter().position(|item| id(item) == *wanted);
    let (mut ordered, others): (Vec<Value>, Vec<Value>) = items
        .into_iter()
        .partition(|item| position(order, &id(item)).is_some());
    ordered.sort_by_key(|item| position(order, &id(item)));
    let mut result = Vec::with_capacity(ordered.len() + others.len());
    let mut ordered = ordered.into_iter().peekable();
    let mut others = others.into_iter().peekable();
    loop {
        let other_first = match (others.peek(), ordered.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(next)) => {
                let (other, next) = (position(before, &id(other)), position(before, &id(next)));
                matches!((other, next), (Some(other), Some(next)) if other < next)
            }
        };
        result.extend(if other_first {
            others.next()
        } else {
            ordered.next()
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Table;

    fn pod_patch(current: &Value, patch: &Value) -> Value {
        let table = Table::built_in();
        let set = table.schema();
        let index = set.index("io.k8s.api.core.v1.Pod").expect("a type");
        strategic_merge(current, patch, Some((set, index))).expect("the patch fits")
    }

    fn containers(of: &[(&str, &str)]) -> Value {
        let list: Vec<Value> = of
            .iter()
            .map(|(name, image)| json!({"name": name, "image": image}))
            .collect();
        json!({"spec": {"containers": list}})
    }

    #[test]
    fn lists_merge_by_their_keys() {
        let current = containers(&[("a", "1"), ("b", "1")]);
        let patch = containers(&[("b", "2"), ("c", "1")]);
        let expected = containers(&[("a", "1"), ("b", "2"), ("c", "1")]);
        assert_eq!(pod_patch(&current, &patch), expected);
    }

    #[test]
    fn directives_delete_and_replace() {
        let current = containers(&[("a", "1"), ("b", "1")]);
        let deleted = json!({"spec": {"containers": [{"$patch": "delete", "name": "a"}]}});
        assert_eq!(pod_patch(&current, &deleted), containers(&[("b", "1")]));
        let replaced =
            json!({"spec": {"containers": [{"name": "z", "image": "9"}, {"$patch": "replace"}]}});
        assert_eq!(pod_patch(&current, &replaced), containers(&[("z", "9")]));
        let map = json!({"spec": {"$patch": "replace", "nodeName": "n"}});
        assert_eq!(
            pod_patch(&current, &map),
            json!({"spec": {"nodeName": "n"}})
        );
    }

    #[test]
    fn order_is_set_and_strangers_keep_their_places() {
        let current = containers(&[("server", "1"), ("a", "1"), ("b", "1")]);
        let mut patch = containers(&[("c", "1")]);
        patch["spec"]["$setElementOrder/containers"] =
            json!([{"name": "b"}, {"name": "c"}, {"name": "a"}]);
        let expected = containers(&[("server", "1"), ("b", "1"), ("c", "1"), ("a", "1")]);
        assert_eq!(pod_patch(&current, &patch), expected);
    }

    #[test]
    fn retained_keys_drop_the_rest() {
        let current = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
        let patch = json!({"spec": {"volumes": [
            {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}
        ]}});
        let expected = json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}});
        assert_eq!(pod_patch(&current, &patch), expected);
    }

    #[test]
    fn scalar_lists_are_sets_where_the_table_says_so() {
        let current = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {
            "finalizers": ["b", "c"],
            "$deleteFromPrimitiveList/finalizers": ["a"],
        }});
        let expected = json!({"metadata": {"finalizers": ["b", "c"]}});
        assert_eq!(pod_patch(&current, &patch), expected);
        let current = json!({"spec": {"containers": [{"name": "a", "command": ["x", "y"]}]}});
        let patch = json!({"spec": {"containers": [{"name": "a", "command": ["z"]}]}});
        assert_eq!(pod_patch(&current, &patch), patch);
    }

    #[test]
    fn null_deletes_and_directives_never_stay() {
        let current = json!({"metadata": {"labels": {"a": "1"}}});
        let patch = json!({"metadata": {
            "labels": {"a": null, "b": "2"},
            "annotations": {"$patch": "replace", "x": "y", "z": null},
        }});
        let expected = json!({"metadata": {"labels": {"b": "2"}, "annotations": {"x": "y"}}});
        assert_eq!(pod_patch(&current, &patch), expected);
    }

    #[test]
    fn an_element_without_its_key_is_refused() {
        let table = Table::built_in();
        let set = table.schema();
        let index = set.index("io.k8s.api.core.v1.Pod").expect("a type");
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        let error = strategic_merge(&json!({}), &patch, Some((set, index))).expect_err("no name");
        assert_eq!(
            error.to_string(),
            "map: map[image:x] does not contain declared merge key: name"
        );
    }
}
