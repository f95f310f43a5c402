//! The routing table as wire messages.

use std::net::IpAddr;

use portolan_wire::v1 as wire;

use crate::routing::{
    Algorithm, Change, Distribution, Endpoint, Frontend, FrontendKind, NodeEntry, Protocol,
    Published, ReturnPath, ServicePort, Table, TrafficPolicy,
};

/// What brings a follower from `(epoch, generation)` to what is published.
pub(super) fn update(published: &Published, epoch: &str, generation: u64) -> wire::RouteUpdate {
    let change = match published.since(epoch, generation) {
        Change::Snapshot(table) => wire::route_update::Change::Snapshot(snapshot(&table)),
        Change::Delta {
            base,
            services,
            gone_services,
            nodes,
            gone_nodes,
        } => wire::route_update::Change::Delta(wire::Delta {
            base_generation: base,
            upserted_services: services.iter().map(|port| service(port)).collect(),
            deleted_services: gone_services,
            upserted_nodes: nodes.iter().map(|entry| node(entry)).collect(),
            deleted_nodes: gone_nodes,
        }),
    };
    wire::RouteUpdate {
        epoch: published.epoch.to_string(),
        generation: published.generation,
        change: Some(change),
    }
}

fn snapshot(table: &Table) -> wire::Snapshot {
    wire::Snapshot {
        services: table.services.values().map(|port| service(port)).collect(),
        nodes: table.nodes.values().map(|entry| node(entry)).collect(),
    }
}

fn service(port: &ServicePort) -> wire::ServicePort {
    let protocol = match port.protocol {
        Protocol::Tcp => wire::Protocol::Tcp,
        Protocol::Udp => wire::Protocol::Udp,
        Protocol::Sctp => wire::Protocol::Sctp,
    };
    let options = &port.options;
    wire::ServicePort {
        id: port.id.clone(),
        namespace: port.namespace.clone(),
        name: port.name.clone(),
        port_name: port.port_name.clone(),
        protocol: protocol.into(),
        frontends: port.frontends.iter().map(frontend).collect(),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
        internal_traffic_policy: policy(port.internal_policy).into(),
        external_traffic_policy: policy(port.external_policy).into(),
        distribution: match options.distribution {
            Distribution::LoadAware => wire::Distribution::Unspecified,
            Distribution::SameNode => wire::Distribution::SameNode,
            Distribution::SameZone => wire::Distribution::SameZone,
            Distribution::Even => wire::Distribution::Even,
        }
        .into(),
        algorithm: match options.algorithm {
            Algorithm::Maglev => wire::Algorithm::Unspecified,
            Algorithm::LeastConnections => wire::Algorithm::LeastConnections,
        }
        .into(),
        return_path: match options.return_path {
            None => wire::ReturnPath::Unspecified,
            Some(ReturnPath::SourceNat) => wire::ReturnPath::SourceNat,
            Some(ReturnPath::Direct) => wire::ReturnPath::Direct,
        }
        .into(),
        affinity_seconds: options.affinity_seconds.unwrap_or(0),
        source_ranges: options
            .source_ranges
            .iter()
            .map(ToString::to_string)
            .collect(),
        publish_not_ready_addresses: options.publish_not_ready,
        health_check_node_port: options.health_check_node_port.map_or(0, u32::from),
    }
}

fn frontend(frontend: &Frontend) -> wire::Frontend {
    let kind = match frontend.kind {
        FrontendKind::ClusterIp => wire::FrontendKind::ClusterIp,
        FrontendKind::NodePort => wire::FrontendKind::NodePort,
        FrontendKind::ExternalIp => wire::FrontendKind::ExternalIp,
        FrontendKind::LoadBalancer => wire::FrontendKind::LoadBalancer,
    };
    wire::Frontend {
        kind: kind.into(),
        address: frontend.address.map(octets).unwrap_or_default(),
        port: frontend.port.into(),
    }
}

fn endpoint(endpoint: &Endpoint) -> wire::Endpoint {
    wire::Endpoint {
        address: octets(endpoint.address),
        port: endpoint.port.into(),
        node: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        ready: endpoint.ready,
        serving: endpoint.serving,
        terminating: endpoint.terminating,
        weight: Some(endpoint.weight),
        hinted_zones: endpoint.hinted_zones.clone(),
        hinted_nodes: endpoint.hinted_nodes.clone(),
    }
}

fn node(node: &NodeEntry) -> wire::Node {
    wire::Node {
        name: node.name.clone(),
        zone: node.zone.clone(),
        addresses: node.addresses.iter().copied().map(octets).collect(),
        pod_cidrs: node.pod_cidrs.iter().map(ToString::to_string).collect(),
    }
}

fn policy(policy: TrafficPolicy) -> wire::TrafficPolicy {
    match policy {
        TrafficPolicy::Cluster => wire::TrafficPolicy::Cluster,
        TrafficPolicy::Local => wire::TrafficPolicy::Local,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
