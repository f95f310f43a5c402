//! The OpenAPI documents, made from the table and its schema: what kubectl explains, validates by and merges by. Those of
//! version 3, one a group version, and the one of version 2 (`swagger`), also in protobuf (`gnostic`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::resource::{Resource, Table, Verb};

pub mod gnostic;
mod swagger;

/// The prefix of a reference to a component.
const COMPONENTS: &str = "#/components/schemas/";

/// A document of a group version.
#[derive(Clone)]
pub struct Document {
    /// Its text.
    pub text: bytes::Bytes,
    /// A name of this very text.
    pub hash: String,
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The documents that clients have asked for.
#[derive(Clone, Default)]
pub struct Documents(Arc<Mutex<BTreeMap<String, Document>>>);

impl Documents {
    /// The document of a group version, where it is served; made at the first request.
    pub fn get(&self, table: &Table, group: &str, version: &str) -> Option<Document> {
        let path = path_of(group, version);
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = made.get(&path) {
            return Some(document.clone());
        }
        let document = document(table, group, version)?;
        made.insert(path, document.clone());
        Some(document)
    }

    /// "/openapi/v2", in JSON or protobuf; made at the first request.
    pub fn version_2(&self, table: &Table, protobuf: bool) -> bytes::Bytes {
        let name = if protobuf { "v2 protobuf" } else { "v2" };
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let document = made.entry(name.to_owned()).or_insert_with(|| {
            let document = swagger::document(table);
            let text = if protobuf {
                gnostic::encode(&document)
            } else {
                document.to_string().into_bytes()
            };
            Document {
                text: text.into(),
                hash: String::new(),
            }
        });
        document.text.clone()
    }

    /// "/openapi/v3".
    pub fn index(&self, table: &Table) -> Value {
        let mut paths = Map::new();
        for (group, versions) in table.groups() {
            for version in versions {
                if let Some(document) = self.get(table, group, version) {
                    let path = path_of(group, version);
                    let url = format!("/openapi/v3/{path}?hash={}", document.hash);
                    paths.insert(path, json!({"serverRelativeURL": url}));
                }
            }
        }
        json!({"paths": paths})
    }
}

/// The document of a group version, where it is served.
fn document(table: &Table, group: &str, version: &str) -> Option<Document> {
    let rows: Vec<&Resource> = table
        .rows()
        .iter()
        .map(std::convert::AsRef::as_ref)
        .filter(|row| row.id.group == group && row.id.version == version)
        .collect();
    if rows.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut wanted = BTreeSet::new();
    for row in &rows {
        paths_of(row, &mut paths);
        wanted.insert(row.definition.clone());
    }
    let mut schemas = Map::new();
    while let Some(name) = wanted.pop_first() {
        let Some(definition) = table.schema().definitions().get(&name) else {
            continue;
        };
        references(definition, &mut |found| {
            if !schemas.contains_key(found) && found != name {
                wanted.insert(found.to_owned());
            }
        });
        schemas.insert(name, definition.clone());
    }
    for row in &rows {
        if let Some(schema) = schemas.get_mut(&row.definition) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk(row)]);
        }
        schemas.insert(list_definition(row), list_schema(row));
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Portolan", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": schemas},
    });
    let text = serde_json::to_vec(&document).expect("a JSON value always serializes");
    let mut hash = String::new();
    for byte in Sha256::digest(&text) {
        // Writing to a String can't fail.
        write!(hash, "{byte:02X}").expect("a String takes it");
    }
    Some(Document {
        text: text.into(),
        hash,
    })
}

