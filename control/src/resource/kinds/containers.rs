//! Rules for the containers of a pod.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::super::metadata::NOT_NEGATIVE;
use super::super::quantity::Quantity;
use super::super::{Faults, Path, names};
use super::pod_rules::one_of;
use super::probes;
use super::service_rules::PROTOCOLS;
use crate::api::meta;

/// What an image or name answers that begins or ends with spaces.
const NO_SPACES: &str = "must not have leading or trailing whitespace";

/// What is wrong with all containers of a pod; `volumes` are the names that mounts may use.
pub fn validate(spec: &Value, path: &Path, volumes: &BTreeSet<String>, faults: &mut Faults) {
    let containers = meta::list(spec, &["containers"]);
    if containers.is_empty() {
        faults.required(&path.child("containers"), "");
    }
    let mut seen = BTreeSet::new();
    for list in ["containers", "initContainers"] {
        for (at, container) in meta::list(spec, &[list]).iter().enumerate() {
            let path = path.child(list).index(at);
            let name = meta::text(container, &["name"]);
            if !name.is_empty() && !seen.insert(name.to_owned()) {
                faults.duplicate(&path.child("name"), &Value::from(name));
            }
            one(container, &path, volumes, faults);
        }
    }
    host_ports(spec, path, faults);
}

fn one(container: &Value, path: &Path, volumes: &BTreeSet<String>, faults: &mut Faults) {
    let name = meta::text(container, &["name"]);
    if name.is_empty() {
        faults.required(&path.child("name"), "");
    } else {
        faults.invalid_each(&path.child("name"), name, &names::label_1123(name));
    }
    let image = meta::text(container, &["image"]);
    if image.is_empty() {
        faults.required(&path.child("image"), "");
    } else if image.trim() != image {
        faults.invalid_text(&path.child("image"), image, NO_SPACES);
    }
    ports(container, &path.child("ports"), faults);
    environment(container, path, faults);
    mounts(container, &path.child("volumeMounts"), volumes, faults);
    one_of(
        container,
        path,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
        faults,
    );
    one_of(
        container,
        path,
        "terminationMessagePolicy",
        &["FallbackToLogsOnError", "File"],
        faults,
    );
    resources(&container["resources"], &path.child("resources"), faults);
    probes::of_container(container, path, faults);
}

fn ports(container: &Value, path: &Path, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (at, port) in meta::list(container, &["ports"]).iter().enumerate() {
        let path = path.index(at);
        let name = meta::text(port, &["name"]);
        if !name.is_empty() {
            let found = names::port_name(name);
            faults.invalid_each(&path.child("name"), name, &found);
            if found.is_empty() && !seen.insert(name.to_owned()) {
                faults.duplicate(&path.child("name"), &Value::from(name));
            }
        }
        match meta::number(port, &["containerPort"]).unwrap_or(0) {
            0 => faults.required(&path.child("containerPort"), ""),
            number => {
                for fault in names::port_number(number) {
                    faults.invalid(&path.child("containerPort"), &Value::from(number), &fault);
                }
            }
        }
        let host = meta::number(port, &["hostPort"]).unwrap_or(0);
        if host != 0 {
            for fault in names::port_number(host) {
                faults.invalid(&path.child("hostPort"), &Value::from(host), &fault);
            }
        }
        let protocol = meta::text(port, &["protocol"]);
        if protocol.is_empty() {
            faults.required(&path.child("protocol"), "");
        } else if !PROTOCOLS.contains(&protocol) {
            faults.unsupported(&path.child("protocol"), protocol, PROTOCOLS);
        }
    }
}

/// No two containers of a pod take one port of the host.
fn host_ports(spec: &Value, path: &Path, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (at, container) in meta::list(spec, &["containers"]).iter().enumerate() {
        for (index, port) in meta::list(container, &["ports"]).iter().enumerate() {
            let number = meta::number(port, &["hostPort"]).unwrap_or(0);
            let text = |field: &str| meta::text(port, &[field]);
            let taken = format!("{}/{}/{number}", text("protocol"), text("hostIP"));
            if number != 0 && !seen.insert(taken) {
                let path = path
                    .child("containers")
                    .index(at)
                    .child("ports")
                    .index(index);
                faults.duplicate(&path.child("hostPort"), &Value::from(number));
            }
        }
    }
}

