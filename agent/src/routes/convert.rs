//! Wire messages as checked values, and those as this node's dataplane sees them.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_dataplane::model::{
    Algorithm, Backend, Distribution, Frontend, Protocol, ReturnPath, Scope, ServiceName,
    TrafficPolicy,
};
use portolan_wire::v1 as wire;
use serde::{Deserialize, Serialize};

use crate::network::PeerNode;

/// What of a message can't be so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A service without an id, a node without a name.
    #[error("a {0} has no name")]
    Unnamed(&'static str),
    /// Neither 4 nor 16 bytes.
    #[error("{of}: an address of {length} bytes")]
    Address {
        /// The service or node.
        of: String,
        /// How many bytes it has.
        length: usize,
    },
    /// Not a port.
    #[error("{of}: port {port}")]
    Port {
        /// The service.
        of: String,
        /// What was sent.
        port: u32,
    },
    /// Not a CIDR.
    #[error("{of}: {text:?} is not a CIDR")]
    Cidr {
        /// The node or service.
        of: String,
        /// What was sent.
        text: String,
    },
    /// An enum's value that this agent does not know.
    #[error("{of}: unknown {what} {value}")]
    Unknown {
        /// The service.
        of: String,
        /// "protocol", "frontend kind", "traffic policy".
        what: &'static str,
        /// What was sent.
        value: i32,
    },
}

/// A service port, as every node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRoute {
    /// Its name.
    pub name: ServiceName,
    /// Its transport.
    pub protocol: Protocol,
    /// Where clients knock.
    pub frontends: Vec<Frontend>,
    /// Who may answer: ready endpoints, and terminating ones that still serve.
    pub endpoints: Vec<EndpointRoute>,
    /// For clients in pods.
    pub internal_policy: TrafficPolicy,
    /// For clients beyond the cluster.
    pub external_policy: TrafficPolicy,
    /// Which endpoints are preferred.
    #[serde(default)]
    pub distribution: Distribution,
    /// How one of them is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// How packets of endpoints on other nodes get back; `None`: as the node is configured.
    #[serde(default)]
    pub return_path: Option<ReturnPath>,
    /// For so many seconds a client keeps its endpoint.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Who may knock at a load balancer's address; empty: anybody.
    #[serde(default)]
    pub source_ranges: Vec<IpNet>,
    /// Endpoints get flows whether or not they are ready.
    #[serde(default)]
    pub publish_not_ready: bool,
    /// Where this node says how many local endpoints the Service has.
    #[serde(default)]
    pub health_check_port: Option<u16>,
}

/// An endpoint that may answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointRoute {
    /// The pod's address.
    pub address: IpAddr,
    /// The port that it listens on.
    pub port: u16,
    /// Where it runs; empty when nobody knows.
    pub node: String,
    /// The node's zone; empty when it has none.
    pub zone: String,
    /// It is on its way out.
    pub terminating: bool,
    /// Its share of new flows beside others.
    #[serde(default = "ordinary_weight")]
    pub weight: u32,
    /// Topology hints: the zones whose clients it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hinted_zones: Vec<String>,
    /// Topology hints: the nodes whose clients it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hinted_nodes: Vec<String>,
}

fn ordinary_weight() -> u32 {
    Backend::ORDINARY_WEIGHT
}

/// A node of the routing table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRoute {
    /// Its name.
    pub name: String,
    /// Its zone; empty when it has none.
    pub zone: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What its pods' addresses are taken from.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeRoute {
    /// As the pod network needs it.
    pub fn as_peer(&self) -> PeerNode {
        PeerNode {
            name: self.name.clone(),
            addresses: self.addresses.clone(),
            pod_cidrs: self.pod_cidrs.clone(),
        }
    }
}

impl TryFrom<wire::ServicePort> for ServiceRoute {
    type Error = ConvertError;

    fn try_from(service: wire::ServicePort) -> Result<Self, ConvertError> {
        let of = service.id;
        if of.is_empty() {
            return Err(ConvertError::Unnamed("service"));
        }
        let frontends = service
            .frontends
            .iter()
            .map(|frontend| convert_frontend(&of, frontend));
        let usable = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ready || (endpoint.serving && endpoint.terminating));
        let mut endpoints = usable
            .map(|endpoint| convert_endpoint(&of, endpoint))
            .collect::<Result<Vec<_>, _>>()?;
        let ranges = service.source_ranges.iter();
        let source_ranges = ranges
            .map(|text| convert_cidr(&of, text))
            .collect::<Result<_, _>>()?;
        // Equal sets must be equal values: a change of order is no change of the table.
        endpoints.sort_unstable();
        endpoints.dedup();
        Ok(Self {
            protocol: convert_protocol(&of, service.protocol)?,
            frontends: frontends.collect::<Result<_, _>>()?,
            endpoints,
            internal_policy: convert_policy(&of, service.internal_traffic_policy)?,
            external_policy: convert_policy(&of, service.external_traffic_policy)?,
            distribution: convert_distribution(&of, service.distribution)?,
            algorithm: convert_algorithm(&of, service.algorithm)?,
            return_path: convert_return_path(&of, service.return_path)?,
            affinity_seconds: Some(service.affinity_seconds).filter(|seconds| *seconds != 0),
            source_ranges,
            publish_not_ready: service.publish_not_ready_addresses,
            health_check_port: match service.health_check_node_port {
                0 => None,
                port => Some(convert_port(&of, port)?),
            },
            name: ServiceName(of),
        })
    }
}

