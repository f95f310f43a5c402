//! Streams into pods: logs, commands, attached consoles, forwarded ports. The pod's node serves them; here it is decided
//! who may have them, and Kubernetes' protocols are turned into the agents' own (`agents`).

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::Value;

use super::handlers::Exchange;
use crate::api::engine::Stored;
use crate::api::{ObjectKey, Status, meta};
use crate::resource::rows::PODS;
use crate::resource::{Resource, Verb};

pub mod agents;
mod command;
mod forward;
mod logs;
mod spdy;
mod upgrade;
mod websocket;

/// What is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What a container wrote.
    Log,
    /// A command in a container.
    Exec,
    /// The console of a container's own process.
    Attach,
    /// Connections to a pod's ports.
    Forward,
}

impl Kind {
    /// The stream that a subresource is, if it is one.
    pub fn of(row: &Resource, subresource: &str) -> Option<Self> {
        match subresource {
            _ if row.id != PODS => None,
            "log" => Some(Self::Log),
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::Forward),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Forward => "portforward",
        }
    }
}

/// A pod that is on a node.
#[derive(Clone)]
pub struct Target {
    pod: Arc<Stored>,
    node: Arc<Stored>,
}

impl Target {
    fn name(&self) -> &str {
        meta::name(&self.pod.value)
    }

    fn uid(&self) -> &str {
        meta::uid(&self.pod.value)
    }

    fn container(&self, asked: Option<&str>) -> Result<String, Status> {
        container(&self.pod.value, asked)
    }
}

/// A pod's container that is asked for, or the only one, or the one that an annotation names.
fn container(pod: &Value, asked: Option<&str>) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> {
        let containers = meta::list(pod, &["spec", list]).iter();
        containers.map(|one| meta::text(one, &["name"])).collect()
    };
    let (init, main) = (names("initContainers"), names("containers"));
    if let Some(asked) = asked {
        if init.contains(&asked) || main.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!(
            "container {asked} is not valid for pod {}",
            meta::name(pod)
        )));
    }
    let default = [
        "metadata",
        "annotations",
        "kubectl.kubernetes.io/default-container",
    ];
    let default = meta::text(pod, &default);
    match main.as_slice() {
        _ if main.contains(&default) => Ok(default.to_owned()),
        [only] => Ok((*only).to_owned()),
        several => Err(Status::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            meta::name(pod),
            several.join(" ")
        ))),
    }
}

impl Exchange<'_> {
    /// Answers a request for a stream.
    pub(super) async fn stream(
        &mut self,
        kind: Kind,
        row: &Resource,
        key: &ObjectKey,
    ) -> Result<Response<Body>, Status> {
        let verb = match (kind, &self.parts.method) {
            (Kind::Log, &Method::GET) => Verb::Get,
            (Kind::Log, _) => return Err(Status::method_not_allowed()),
            // A WebSocket begins with a GET; what it may do is what a POST may.
            (_, &Method::GET | &Method::POST) => Verb::Create,
            _ => return Err(Status::method_not_allowed()),
        };
        let engine = &self.server.engine;
        let pod = engine
            .read_for(self.caller, row.id, key, (verb, kind.name()))
            .await?;
        let node = meta::text(&pod.value, &["spec", "nodeName"]).to_owned();
        if node.is_empty() && kind == Kind::Log {
            return logs::of_no_node(self, &pod.value);
        }
        if node.is_empty() {
            return Err(Status::bad_request(format!(
                "pod {} does not have a host assigned",
                key.name
            )));
        }
        let target = Target {
            node: engine.node(&node)?,
            pod,
        };
        match kind {
            Kind::Log => logs::answer(self, &target).await,
            Kind::Exec | Kind::Attach => command::answer(self, kind, &target).await,
            Kind::Forward => forward::answer(self, target),
        }
    }
}

/// A request's header as text.
fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> &str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or("")
}

/// 101: what follows is no longer HTTP.
fn switching(protocol: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

/// A query for an agent.
#[derive(Default)]
struct Query(String);

impl Query {
    fn add(&mut self, name: &str, value: &str) {
        let sign = if self.0.is_empty() { '?' } else { '&' };
        self.0.push(sign);
        self.0.push_str(name);
        self.0.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.0.push(char::from(byte));
            } else {
                // Writing to a String can't fail.
                write!(self.0, "%{byte:02X}").expect("a String takes it");
            }
        }
    }
}

/// The port on which a node's agent listens.
fn port_of(node: &Value) -> Option<u16> {
    let path = ["status", "daemonEndpoints", "kubeletEndpoint", "Port"];
    u16::try_from(meta::number(node, &path)?).ok()
}
