//! The OpenAPI v2 document ("Swagger"), one for all groups: what kubectl before 1.28 validates, explains and merges by. It
//! is made from the components and paths of version 3.

use serde_json::{Map, Value, json};

use super::{COMPONENTS, gvk, list_definition, list_schema, paths_of};
use crate::resource::Table;

/// The prefix of a reference to a definition.
const DEFINITIONS: &str = "#/definitions/";

/// The document.
pub fn document(table: &Table) -> Value {
    let mut definitions = Map::new();
    for (name, schema) in table.schema().definitions() {
        definitions.insert(name.clone(), converted(schema));
    }
    let mut paths = Map::new();
    for row in table.rows() {
        if let Some(definition) = definitions.get_mut(&row.definition) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(row)]);
        }
        definitions.insert(list_definition(row), converted(&list_schema(row)));
        paths_of(row, &mut paths);
    }
    let paths: Map<String, Value> = paths
        .iter()
        .map(|(path, item)| (path.clone(), converted_path(item)))
        .collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Portolan", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "definitions": definitions,
    })
}

/// A schema of version 3 in the words of version 2.
fn converted(schema: &Value) -> Value {
    let Value::Object(fields) = schema else {
        return schema.clone();
    };
    let mut new = Map::new();
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("$ref", Value::String(reference)) => {
                let reference = reference.replacen(COMPONENTS, DEFINITIONS, 1);
                new.insert(name.clone(), json!(reference));
            }
            // A reference beside a description; there it needs no wrapping.
            ("allOf", Value::Array(all)) if all.len() == 1 => {
                if let Value::Object(only) = converted(&all[0]) {
                    new.extend(only);
                }
            }
            ("x-kubernetes-int-or-string", Value::Bool(true)) => {
                new.insert("type".to_owned(), json!("string"));
                new.insert("format".to_owned(), json!("int-or-string"));
            }
            ("properties", Value::Object(properties)) => {
                let each = properties.iter();
                let each: Map<String, Value> = each
                    .map(|(name, property)| (name.clone(), converted(property)))
                    .collect();
                new.insert(name.clone(), Value::Object(each));
            }
            ("items" | "additionalProperties", _) => {
                new.insert(name.clone(), converted(value));
            }
            ("nullable", _) => {}
            _ => {
                new.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(new)
}

fn converted_path(item: &Value) -> Value {
    let Value::Object(fields) = item else {
        return item.clone();
    };
    let each = fields.iter().map(|(name, value)| {
        let value = match name.as_str() {
            "parameters" => parameters(value),
            _ => operation(value),
        };
        (name.clone(), value)
    });
    Value::Object(each.collect())
}

fn parameters(listed: &Value) -> Value {
    let listed = listed.as_array().map(Vec::as_slice).unwrap_or_default();
    let each = listed.iter().map(|parameter| {
        json!({
            "name": parameter["name"],
            "in": parameter["in"],
            "required": parameter["required"],
            "type": parameter["schema"]["type"],
            "uniqueItems": true,
        })
    });
    Value::Array(each.collect())
}

/// The schema of a body or an answer, which is the same in each of its media types.
fn schema_of(content: &Value) -> Option<Value> {
    let first = content.as_object()?.values().next()?;
    Some(converted(first.get("schema")?))
}

fn media_types(content: &Value) -> Vec<&String> {
    content
        .as_object()
        .map(|types| types.keys().collect())
        .unwrap_or_default()
}

fn operation(of: &Value) -> Value {
    let mut parameters = parameters(&of["parameters"]);
    let body = &of["requestBody"]["content"];
    if let (Some(schema), Value::Array(parameters)) = (schema_of(body), &mut parameters) {
        parameters.push(json!({"name": "body", "in": "body", "required": true, "schema": schema}));
    }
    let answers = &of["responses"]["200"]["content"];
    let mut new = json!({
        "tags": of["tags"],
        "operationId": of["operationId"],
        "parameters": parameters,
        "produces": media_types(answers),
        "responses": {"200": {"description": "OK", "schema": schema_of(answers)}},
        "x-kubernetes-action": of["x-kubernetes-action"],
        "x-kubernetes-group-version-kind": of["x-kubernetes-group-version-kind"],
    });
    let consumed = media_types(body);
    if !consumed.is_empty() {
        new["consumes"] = json!(consumed);
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_version_2s() {
        let document = document(&Table::built_in());
        let text = document.to_string();
        assert!(!text.contains(COMPONENTS) && !text.contains("allOf"));
        let definitions = document["definitions"].as_object().expect("definitions");
        let container = &definitions["io.k8s.api.core.v1.Container"]["properties"];
        let resources = "#/definitions/io.k8s.api.core.v1.ResourceRequirements";
        assert_eq!(container["resources"]["$ref"], resources);
        let either = &definitions["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(either["format"], "int-or-string");
        let quantity = &definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"];
        assert_eq!(quantity["type"], "string");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        let parameters = patch["parameters"].as_array().expect("parameters");
        let named = |name: &str| parameters.iter().find(|one| one["name"] == name);
        assert_eq!(named("dryRun").expect("dryRun")["type"], "string");
        assert_eq!(named("body").expect("a body")["in"], "body");
        // Every reference leads somewhere.
        for part in text.split(DEFINITIONS).skip(1) {
            let name = part.split('"').next().expect("a name");
            assert!(definitions.contains_key(name), "{name}");
        }
    }
}
