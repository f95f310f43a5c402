//! Rules for services and endpoint slices.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::metadata::{self, IMMUTABLE};
use super::super::{Faults, Path, names};
use super::services::has_node_ports;
use crate::api::meta;

/// Transports, in the order in which messages list them.
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// How long session affinity may last, in seconds.
const AFFINITY_LIMIT: i64 = 86_400;

/// Who changes clusterIP alone means the first of clusterIPs.
pub fn follow_first_address(object: &mut Value, old: &Value) {
    let single = object["spec"]["clusterIP"].clone();
    let same_list = object["spec"]["clusterIPs"] == old["spec"]["clusterIPs"];
    let was = meta::text(old, &["spec", "clusterIP"]);
    let changed = single
        .as_str()
        .is_some_and(|now| !now.is_empty() && now != was);
    if changed
        && same_list
        && !was.is_empty()
        && let Some(first) = object["spec"]["clusterIPs"].get_mut(0)
    {
        *first = single;
    }
}

/// What an update that leaves allocated values out keeps: addresses always, node ports where the type has them.
pub fn carry_over(object: &mut Value, old: &Value) {
    let kind = meta::text(object, &["spec", "type"]).to_owned();
    let external = |kind: &str| kind == "ExternalName";
    if external(&kind) || external(meta::text(old, &["spec", "type"])) {
        return;
    }
    let spec = meta::child_mut(object, "spec");
    let empty =
        |value: Option<&Value>| value.is_none_or(|value| *value == "" || *value == json!([]));
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if empty(spec.get(field))
            && let Some(before) = old["spec"].get(field)
        {
            spec.insert(field.to_owned(), before.clone());
        }
    }
    if !has_node_ports(&kind) {
        return;
    }
    let before = meta::list(old, &["spec", "ports"]);
    for port in super::each_mut(spec, "ports") {
        let unset = port.get("nodePort").is_none_or(|number| *number == 0);
        let same = |one: &&Value| {
            let equal = |field: &str| one.get(field) == port.get(field);
            equal("port") && equal("protocol")
        };
        if let Some(number) = before.iter().find(same).and_then(|one| one.get("nodePort"))
            && unset
        {
            port.insert("nodePort".to_owned(), number.clone());
        }
    }
}

/// Drops the fields that the old type had and the new one has not, unless the update sets them on purpose to something
/// else: then they are judged as in a new service. Node ports and addresses are the allocator's to drop.
pub fn drop_with_type(object: &mut Value, old: &Value) {
    let is_kind = |service: &Value, kind: &str| meta::text(service, &["spec", "type"]) == kind;
    let only_of = |kind: &'static str| move |service: &Value| is_kind(service, kind);
    let checks_health = |service: &Value| {
        is_kind(service, "LoadBalancer")
            && meta::text(service, &["spec", "externalTrafficPolicy"]) == "Local"
    };
    let rules: [Rule<'_>; 5] = [
        ("healthCheckNodePort", &checks_health),
        ("externalTrafficPolicy", &is_external),
        ("allocateLoadBalancerNodePorts", &only_of("LoadBalancer")),
        ("loadBalancerClass", &only_of("LoadBalancer")),
        ("externalName", &only_of("ExternalName")),
    ];
    for (field, has) in rules {
        if has(old) && !has(object) && object["spec"].get(field) == old["spec"].get(field) {
            meta::child_mut(object, "spec").remove(field);
        }
    }
}

/// A field, and which services have it.
type Rule<'a> = (&'a str, &'a dyn Fn(&Value) -> bool);

/// Whether clients beyond the cluster may reach a service.
fn is_external(service: &Value) -> bool {
    has_node_ports(meta::text(service, &["spec", "type"]))
        || !meta::list(service, &["spec", "externalIPs"]).is_empty()
}

/// What is wrong with a service.
pub fn service(object: &Value, faults: &mut Faults) {
    let path = Path::new("spec");
    let spec = &object["spec"];
    let kind = meta::text(spec, &["type"]);
    let headless = meta::text(spec, &["clusterIP"]) == "None";
    match kind {
        "ClusterIP" | "NodePort" | "LoadBalancer" => {}
        "ExternalName" => external_name(spec, &path, faults),
        other => faults.unsupported(
            &path.child("type"),
            other,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ),
    }
    if headless && has_node_ports(kind) {
        faults.invalid_text(
            &path.child("clusterIPs").index(0),
            "None",
            &format!("may not be set to 'None' for {kind} services"),
        );
    }
    let listed = meta::list(spec, &["ports"]);
    if listed.is_empty() && !headless && kind != "ExternalName" {
        faults.required(&path.child("ports"), "");
    }
    ports(listed, kind, &path.child("ports"), faults);
    metadata::labels(spec.get("selector"), &path.child("selector"), faults);
    affinity(spec, &path, faults);
    policies(spec, is_external(object), &path, faults);
    addresses(spec, &path, faults);
    balancer(spec, kind, &path, faults);
}