/// Tells of every component that a schema refers to.
fn references(schema: &Value, found: &mut impl FnMut(&str)) {
    match schema {
        Value::Object(fields) => {
            let reference = fields.get("$ref").and_then(Value::as_str);
            if let Some(name) = reference.and_then(|text| text.strip_prefix(COMPONENTS)) {
                found(name);
            }
            for value in fields.values() {
                references(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn gvk(row: &Resource) -> Value {
    json!({"group": row.id.group, "version": row.id.version, "kind": row.kind})
}

fn list_definition(row: &Resource) -> String {
    format!("{}List", row.definition)
}

fn list_schema(row: &Resource) -> Value {
    let mut kind = gvk(row);
    kind["kind"] = json!(row.list_kind());
    json!({
        "description": format!("{} is a list of {} objects.", row.list_kind(), row.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "items": {
                "type": "array",
                "items": {"$ref": format!("{COMPONENTS}{}", row.definition)},
            },
        },
        "x-kubernetes-group-version-kind": [kind],
    })
}

fn parameter(name: &str, place: &str, kind: &str) -> Value {
    json!({
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {"type": kind, "uniqueItems": true},
    })
}

/// The parameters of a verb.
fn parameters(verb: Verb) -> Vec<Value> {
    let texts: &[&str] = match verb {
        Verb::Create | Verb::Update => &["dryRun", "fieldManager", "fieldValidation"],
        Verb::Patch => &["dryRun", "fieldManager", "fieldValidation", "force"],
        Verb::Delete => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        Verb::List | Verb::Watch | Verb::DeleteCollection => &[
            "continue",
            "fieldSelector",
            "labelSelector",
            "resourceVersion",
        ],
        Verb::Get => &[],
    };
    texts
        .iter()
        .map(|name| parameter(name, "query", "string"))
        .collect()
}

fn content(media_types: &[&str], schema: &Value) -> Value {
    let entries: Map<String, Value> = media_types
        .iter()
        .map(|name| ((*name).to_owned(), json!({"schema": schema})))
        .collect();
    Value::Object(entries)
}

fn operation(row: &Resource, verb: Verb) -> Value {
    let object = json!({"$ref": format!("{COMPONENTS}{}", row.definition)});
    let action = match verb {
        Verb::Create => "post",
        Verb::Update => "put",
        other => other.name(),
    };
    let answer = match verb {
        Verb::List => json!({"$ref": format!("{COMPONENTS}{}", list_definition(row))}),
        _ => object.clone(),
    };
    let served = ["application/json", "application/yaml"];
    let mut operation = json!({
        "tags": [path_of(row.id.group, row.id.version).replace(['/', '.'], "_")],
        "operationId": format!("{action}{}{}", row.id.version, row.kind),
        "parameters": parameters(verb),
        "responses": {"200": {"description": "OK", "content": content(&served, &answer)}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(row),
    });
    let patches = [
        "application/apply-patch+yaml",
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    let body = match verb {
        Verb::Create | Verb::Update => Some(content(&served[..1], &object)),
        Verb::Patch => Some(content(&patches, &json!({"type": "object"}))),
        _ => None,
    };
    if let Some(body) = body {
        operation["requestBody"] = json!({"required": true, "content": body});
    }
    operation
}

fn paths_of(row: &Resource, paths: &mut Map<String, Value>) {
    let base = path_of(row.id.group, row.id.version);
    let plural = row.id.plural;
    let collection = if row.namespaced {
        format!("/{base}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("/{base}/{plural}")
    };
    let mut place = Vec::new();
    if row.namespaced {
        place.push(parameter("namespace", "path", "string"));
        paths.insert(
            format!("/{base}/{plural}"),
            json!({"get": operation(row, Verb::List)}),
        );
    }
    paths.insert(
        collection.clone(),
        json!({
            "get": operation(row, Verb::List),
            "post": operation(row, Verb::Create),
            "delete": operation(row, Verb::DeleteCollection),
            "parameters": place,
        }),
    );
    place.push(parameter("name", "path", "string"));
    paths.insert(
        format!("{collection}/{{name}}"),
        json!({
            "get": operation(row, Verb::Get),
            "put": operation(row, Verb::Update),
            "patch": operation(row, Verb::Patch),
            "delete": operation(row, Verb::Delete),
            "parameters": place,
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_closed_and_carry_what_kubectl_looks_for() {
        let table = Table::built_in();
        let document = document(&table, "", "v1").expect("core is served");
        let value: Value = serde_json::from_slice(&document.text).expect("JSON");
        let schemas = value["components"]["schemas"].as_object().expect("schemas");
        references(&value, &mut |name| {
            assert!(schemas.contains_key(name), "{name}");
        });
        let pod = &schemas["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        let patch = &value["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let named = |name: &str| {
            let parameters = patch["parameters"].as_array().expect("a list");
            parameters.iter().any(|one| one["name"] == name)
        };
        assert!(named("fieldValidation") && named("dryRun"));
    }
}
