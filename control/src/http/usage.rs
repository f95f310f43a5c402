//! What nodes and pods use at the moment, as `kubectl top` asks for it: each node's agent says it, nothing is kept here. A
//! node that does not answer is missing from the answer, as are its pods.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use axum::body::Body;
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::handlers::Exchange;
use super::negotiate::Shape;
use super::{respond, table};
use crate::api::engine::Stored;
use crate::api::{Status, meta};
use crate::resource::Resource;
use crate::resource::rows::NODES;

/// Agents that are asked at a time.
const AT_A_TIME: usize = 64;
/// Bytes that an agent may say.
const LONGEST: usize = 4 << 20;

impl Exchange<'_> {
    /// Answers a request for measurements: of all objects, those of a namespace, or one.
    pub(super) async fn measured(
        &self,
        row: &Resource,
        namespace: Option<&str>,
        name: Option<&str>,
    ) -> Result<Response<Body>, Status> {
        let reads = matches!(self.parts.method, Method::GET | Method::HEAD);
        let Some(of) = row.measures.filter(|_| reads && !self.query.flag("watch")) else {
            return Err(Status::method_not_allowed());
        };
        let options = self.query.list_options()?;
        let engine = &self.server.engine;
        let page = engine
            .measured(self.caller, (row.id, of), (namespace, name), &options)
            .await?;
        let node_of = |object: &Stored| {
            let path: &[&str] = if of == NODES {
                &["metadata", "name"]
            } else {
                &["spec", "nodeName"]
            };
            meta::text(&object.value, path).to_owned()
        };
        let nodes: BTreeSet<String> = page.items.iter().map(|item| node_of(item)).collect();
        let answers: HashMap<String, Value> = stream::iter(nodes)
            .map(|node| async move { (self.ask(&node).await, node) })
            .buffer_unordered(AT_A_TIME)
            .filter_map(async |(said, node)| Some((node, said?)))
            .collect()
            .await;
        let measured = page.items.iter().filter_map(|object| {
            let said = answers.get(&node_of(object))?;
            let usage = if of == NODES {
                node_usage(said)
            } else {
                pod_usage(&object.value, said)?
            };
            Some(measurement(row, object, said, usage))
        });
        let measured: Vec<Value> = measured.collect();
        if let Some(name) = name {
            let only = measured.first();
            let only = only.ok_or_else(|| Status::not_found(row.id, name))?;
            return Ok(self.one(StatusCode::OK, row, only));
        }
        let body = match self.form.shape {
            Shape::Table => {
                let (none, include) = (json!({}), self.include());
                table::table(row, measured.iter(), &none, include, Timestamp::now())
            }
            _ => json!({
                "kind": row.list_kind(),
                "apiVersion": row.id.api_version(),
                "metadata": {},
                "items": measured,
            }),
        };
        Ok(respond::value(StatusCode::OK, self.form.encoding, &body))
    }

    /// What a node's agent says; nothing if it does not answer.
    async fn ask(&self, node: &str) -> Option<Value> {
        let asked = async {
            let node: Arc<Stored> = self.server.engine.node(node)?;
            let answer = self.server.agents.get(&node.value, "/stats").await?;
            let body = Limited::new(answer.into_body(), LONGEST).collect().await;
            let body = body.map_err(|error| Status::internal(error.to_string()))?;
            serde_json::from_slice(&body.to_bytes())
                .map_err(|error| Status::internal(error.to_string()))
        };
        match asked.await {
            Ok(said) => Some(said),
            Err(error) => {
                tracing::debug!(node, %error, "a node does not say what it uses");
                None
            }
        }
    }
}

fn measurement(
    row: &Resource,
    object: &Stored,
    said: &Value,
    (field, usage): (&str, Value),
) -> Value {
    let milliseconds = said["windowMilliseconds"].as_u64().unwrap_or(0);
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(meta::name(&object.value)));
    let from = &object.value["metadata"];
    for field in ["namespace", "labels"] {
        if !from[field].is_null() {
            metadata.insert(field.to_owned(), from[field].clone());
        }
    }
    // Times of objects are whole seconds.
    let when = meta::text(said, &["timestamp"]).parse::<Timestamp>();
    let when = when
        .ok()
        .and_then(|when| Timestamp::from_second(when.as_second()).ok());
    let when = json!(when.unwrap_or_else(Timestamp::now).to_string());
    metadata.insert("creationTimestamp".to_owned(), when.clone());
    json!({
        "kind": row.kind,
        "apiVersion": row.id.api_version(),
        "metadata": metadata,
        "timestamp": when,
        "window": format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000),
        field: usage,
    })
}

fn quantities(of: &Value) -> Value {
    let number = |name: &str| of[name].as_u64().unwrap_or(0);
    json!({
        "cpu": format!("{}n", number("cpuNanocores")),
        "memory": format!("{}Ki", number("memoryBytes") / 1024),
    })
}

fn node_usage(said: &Value) -> (&'static str, Value) {
    ("usage", quantities(&said["node"]))
}

/// What a pod's containers use; nothing if none runs.
fn pod_usage(pod: &Value, said: &Value) -> Option<(&'static str, Value)> {
    let uid = meta::uid(pod);
    let mut pods = said["pods"].as_array()?.iter();
    let containers = pods.find(|pod| pod["uid"] == uid)?["containers"].as_array()?;
    let each = containers
        .iter()
        .map(|container| json!({"name": container["name"], "usage": quantities(container)}));
    let each: Vec<Value> = each.collect();
    (!each.is_empty()).then_some(("containers", Value::Array(each)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_agents_say_becomes_metrics() {
        let said = json!({
            "timestamp": "2026-01-02T03:04:05.678Z",
            "windowMilliseconds": 1020,
            "node": {"cpuNanocores": 7, "memoryBytes": 4096},
            "pods": [
                {"uid": "u", "containers": [{"name": "c", "cpuNanocores": 5, "memoryBytes": 2048}]},
                {"uid": "idle", "containers": []},
            ],
        });
        let pod = |uid: &str| json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}});
        assert_eq!(pod_usage(&pod("idle"), &said), None);
        assert_eq!(pod_usage(&pod("none"), &said), None);
        let table = crate::resource::Table::built_in();
        let row = table.find("metrics.k8s.io", "v1beta1", "pods");
        let stored = Stored::new(pod("u"), 1);
        let usage = pod_usage(&stored.value, &said).expect("it runs");
        assert_eq!(
            measurement(row.expect("served"), &stored, &said, usage),
            json!({
                "kind": "PodMetrics",
                "apiVersion": "metrics.k8s.io/v1beta1",
                "metadata": {
                    "name": "p", "namespace": "n", "creationTimestamp": "2026-01-02T03:04:05Z",
                },
                "timestamp": "2026-01-02T03:04:05Z",
                "window": "1.020s",
                "containers": [{"name": "c", "usage": {"cpu": "5n", "memory": "2Ki"}}],
            })
        );
    }
}
