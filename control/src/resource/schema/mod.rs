//! What the objects look like: the definitions of `k8s-openapi`, kept once as the OpenAPI document's components and once
//! compiled into small trees that decoding, field validation and strategic merge patches walk.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

mod decode;
mod fields;
mod merge;
pub mod protobuf;

pub use decode::{Decoded, decode};
pub use fields::{Topology, Trait};
pub use merge::Merge;

/// The prefix of a reference to a component.
const COMPONENTS: &str = "#/components/schemas/";

/// What a value may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Anything at all.
    Any,
    /// A text.
    Text,
    /// Base64.
    Bytes,
    /// A time in RFC 3339, to the second or to the microsecond.
    Time {
        /// Whether fractions of a second are kept.
        micro: bool,
    },
    /// A whole number of at most so many bits.
    Integer {
        /// 32 or 64.
        bits: u8,
    },
    /// Any number.
    Number,
    /// true or false.
    Boolean,
    /// A whole number or a text.
    IntOrString,
    /// A [`super::quantity::Quantity`].
    Quantity,
    /// A type of the set, by its index.
    Object(usize),
    /// Any keys, each value alike.
    Map(Box<Node>),
    /// A list, each element alike.
    List(Box<Node>),
}

/// A field of a type.
#[derive(Clone, Debug)]
pub struct Field {
    /// What it holds.
    pub node: Node,
    /// How patches treat it.
    pub traits: Trait,
    /// Whether it is written though it is empty (no `omitempty` in Go).
    pub always: bool,
}

/// A type with named fields.
#[derive(Clone, Debug)]
pub struct Type {
    /// Its definition: "io.k8s.api.core.v1.PodSpec".
    pub definition: String,
    /// Kubernetes' name of the Go type: "v1.PodSpec".
    pub go_name: String,
    /// Its fields by their JSON names.
    pub fields: BTreeMap<String, Field>,
}

impl Type {
    /// The Go type's name without its package: "`PodSpec`".
    pub fn short_name(&self) -> &str {
        self.go_name
            .rsplit('.')
            .next()
            .unwrap_or(self.go_name.as_str())
    }
}

/// The types that a table of resources needs.
#[derive(Debug)]
pub struct Set {
    types: Vec<Type>,
    by_name: HashMap<String, usize>,
    /// The OpenAPI components, by name.
    definitions: Map<String, Value>,
    table: fields::Table,
}

impl Set {
    /// All types.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// The fields of a protobuf message by their numbers.
    fn parts(&self, definition: &str) -> Option<&HashMap<u32, fields::Part>> {
        self.table.parts(definition)
    }

    /// A type by its index.
    pub fn get(&self, index: usize) -> &Type {
        &self.types[index]
    }

    /// A type's index by its definition name ("io.k8s.api.core.v1.Pod").
    pub fn index(&self, definition: &str) -> Option<usize> {
        self.by_name.get(definition).copied()
    }

    /// The OpenAPI components, by name.
    pub fn definitions(&self) -> &Map<String, Value> {
        &self.definitions
    }
}

/// Collects types from `k8s-openapi`.
pub struct Builder(SchemaGenerator);

impl Default for Builder {
    fn default() -> Self {
        let mut settings = SchemaSettings::openapi3();
        settings.meta_schema = None;
        Self(settings.into_generator())
    }
}

impl Builder {
    /// Adds a type with all that it refers to; returns its definition name.
    pub fn add<T: JsonSchema>(&mut self) -> String {
        self.0.subschema_for::<T>();
        T::schema_name().into_owned()
    }

    /// Compiles what was added.
    pub fn build(mut self) -> Set {
        let mut definitions = self.0.take_definitions(true);
        let table = fields::Table::read();
        for (name, definition) in &mut definitions {
            annotate(name, definition, &table);
        }
        let mut by_name = HashMap::new();
        for (name, definition) in &definitions {
            if definition.get("properties").is_some() {
                by_name.insert(name.clone(), by_name.len());
            }
        }
        let mut types = vec![None; by_name.len()];
        for (name, definition) in &definitions {
            if let Some(&index) = by_name.get(name) {
                types[index] = Some(compile_type(
                    name,
                    definition,
                    (&definitions, &by_name, &table),
                ));
            }
        }
        Set {
            types: types.into_iter().flatten().collect(),
            by_name,
            definitions,
            table,
        }
    }
}

fn short(definition: &str) -> &str {
    definition.rsplit('.').next().unwrap_or(definition)
}

