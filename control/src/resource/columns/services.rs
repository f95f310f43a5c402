//! The tables of services and endpoint slices.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{AGE, Column, NAME, NONE, age, column, name, or_none, wide};
use crate::api::meta;

/// How many endpoints or ports of a slice are named.
const SHOWN: usize = 3;

/// The columns of services.
pub const SERVICES: &[Column] = &[
    NAME,
    column("Type", "string", "How the service is exposed."),
    column(
        "Cluster-IP",
        "string",
        "The address of the service inside the cluster.",
    ),
    column(
        "External-IP",
        "string",
        "Addresses of the service outside of the cluster.",
    ),
    column(
        "Port(s)",
        "string",
        "The ports of the service, with its node ports.",
    ),
    AGE,
    wide(
        "Selector",
        "string",
        "The labels of the pods that serve it.",
    ),
];

/// The columns of endpoint slices.
pub const ENDPOINT_SLICES: &[Column] = &[
    NAME,
    column(
        "AddressType",
        "string",
        "The type of addresses in this slice.",
    ),
    column("Ports", "string", "The ports of the endpoints."),
    column("Endpoints", "string", "The addresses of the endpoints."),
    AGE,
];

/// The cells of a service.
pub fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = meta::text(spec, &["type"]);
    let address = match meta::list(spec, &["clusterIPs"]).first() {
        Some(first) => first.as_str().unwrap_or(""),
        None => meta::text(spec, &["clusterIP"]),
    };
    vec![
        name(object),
        json!(kind),
        or_none(address),
        json!(external(object, kind)),
        json!(ports(spec)),
        age(object, now),
        json!(selector(spec)),
    ]
}

fn selector(spec: &Value) -> String {
    let labels = spec.get("selector").and_then(Value::as_object);
    let pairs: Vec<String> = labels
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    if pairs.is_empty() {
        NONE.to_owned()
    } else {
        pairs.join(",")
    }
}

fn external(object: &Value, kind: &str) -> String {
    let spec = &object["spec"];
    let texts = |list: &[Value]| -> Vec<String> {
        let texts = list.iter().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    };
    let mut all = texts(meta::list(spec, &["externalIPs"]));
    match kind {
        "ExternalName" => return meta::text(spec, &["externalName"]).to_owned(),
        "LoadBalancer" => {
            let ingress = meta::list(object, &["status", "loadBalancer", "ingress"]);
            for one in ingress {
                let address = meta::text(one, &["ip"]);
                let host = meta::text(one, &["hostname"]);
                let shown = if address.is_empty() { host } else { address };
                all.insert(0, shown.to_owned());
            }
            if all.is_empty() {
                return "<pending>".to_owned();
            }
        }
        _ => {}
    }
    if all.is_empty() {
        NONE.to_owned()
    } else {
        all.join(",")
    }
}

fn ports(spec: &Value) -> String {
    let shown: Vec<String> = meta::list(spec, &["ports"])
        .iter()
        .map(|port| {
            let number = meta::number(port, &["port"]).unwrap_or(0);
            let protocol = meta::text(port, &["protocol"]);
            match meta::number(port, &["nodePort"]).filter(|node| *node > 0) {
                Some(node) => format!("{number}:{node}/{protocol}"),
                None => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if shown.is_empty() {
        NONE.to_owned()
    } else {
        shown.join(",")
    }
}

/// The first few texts, and how many more there are.
fn few(texts: &[String], empty: &str) -> String {
    match texts.len() {
        0 => empty.to_owned(),
        total if total > SHOWN => {
            format!("{} + {} more...", texts[..SHOWN].join(","), total - SHOWN)
        }
        _ => texts.join(","),
    }
}

/// The cells of an endpoint slice.
pub fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = meta::list(object, &["ports"])
        .iter()
        .map(|port| match meta::number(port, &["port"]) {
            Some(number) => number.to_string(),
            None => meta::text(port, &["name"]).to_owned(),
        })
        .collect();
    let addresses: Vec<String> = meta::list(object, &["endpoints"])
        .iter()
        .flat_map(|endpoint| meta::list(endpoint, &["addresses"]))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    vec![
        name(object),
        json!(meta::text(object, &["addressType"])),
        json!(few(&ports, "<unset>")),
        json!(few(&addresses, "<unset>")),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_show_their_ports_and_addresses() {
        let now: Timestamp = "2026-01-01T00:00:05Z".parse().expect("a time");
        let object = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "type": "NodePort",
                "clusterIP": "10.96.0.5",
                "selector": {"app": "web", "tier": "a"},
                "ports": [
                    {"port": 80, "protocol": "TCP", "nodePort": 30080},
                    {"port": 53, "protocol": "UDP"},
                ],
            },
        });
        let expected = json!([
            "web",
            "NodePort",
            "10.96.0.5",
            "<none>",
            "80:30080/TCP,53/UDP",
            "5s",
            "app=web,tier=a"
        ]);
        assert_eq!(Value::from(service(&object, now)), expected);
    }

    #[test]
    fn long_lists_are_cut() {
        let five: Vec<String> = (1..=5).map(|one| one.to_string()).collect();
        assert_eq!(few(&five, "-"), "1,2,3 + 2 more...");
        assert_eq!(few(&[], "-"), "-");
    }
}
