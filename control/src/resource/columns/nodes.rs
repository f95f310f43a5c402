//! The table of nodes.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, NONE, UNKNOWN, age, column, name, wide};
use crate::api::meta;
use crate::api::selector::labels_of;

/// What a role's label begins with.
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
/// The older label of a role.
const ROLE_LABEL: &str = "kubernetes.io/role";

/// The columns.
pub const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "The status of the node"),
    column("Roles", "string", "The roles of the node"),
    AGE,
    column("Version", "string", "Kubelet Version reported by the node."),
    wide(
        "Internal-IP",
        "string",
        "The node's address inside the cluster.",
    ),
    wide(
        "External-IP",
        "string",
        "The node's address outside of the cluster.",
    ),
    wide("OS-Image", "string", "OS Image reported by the node."),
    wide(
        "Kernel-Version",
        "string",
        "Kernel Version reported by the node.",
    ),
    wide(
        "Container-Runtime",
        "string",
        "ContainerRuntime Version reported by the node.",
    ),
];

/// The cells of a node.
pub fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |field: &str| {
        let text = meta::text(node, &["status", "nodeInfo", field]);
        json!(if text.is_empty() { UNKNOWN } else { text })
    };
    vec![
        name(node),
        json!(status(node)),
        json!(roles(node)),
        age(node, now),
        json!(meta::text(node, &["status", "nodeInfo", "kubeletVersion"])),
        json!(address(node, "InternalIP")),
        json!(address(node, "ExternalIP")),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = meta::list(node, &["status", "conditions"])
        .iter()
        .find(|condition| condition["type"] == "Ready");
    let mut words = vec![match ready {
        Some(condition) if condition["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node["spec"]["unschedulable"] == true {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Value) -> String {
    let roles: Vec<&str> = labels_of(node)
        .into_iter()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None => (key == ROLE_LABEL).then_some(value),
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() {
        NONE.to_owned()
    } else {
        roles.join(",")
    }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    meta::list(node, &["status", "addresses"])
        .iter()
        .find(|address| address["type"] == kind)
        .map_or(NONE, |address| meta::text(address, &["address"]))
}