/// Puts Kubernetes' patch extensions in, and takes out "required: metadata", which Kubernetes does not have.
fn annotate(name: &str, definition: &mut Value, table: &fields::Table) {
    if let Some(Value::Array(required)) = definition.get_mut("required") {
        required.retain(|name| name != "metadata");
        if required.is_empty()
            && let Some(fields) = definition.as_object_mut()
        {
            fields.remove("required");
        }
    }
    let Some(Value::Object(properties)) = definition.get_mut("properties") else {
        return;
    };
    for (field, property) in properties {
        let found = table.of(name, field);
        if let Some(strategy) = found.merge.strategy() {
            property["x-kubernetes-patch-strategy"] = json!(strategy);
        }
        if let Some(key) = found.merge.key() {
            property["x-kubernetes-patch-merge-key"] = json!(key);
        }
        match found.topology {
            Topology::Plain => {}
            Topology::Keyed(keys) => {
                property["x-kubernetes-list-type"] = json!("map");
                property["x-kubernetes-list-map-keys"] = json!(keys);
            }
            Topology::Set => property["x-kubernetes-list-type"] = json!("set"),
            Topology::Atomic => property["x-kubernetes-map-type"] = json!("atomic"),
        }
    }
}

fn compile_type(
    name: &str,
    definition: &Value,
    (definitions, by_name, table): (&Map<String, Value>, &HashMap<String, usize>, &fields::Table),
) -> Type {
    let mut fields = BTreeMap::new();
    let required = definition.get("required").and_then(Value::as_array);
    if let Some(Value::Object(properties)) = definition.get("properties") {
        for (field, property) in properties {
            fields.insert(
                field.clone(),
                Field {
                    node: compile(property, definitions, by_name),
                    traits: table.of(name, field),
                    always: is_struct(name, field)
                        || required.is_some_and(|names| names.iter().any(|name| name == field)),
                },
            );
        }
    }
    let mut parts = name.rsplit('.');
    let (type_name, package) = (parts.next().unwrap_or(name), parts.next().unwrap_or(""));
    Type {
        definition: name.to_owned(),
        go_name: format!("{package}.{type_name}"),
        fields,
    }
}

/// Fields that are optional to clients, and always there in Go: structs that are no pointers, and a role's rules.
fn is_struct(definition: &str, field: &str) -> bool {
    match field {
        "metadata" | "spec" | "status" | "template" | "jobTemplate" | "strategy"
        | "updateStrategy" | "rules" | "loadBalancer" | "daemonEndpoints" | "kubeletEndpoint"
        | "nodeInfo" => true,
        "source" => definition.ends_with(".Event"),
        "resources" => [
            "Container",
            "EphemeralContainer",
            "PersistentVolumeClaimSpec",
        ]
        .contains(&short(definition)),
        _ => false,
    }
}

/// The component that a schema refers to, bare or in an `allOf` beside a description.
fn reference(schema: &Value) -> Option<&str> {
    let bare = schema.get("$ref");
    let wrapped = || schema.get("allOf")?.get(0)?.get("$ref");
    bare.or_else(wrapped)?.as_str()?.strip_prefix(COMPONENTS)
}

fn compile(
    schema: &Value,
    definitions: &Map<String, Value>,
    by_name: &HashMap<String, usize>,
) -> Node {
    if let Some(name) = reference(schema) {
        return match (by_name.get(name), short(name)) {
            (Some(&index), _) => Node::Object(index),
            (None, "Quantity") => Node::Quantity,
            (None, "IntOrString") => Node::IntOrString,
            (None, "Time") => Node::Time { micro: false },
            (None, "MicroTime") => Node::Time { micro: true },
            (None, _) => definitions
                .get(name)
                .map_or(Node::Any, |found| compile(found, definitions, by_name)),
        };
    }
    let text = |key: &str| schema.get(key).and_then(Value::as_str);
    match (text("type"), text("format")) {
        (Some("string"), Some("byte")) => Node::Bytes,
        (Some("string"), _) => Node::Text,
        (Some("integer"), Some("int32")) => Node::Integer { bits: 32 },
        (Some("integer"), _) => Node::Integer { bits: 64 },
        (Some("number"), _) => Node::Number,
        (Some("boolean"), _) => Node::Boolean,
        (Some("array"), _) => {
            let item = schema.get("items").unwrap_or(&Value::Null);
            Node::List(Box::new(compile(item, definitions, by_name)))
        }
        (Some("object"), _) => match schema.get("additionalProperties") {
            Some(value @ Value::Object(_)) => {
                Node::Map(Box::new(compile(value, definitions, by_name)))
            }
            _ => Node::Any,
        },
        _ => Node::Any,
    }
}