impl TryFrom<wire::Node> for NodeRoute {
    type Error = ConvertError;

    fn try_from(node: wire::Node) -> Result<Self, ConvertError> {
        let of = node.name;
        if of.is_empty() {
            return Err(ConvertError::Unnamed("node"));
        }
        let addresses = node
            .addresses
            .iter()
            .map(|address| convert_address(&of, address));
        let cidrs = node.pod_cidrs.iter().map(|text| convert_cidr(&of, text));
        Ok(Self {
            addresses: addresses.collect::<Result<_, _>>()?,
            pod_cidrs: cidrs.collect::<Result<_, _>>()?,
            zone: node.zone,
            name: of,
        })
    }
}

fn convert_endpoint(of: &str, endpoint: &wire::Endpoint) -> Result<EndpointRoute, ConvertError> {
    Ok(EndpointRoute {
        address: convert_address(of, &endpoint.address)?,
        port: convert_port(of, endpoint.port)?,
        node: endpoint.node.clone(),
        zone: endpoint.zone.clone(),
        terminating: !endpoint.ready,
        weight: endpoint.weight.unwrap_or(Backend::ORDINARY_WEIGHT),
        hinted_zones: endpoint.hinted_zones.clone(),
        hinted_nodes: endpoint.hinted_nodes.clone(),
    })
}

fn convert_cidr(of: &str, text: &str) -> Result<IpNet, ConvertError> {
    text.parse().map_err(|_| ConvertError::Cidr {
        of: of.to_owned(),
        text: text.to_owned(),
    })
}

fn convert_frontend(of: &str, frontend: &wire::Frontend) -> Result<Frontend, ConvertError> {
    let port = convert_port(of, frontend.port)?;
    let at_address = |scope| {
        Ok(Frontend::Address {
            address: convert_address(of, &frontend.address)?,
            port,
            scope,
        })
    };
    match wire::FrontendKind::try_from(frontend.kind) {
        Ok(wire::FrontendKind::ClusterIp) => at_address(Scope::Cluster),
        Ok(wire::FrontendKind::ExternalIp) => at_address(Scope::External),
        Ok(wire::FrontendKind::LoadBalancer) => at_address(Scope::LoadBalancer),
        Ok(wire::FrontendKind::NodePort) => Ok(Frontend::NodePort { port }),
        Ok(wire::FrontendKind::Unspecified) | Err(_) => {
            Err(unknown(of, "frontend kind", frontend.kind))
        }
    }
}

fn convert_protocol(of: &str, value: i32) -> Result<Protocol, ConvertError> {
    match wire::Protocol::try_from(value) {
        Ok(wire::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(wire::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(wire::Protocol::Sctp) => Ok(Protocol::Sctp),
        Ok(wire::Protocol::Unspecified) | Err(_) => Err(unknown(of, "protocol", value)),
    }
}

/// Absent means Cluster, as in the Kubernetes API.
fn convert_policy(of: &str, value: i32) -> Result<TrafficPolicy, ConvertError> {
    match wire::TrafficPolicy::try_from(value) {
        Ok(wire::TrafficPolicy::Unspecified | wire::TrafficPolicy::Cluster) => {
            Ok(TrafficPolicy::Cluster)
        }
        Ok(wire::TrafficPolicy::Local) => Ok(TrafficPolicy::Local),
        Err(_) => Err(unknown(of, "traffic policy", value)),
    }
}

fn unknown(of: &str, what: &'static str, value: i32) -> ConvertError {
    ConvertError::Unknown {
        of: of.to_owned(),
        what,
        value,
    }
}

fn convert_distribution(of: &str, value: i32) -> Result<Distribution, ConvertError> {
    match wire::Distribution::try_from(value) {
        Ok(wire::Distribution::Unspecified) => Ok(Distribution::LoadAware),
        Ok(wire::Distribution::SameNode) => Ok(Distribution::SameNode),
        Ok(wire::Distribution::SameZone) => Ok(Distribution::SameZone),
        Ok(wire::Distribution::Even) => Ok(Distribution::Even),
        Err(_) => Err(unknown(of, "distribution", value)),
    }
}

fn convert_algorithm(of: &str, value: i32) -> Result<Algorithm, ConvertError> {
    match wire::Algorithm::try_from(value) {
        Ok(wire::Algorithm::Unspecified) => Ok(Algorithm::Maglev),
        Ok(wire::Algorithm::LeastConnections) => Ok(Algorithm::LeastConnections),
        Err(_) => Err(unknown(of, "algorithm", value)),
    }
}

fn convert_return_path(of: &str, value: i32) -> Result<Option<ReturnPath>, ConvertError> {
    match wire::ReturnPath::try_from(value) {
        Ok(wire::ReturnPath::Unspecified) => Ok(None),
        Ok(wire::ReturnPath::SourceNat) => Ok(Some(ReturnPath::SourceNat)),
        Ok(wire::ReturnPath::Direct) => Ok(Some(ReturnPath::Direct)),
        Err(_) => Err(unknown(of, "return path", value)),
    }
}

fn convert_address(of: &str, bytes: &[u8]) -> Result<IpAddr, ConvertError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(v6.into()),
        Err(_) => Err(ConvertError::Address {
            of: of.to_owned(),
            length: bytes.len(),
        }),
    }
}

fn convert_port(of: &str, port: u32) -> Result<u16, ConvertError> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ConvertError::Port {
            of: of.to_owned(),
            port,
        }),
    }
}

#[cfg(test)]
mod tests;
