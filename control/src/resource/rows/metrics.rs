//! What nodes and pods use at the moment (metrics.k8s.io): asked of the agents, never stored.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{NODES, PODS, id, row};
use crate::resource::kinds::metrics::Measurements;
use crate::resource::schema::Builder;
use crate::resource::{Resource, Verb};

const GROUP: &str = "metrics.k8s.io";
const VERSION: &str = "v1beta1";
/// What may be done.
const VERBS: &[Verb] = &[Verb::Get, Verb::List];

/// What a pod's containers use.
struct PodMetrics;
/// What a node uses.
struct NodeMetrics;

fn schema(generator: &mut SchemaGenerator, what: &str, measured: &Schema) -> Schema {
    json_schema!({
        "description": format!("sets resource usage metrics of a {what}."),
        "type": "object",
        "required": ["timestamp", "window", measured_field(what)],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": generator.subschema_for::<ObjectMeta>(),
            "timestamp": generator.subschema_for::<Time>(),
            "window": {"type": "string"},
            measured_field(what): measured,
        },
    })
}

fn measured_field(what: &str) -> &'static str {
    if what == "pod" { "containers" } else { "usage" }
}

fn usage(generator: &mut SchemaGenerator) -> Schema {
    let quantity = generator.subschema_for::<Quantity>();
    json_schema!({"type": "object", "additionalProperties": quantity})
}

impl JsonSchema for PodMetrics {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let usage = usage(generator);
        let container = json_schema!({
            "type": "object",
            "required": ["name", "usage"],
            "properties": {"name": {"type": "string"}, "usage": usage},
        });
        let containers = json_schema!({"type": "array", "items": container});
        schema(generator, "pod", &containers)
    }
}

impl JsonSchema for NodeMetrics {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let usage = usage(generator);
        schema(generator, "node", &usage)
    }
}

/// The rows.
pub fn rows(builder: &mut Builder) -> Vec<Resource> {
    vec![
        Resource {
            namespaced: false,
            verbs: VERBS,
            measures: Some(NODES),
            ..row::<NodeMetrics>(
                builder,
                id(GROUP, VERSION, "nodes"),
                "NodeMetrics",
                "",
                Measurements,
            )
        },
        Resource {
            verbs: VERBS,
            measures: Some(PODS),
            ..row::<PodMetrics>(
                builder,
                id(GROUP, VERSION, "pods"),
                "PodMetrics",
                "",
                Measurements,
            )
        },
    ]
}
