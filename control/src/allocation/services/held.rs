//! What a Service object says that it holds, and how its fields depend on its type.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};

use super::{Error, invalid, strings};

/// Addresses and node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// spec.clusterIPs.
    pub addresses: BTreeSet<IpAddr>,
    /// spec.ports[*].nodePort and spec.healthCheckNodePort.
    pub node_ports: BTreeSet<u16>,
}

impl Holding {
    /// What the object shows.
    pub fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let mut texts = strings(&spec["clusterIPs"]);
        texts.extend(spec["clusterIP"].as_str().map(str::to_owned));
        let ports = spec["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(node_port);
        let health = spec["healthCheckNodePort"].as_u64().unwrap_or(0);
        Self {
            addresses: texts.iter().filter_map(|text| text.parse().ok()).collect(),
            node_ports: ports
                .chain([health])
                .filter(|number| *number != 0)
                .filter_map(|number| u16::try_from(number).ok())
                .collect(),
        }
    }

    /// What this holds and the other does not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            addresses: &self.addresses - &other.addresses,
            node_ports: &self.node_ports - &other.node_ports,
        }
    }
}

/// The node port of an entry of spec.ports; 0 when there is none.
pub fn node_port(port: &Value) -> u64 {
    port["nodePort"].as_u64().unwrap_or(0)
}

/// The protocol of an entry of spec.ports.
pub fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

fn kind(service: &Value) -> &str {
    service["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

/// Whether the Service is reached on every node's address.
pub fn needs_node_ports(service: &Value) -> bool {
    match kind(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Whether the load balancer asks each node for the health of its own endpoints.
pub fn needs_health_check_port(service: &Value) -> bool {
    kind(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local"
}

/// Makes clusterIP and clusterIPs agree, and carries over what an update leaves open and may keep.
pub fn normalize(service: &mut Value, old: Option<&Value>) -> Result<(), Error> {
    if let Some(old) = old {
        carry_over(service, old);
    }
    let spec = &service["spec"];
    if kind(service) == "ExternalName" {
        return Ok(());
    }
    let address = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    let addresses = strings(&spec["clusterIPs"]);
    match (address.as_str(), addresses.first()) {
        ("", Some(first)) => service["spec"]["clusterIP"] = json!(first),
        ("", None) => {}
        (_, None) => service["spec"]["clusterIPs"] = json!([address]),
        (address, Some(first)) if address != first => {
            let why = "first value must match `clusterIP`";
            return Err(invalid("spec.clusterIPs", &json!(addresses), why));
        }
        _ => {}
    }
    Ok(())
}

fn carry_over(service: &mut Value, old: &Value) {
    let old_spec = &old["spec"];
    let had_addresses = kind(old) != "ExternalName";
    if kind(service) == "ExternalName" {
        // Addresses and families go with the type, unless the update changes them on purpose.
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if service["spec"][field] == old_spec[field]
                && let Some(spec) = service["spec"].as_object_mut()
            {
                spec.remove(field);
            }
        }
    } else if had_addresses {
        let spec = &mut service["spec"];
        if spec["clusterIP"].as_str().unwrap_or_default().is_empty()
            && strings(&spec["clusterIPs"]).is_empty()
        {
            spec["clusterIP"] = old_spec["clusterIP"].clone();
            spec["clusterIPs"] = old_spec["clusterIPs"].clone();
        }
        for field in ["ipFamilyPolicy", "ipFamilies"] {
            if spec[field].is_null() && !old_spec[field].is_null() {
                spec[field] = old_spec[field].clone();
            }
        }
        trim_to_single_stack(spec, old_spec);
    }
    carry_over_ports(service, old);
}

/// An update from two families to `SingleStack` keeps the first, when it names the old lists unchanged.
fn trim_to_single_stack(spec: &mut Value, old_spec: &Value) {
    if spec["ipFamilyPolicy"] != "SingleStack" || old_spec["ipFamilyPolicy"] == "SingleStack" {
        return;
    }
    for field in ["ipFamilies", "clusterIPs"] {
        if spec[field] == old_spec[field]
            && let Some(list) = spec[field].as_array_mut()
        {
            list.truncate(1);
        }
    }
}

fn carry_over_ports(service: &mut Value, old: &Value) {
    let needs = needs_node_ports(service);
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let held = Holding::of(old).node_ports;
    for port in service["spec"]["ports"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        if needs && node_port(port) == 0 {
            let same = old_ports
                .iter()
                .find(|old| old["port"] == port["port"] && protocol(old) == protocol(port));
            if let Some(number) = same.map(node_port).filter(|number| *number != 0) {
                port["nodePort"] = json!(number);
            }
        } else if !needs
            && u16::try_from(node_port(port)).is_ok_and(|number| held.contains(&number))
            && kind(old) != "ClusterIP"
            && let Some(port) = port.as_object_mut()
        {
            port.remove("nodePort");
        }
    }
    let health = &old["spec"]["healthCheckNodePort"];
    let needs_health = needs_health_check_port(service);
    if let Some(spec) = service["spec"].as_object_mut() {
        let asked = spec
            .get("healthCheckNodePort")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        if needs_health && asked == 0 && health.as_u64().unwrap_or(0) != 0 {
            spec.insert("healthCheckNodePort".to_owned(), health.clone());
        } else if !needs_health && spec.get("healthCheckNodePort") == Some(health) {
            spec.remove("healthCheckNodePort");
        }
    }
}