/// What only load balancers have.
fn balancer(spec: &Value, kind: &str, path: &Path, faults: &mut Faults) {
    let ranges = meta::list(spec, &["loadBalancerSourceRanges"]);
    let at = path.child("loadBalancerSourceRanges");
    if !ranges.is_empty() && kind != "LoadBalancer" {
        faults.forbidden(&at, "may only be used when `type` is 'LoadBalancer'");
    }
    for (index, range) in ranges.iter().enumerate() {
        let text = range.as_str().unwrap_or("");
        if text.trim().parse::<ipnet::IpNet>().is_err() {
            faults.invalid_text(
                &at.index(index),
                text,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    let local = meta::text(spec, &["externalTrafficPolicy"]) == "Local";
    let port = meta::number(spec, &["healthCheckNodePort"]).unwrap_or(0);
    if port != 0 && !(kind == "LoadBalancer" && local) {
        faults.invalid(
            &path.child("healthCheckNodePort"),
            &Value::from(port),
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
}

fn external_name(spec: &Value, path: &Path, faults: &mut Faults) {
    let name = meta::text(spec, &["externalName"]);
    let path = path.child("externalName");
    if name.is_empty() {
        faults.required(&path, "");
    } else {
        let bare = name.strip_suffix('.').unwrap_or(name);
        faults.invalid_each(&path, name, &names::subdomain(bare));
    }
}

fn ports(ports: &[Value], kind: &str, path: &Path, faults: &mut Faults) {
    let mut seen_names: Vec<&str> = Vec::new();
    let mut seen: Vec<(i64, &str)> = Vec::new();
    let mut seen_node_ports: Vec<(i64, &str)> = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let path = path.index(at);
        let name = meta::text(port, &["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                faults.required(&path.child("name"), "");
            }
        } else {
            faults.invalid_each(&path.child("name"), name, &names::label_1123(name));
            if seen_names.contains(&name) {
                faults.duplicate(&path.child("name"), &Value::from(name));
            }
            seen_names.push(name);
        }
        let number = meta::number(port, &["port"]).unwrap_or(0);
        for fault in names::port_number(number) {
            faults.invalid(&path.child("port"), &Value::from(number), &fault);
        }
        let protocol = meta::text(port, &["protocol"]);
        if protocol.is_empty() {
            faults.required(&path.child("protocol"), "");
        } else if !PROTOCOLS.contains(&protocol) {
            faults.unsupported(&path.child("protocol"), protocol, PROTOCOLS);
        }
        target_port(port.get("targetPort"), &path.child("targetPort"), faults);
        if seen.contains(&(number, protocol)) {
            faults.duplicate(&path, &json!({"port": number, "protocol": protocol}));
        }
        seen.push((number, protocol));
        let node_port = meta::number(port, &["nodePort"]).unwrap_or(0);
        if node_port == 0 {
            continue;
        }
        if !has_node_ports(kind) {
            faults.forbidden(
                &path.child("nodePort"),
                &format!("may not be used when `type` is '{kind}'"),
            );
        } else if seen_node_ports.contains(&(node_port, protocol)) {
            faults.duplicate(&path.child("nodePort"), &Value::from(node_port));
        }
        seen_node_ports.push((node_port, protocol));
    }
}

/// A port by number or by name.
pub fn target_port(port: Option<&Value>, path: &Path, faults: &mut Faults) {
    match port {
        Some(Value::String(name)) => {
            faults.invalid_each(path, name, &names::port_name(name));
        }
        Some(number) => {
            for fault in names::port_number(number.as_i64().unwrap_or(0)) {
                faults.invalid(path, number, &fault);
            }
        }
        None => {}
    }
}

fn affinity(spec: &Value, path: &Path, faults: &mut Faults) {
    match meta::text(spec, &["sessionAffinity"]) {
        "ClientIP" => {
            let timeout = ["sessionAffinityConfig", "clientIP", "timeoutSeconds"];
            let seconds = meta::number(spec, &timeout).unwrap_or(0);
            if !(1..=AFFINITY_LIMIT).contains(&seconds) {
                faults.invalid(
                    &path.child(&timeout.join(".")),
                    &Value::from(seconds),
                    &format!("must be greater than 0 and less than {AFFINITY_LIMIT}"),
                );
            }
        }
        "None" => {
            if spec.get("sessionAffinityConfig").is_some() {
                faults.forbidden(
                    &path.child("sessionAffinityConfig"),
                    "must not be set when session affinity is None",
                );
            }
        }
        other => faults.unsupported(&path.child("sessionAffinity"), other, &["ClientIP", "None"]),
    }
}

fn policies(spec: &Value, is_external: bool, path: &Path, faults: &mut Faults) {
    let mut one_of = |field: &str, allowed: &[&str]| {
        let value = meta::text(spec, &[field]);
        if !value.is_empty() && !allowed.contains(&value) {
            faults.unsupported(&path.child(field), value, allowed);
        }
    };
    one_of("internalTrafficPolicy", &["Cluster", "Local"]);
    one_of("externalTrafficPolicy", &["Cluster", "Local"]);
    one_of(
        "ipFamilyPolicy",
        &["SingleStack", "PreferDualStack", "RequireDualStack"],
    );
    one_of(
        "trafficDistribution",
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
    );
    if spec.get("externalTrafficPolicy").is_some() && !is_external {
        faults.invalid_text(
            &path.child("externalTrafficPolicy"),
            meta::text(spec, &["externalTrafficPolicy"]),
            "may only be set for externally-accessible services",
        );
    }
}

fn addresses(spec: &Value, path: &Path, faults: &mut Faults) {
    for (at, family) in meta::list(spec, &["ipFamilies"]).iter().enumerate() {
        let family = family.as_str().unwrap_or("");
        if !matches!(family, "IPv4" | "IPv6") {
            faults.unsupported(
                &path.child("ipFamilies").index(at),
                family,
                &["IPv4", "IPv6"],
            );
        }
    }
    for field in ["clusterIPs", "externalIPs"] {
        for (at, address) in meta::list(spec, &[field]).iter().enumerate() {
            let text = address.as_str().unwrap_or("");
            let none = field == "clusterIPs" && matches!(text, "None" | "");
            if !none && text.parse::<IpAddr>().is_err() {
                faults.invalid_text(
                    &path.child(field).index(at),
                    text,
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                );
            }
        }
    }
    let single = meta::text(spec, &["clusterIP"]);
    let first = meta::list(spec, &["clusterIPs"])
        .first()
        .and_then(Value::as_str);
    if let Some(first) = first
        && first != single
    {
        faults.invalid(
            &path.child("clusterIPs"),
            &spec["clusterIPs"],
            "first value must match `clusterIP`",
        );
    }
}

/// What is wrong with a change of a service.
pub fn service_update(object: &Value, old: &Value, faults: &mut Faults) {
    let external = |service: &Value| meta::text(service, &["spec", "type"]) == "ExternalName";
    if external(object) || external(old) {
        return;
    }
    let before = meta::list(old, &["spec", "clusterIPs"]);
    let now = meta::list(object, &["spec", "clusterIPs"]);
    let (Some(was), Some(is)) = (before.first(), now.first()) else {
        return;
    };
    if was != is && *was != "" {
        faults.invalid(
            &Path::new("spec.clusterIPs").index(0),
            is,
            if *is == "" {
                "may not be changed once set"
            } else {
                "may not change once set"
            },
        );
    }
    let (was, is) = (
        &old["spec"]["ipFamilies"][0],
        &object["spec"]["ipFamilies"][0],
    );
    if was != is && !was.is_null() {
        faults.invalid(&Path::new("spec.ipFamilies").index(0), is, IMMUTABLE);
    }
}

/// What is wrong with an endpoint slice.
pub fn endpoint_slice(object: &Value, faults: &mut Faults) {
    let family = meta::text(object, &["addressType"]);
    match family {
        "IPv4" | "IPv6" | "FQDN" => {}
        "" => faults.required(&Path::new("addressType"), ""),
        other => faults.unsupported(&Path::new("addressType"), other, &["FQDN", "IPv4", "IPv6"]),
    }
    for (at, endpoint) in meta::list(object, &["endpoints"]).iter().enumerate() {
        let path = Path::new("endpoints").index(at).child("addresses");
        let addresses = meta::list(endpoint, &["addresses"]);
        if addresses.is_empty() {
            faults.required(&path, "must contain at least 1 address");
        }
        for (at, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or("");
            let fits = match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => family == "IPv4",
                Ok(IpAddr::V6(_)) => family == "IPv6",
                Err(_) => family == "FQDN",
            };
            if !fits && matches!(family, "IPv4" | "IPv6") {
                let why = format!("must be a valid {family} address");
                faults.invalid_text(&path.index(at), text, &why);
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for (at, port) in meta::list(object, &["ports"]).iter().enumerate() {
        let path = Path::new("ports").index(at);
        let name = meta::text(port, &["name"]);
        if !name.is_empty() {
            faults.invalid_each(&path.child("name"), name, &names::label_1123(name));
        }
        if seen.contains(&name) {
            faults.duplicate(&path.child("name"), &Value::from(name));
        }
        seen.push(name);
        let protocol = meta::text(port, &["protocol"]);
        if !PROTOCOLS.contains(&protocol) {
            faults.unsupported(&path.child("protocol"), protocol, PROTOCOLS);
        }
    }
}
