//! From Kubernetes' objects to table entries. Pure; what can't be understood is left out, as the API has validated it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::options;
use super::table::{
    Endpoint, Frontend, FrontendKind, NodeEntry, Protocol, ServicePort, TrafficPolicy,
};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// A node's entry.
pub(super) fn node(node: &core::Node) -> Option<NodeEntry> {
    let zone = node
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(ZONE_LABEL));
    let addresses = node
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_ref());
    let addresses = addresses.into_iter().flatten();
    let addresses = addresses
        .filter(|address| address.type_ == "InternalIP")
        .filter_map(|address| address.address.parse().ok());
    let spec = node.spec.as_ref();
    let many = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    let one = spec.and_then(|spec| spec.pod_cidr.clone());
    let cidrs = if many.is_empty() {
        Vec::from_iter(one)
    } else {
        many
    };
    Some(NodeEntry {
        name: node.metadata.name.clone()?,
        zone: zone.cloned().unwrap_or_default(),
        addresses: addresses.collect(),
        pod_cidrs: cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
    })
}

/// The entries of a Service with the slices that carry its name: one a port, none for a headless or external one.
pub(super) fn service<'a>(
    service: &core::Service,
    slices: &(impl Iterator<Item = &'a discovery::EndpointSlice> + Clone),
) -> Vec<ServicePort> {
    let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name)
    else {
        return Vec::new();
    };
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let options = options::of(service);
    let ports = spec.ports.iter().flatten();
    let entries = ports.filter_map(|port| {
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        let number = u16::try_from(port.port).ok()?;
        let frontends = frontends(service, spec, port, number);
        if frontends.is_empty() {
            return None;
        }
        let port_name = port.name.clone().unwrap_or_default();
        Some(ServicePort {
            id: format!("{namespace}/{name}:{number}/{protocol}"),
            namespace: namespace.clone(),
            name: name.clone(),
            endpoints: endpoints(slices.clone(), &port_name, protocol),
            port_name,
            protocol,
            frontends,
            internal_policy: TrafficPolicy::parse(spec.internal_traffic_policy.as_deref()),
            external_policy: TrafficPolicy::parse(spec.external_traffic_policy.as_deref()),
            options: options.clone(),
        })
    });
    entries.collect()
}

fn frontends(
    service: &core::Service,
    spec: &core::ServiceSpec,
    port: &core::ServicePort,
    number: u16,
) -> Vec<Frontend> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let at = |kind| {
        move |text: &String| {
            let address = Some(text.parse::<IpAddr>().ok()?);
            Some(Frontend {
                kind,
                address,
                port: number,
            })
        }
    };
    // "None" is no address, so a headless service has no frontend of this kind.
    let many = spec.cluster_ips.clone().unwrap_or_default();
    let one = Vec::from_iter(spec.cluster_ip.clone());
    let cluster_ips = if many.is_empty() { one } else { many };
    let mut frontends: Vec<_> = cluster_ips
        .iter()
        .filter_map(at(FrontendKind::ClusterIp))
        .collect();
    if frontends.is_empty() {
        return frontends;
    }
    let node_port = port.node_port.and_then(|port| u16::try_from(port).ok());
    frontends.extend(node_port.filter(|port| *port != 0).map(|port| Frontend {
        kind: FrontendKind::NodePort,
        address: None,
        port,
    }));
    let external = spec.external_ips.iter().flatten();
    frontends.extend(external.filter_map(at(FrontendKind::ExternalIp)));
    let balancer = service
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref());
    // With the mode Proxy the balancer itself takes the connections and calls node ports: its address is not ours.
    let addresses = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref());
    frontends.extend(addresses.filter_map(at(FrontendKind::LoadBalancer)));
    frontends.sort();
    frontends.dedup();
    frontends
}

/// Who answers at a port: ready endpoints, and those on their way out that still serve.
fn endpoints<'a>(
    slices: impl Iterator<Item = &'a discovery::EndpointSlice>,
    port_name: &str,
    protocol: Protocol,
) -> Vec<Endpoint> {
    // While slices are rebalanced an endpoint may stand in two of them; the better word counts.
    let mut found: BTreeMap<(IpAddr, u16), Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.iter().flatten().filter(|port| {
            port.name.as_deref().unwrap_or_default() == port_name
                && Protocol::parse(port.protocol.as_deref()) == Some(protocol)
        });
        let weights = options::weights(&slice.metadata);
        let ports: Vec<u16> = ports
            .filter_map(|port| u16::try_from(port.port?).ok())
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            for port in &ports {
                let Some(mut endpoint) = entry(endpoint, *port) else {
                    continue;
                };
                if let Some(weight) = weights.get(&endpoint.address) {
                    endpoint.weight = *weight;
                }
                let key = (endpoint.address, endpoint.port);
                let better =
                    |old: &Endpoint| (endpoint.ready, endpoint.serving) > (old.ready, old.serving);
                if found.get(&key).is_none_or(better) {
                    found.insert(key, endpoint);
                }
            }
        }
    }
    found.into_values().collect()
}

fn entry(endpoint: &discovery::Endpoint, port: u16) -> Option<Endpoint> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    // What is not said counts as true, except for terminating.
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let terminating = conditions.terminating.unwrap_or(false);
    if !(ready || serving && terminating) {
        return None;
    }
    let hints = endpoint.hints.as_ref();
    let zones = hints
        .into_iter()
        .flat_map(|hints| hints.for_zones.iter().flatten());
    let nodes = hints
        .into_iter()
        .flat_map(|hints| hints.for_nodes.iter().flatten());
    Some(Endpoint {
        // Kubernetes makes slices with one address an endpoint and lets readers take the first.
        address: endpoint.addresses.first()?.parse().ok()?,
        port,
        node: endpoint.node_name.clone().unwrap_or_default(),
        zone: endpoint.zone.clone().unwrap_or_default(),
        ready,
        serving,
        terminating,
        weight: Endpoint::ORDINARY_WEIGHT,
        hinted_zones: zones.map(|zone| zone.name.clone()).collect(),
        hinted_nodes: nodes.map(|node| node.name.clone()).collect(),
    })
}
