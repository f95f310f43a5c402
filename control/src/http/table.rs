//! Tables: what kubectl prints, made on the server; and metadata alone.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::negotiate::Shape;
use crate::api::managed;
use crate::resource::Resource;

/// What a table's rows carry of their objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Metadata; the default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// The query parameter `includeObject`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// An object's metadata as an object of its own.
pub fn metadata_of(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": managed::shown(object)["metadata"],
    })
}

/// A table of some objects; `metadata` is the list's.
pub fn table<'a>(
    row: &Resource,
    objects: impl Iterator<Item = &'a Value>,
    metadata: &Value,
    include: Include,
    now: Timestamp,
) -> Value {
    let columns: Vec<Value> = row
        .behaviour
        .columns()
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .map(|object| {
            let mut shown = Map::new();
            let cells = row.behaviour.cells(object, now);
            shown.insert("cells".to_owned(), Value::Array(cells));
            match include {
                Include::None => {}
                Include::Metadata => {
                    shown.insert("object".to_owned(), metadata_of(object));
                }
                Include::Object => {
                    shown.insert("object".to_owned(), managed::shown(object).into_owned());
                }
            }
            Value::Object(shown)
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// One object in the shape that the client asked for.
pub fn shaped(row: &Resource, object: &Value, shape: Shape, include: Include) -> Value {
    match shape {
        Shape::Object | Shape::Discovery(_) => object.clone(),
        Shape::Metadata => metadata_of(object),
        Shape::Table => {
            let version = crate::api::meta::resource_version(object);
            table(
                row,
                std::iter::once(object),
                &json!({"resourceVersion": version}),
                include,
                Timestamp::now(),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Table;

    #[test]
    fn every_kind_has_a_cell_for_each_column() {
        for row in Table::built_in().rows() {
            let object = json!({"metadata": {"name": "x"}});
            let cells = row.behaviour.cells(&object, Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), row.behaviour.columns().len(), "{}", row.kind);
        }
    }

    #[test]
    fn rows_carry_what_was_asked_for() {
        let table_of = |include| {
            let served = Table::built_in();
            let row = &served.rows()[0];
            let object = json!({"metadata": {"name": "x"}, "data": {"a": "b"}});
            shaped(row, &object, Shape::Table, include)["rows"][0].clone()
        };
        assert!(table_of(Include::None).get("object").is_none());
        assert_eq!(
            table_of(Include::Metadata)["object"]["kind"],
            "PartialObjectMetadata"
        );
        assert_eq!(table_of(Include::Object)["object"]["data"]["a"], "b");
    }
}