fn environment(container: &Value, path: &Path, faults: &mut Faults) {
    for (at, variable) in meta::list(container, &["env"]).iter().enumerate() {
        let path = path.child("env").index(at);
        let name = meta::text(variable, &["name"]);
        if name.is_empty() {
            faults.required(&path.child("name"), "");
        } else {
            faults.invalid_each(
                &path.child("name"),
                name,
                &names::environment_variable(name),
            );
        }
        let Some(from) = variable.get("valueFrom") else {
            continue;
        };
        let path = path.child("valueFrom");
        let sources = from.as_object().map_or(0, Map::len);
        if !meta::text(variable, &["value"]).is_empty() {
            faults.invalid_text(&path, "", "may not be specified when `value` is not empty");
        } else if sources == 0 {
            faults.invalid_text(
                &path,
                "",
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            );
        } else if sources > 1 {
            faults.invalid_text(
                &path,
                "",
                "may not have more than one field specified at a time",
            );
        }
        for source in ["configMapKeyRef", "secretKeyRef"] {
            if let Some(reference) = from.get(source) {
                let path = path.child(source);
                let key = meta::text(reference, &["key"]);
                if key.is_empty() {
                    faults.required(&path.child("key"), "");
                } else {
                    faults.invalid_each(&path.child("key"), key, &names::config_key(key));
                }
            }
        }
        if let Some(reference) = from.get("fieldRef")
            && meta::text(reference, &["fieldPath"]).is_empty()
        {
            faults.required(&path.child("fieldRef").child("fieldPath"), "");
        }
    }
}

fn mounts(container: &Value, path: &Path, volumes: &BTreeSet<String>, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (at, mount) in meta::list(container, &["volumeMounts"]).iter().enumerate() {
        let path = path.index(at);
        let name = meta::text(mount, &["name"]);
        if name.is_empty() {
            faults.required(&path.child("name"), "");
        } else if !volumes.contains(name) {
            faults.not_found(&path.child("name"), name);
        }
        let place = meta::text(mount, &["mountPath"]);
        if place.is_empty() {
            faults.required(&path.child("mountPath"), "");
        }
        if !seen.insert(place.to_owned()) {
            faults.invalid_text(&path.child("mountPath"), place, "must be unique");
        }
        let inner = meta::text(mount, &["subPath"]);
        if inner.starts_with('/') {
            faults.invalid_text(&path.child("subPath"), inner, "must be a relative path");
        }
        if inner.split('/').any(|part| part == "..") {
            faults.invalid_text(&path.child("subPath"), inner, "must not contain '..'");
        }
    }
}

fn amounts<'a>(resources: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    meta::at(resources, &[field])
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
        .map(|(name, amount)| (name, amount.as_str().unwrap_or("")))
}

/// Whether a container can ask for a resource of this name.
fn known_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("hugepages-")
        || name.contains('/')
}

fn resources(resources: &Value, path: &Path, faults: &mut Faults) {
    for field in ["limits", "requests"] {
        for (name, amount) in amounts(resources, field) {
            let path = path.child(field).key(name);
            faults.invalid_each(&path, name, &names::qualified_name(name));
            if !known_resource(name) {
                faults.invalid_text(&path, name, "must be a standard resource for containers");
            }
            let parsed: Option<Quantity> = amount.parse().ok();
            let Some(quantity) = parsed else {
                continue;
            };
            if quantity.is_negative() {
                faults.invalid_text(&path, amount, NOT_NEGATIVE);
            }
            if name.contains('/') && !quantity.is_whole() {
                faults.invalid_text(&path, amount, "must be an integer");
            }
        }
    }
    for (name, request) in amounts(resources, "requests") {
        let limit = meta::text(resources, &["limits", name]);
        let (Ok(asked), Ok(bound)) = (request.parse::<Quantity>(), limit.parse::<Quantity>())
        else {
            continue;
        };
        if asked > bound {
            let why = format!("must be less than or equal to {name} limit of {limit}");
            faults.invalid_text(&path.child("requests"), request, &why);
        } else if asked != bound && name.contains('/') {
            let why = format!("must be equal to {name} limit of {limit}");
            faults.invalid_text(&path.child("requests"), request, &why);
        }
    }
}
