//! Wire messages as checked values, and those as this node's dataplane sees them.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_dataplane::model::{
    Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName, TrafficPolicy,
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
        /// The node.
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

/// Which node this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Here {
    /// Its name.
    pub node: String,
    /// Its zone; empty when it has none.
    pub zone: String,
}

impl Here {
    fn locality_of(&self, endpoint: &EndpointRoute) -> Locality {
        if !endpoint.node.is_empty() && endpoint.node == self.node {
            Locality::Node
        } else if !endpoint.zone.is_empty() && endpoint.zone == self.zone {
            Locality::Zone
        } else {
            Locality::Elsewhere
        }
    }
}

impl ServiceRoute {
    /// The service as the dataplane of one node must know it.
    pub fn seen_from(&self, here: &Here) -> Service {
        let backends = self.endpoints.iter().map(|endpoint| Backend {
            terminating: endpoint.terminating,
            ..Backend::new(endpoint.address, endpoint.port, here.locality_of(endpoint))
        });
        Service {
            frontends: self.frontends.clone(),
            backends: backends.collect(),
            internal_policy: self.internal_policy,
            external_policy: self.external_policy,
            ..Service::new(self.name.clone(), self.protocol)
        }
    }
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
        // Equal sets must be equal values: a change of order is no change of the table.
        endpoints.sort_unstable();
        endpoints.dedup();
        Ok(Self {
            protocol: convert_protocol(&of, service.protocol)?,
            frontends: frontends.collect::<Result<_, _>>()?,
            endpoints,
            internal_policy: convert_policy(&of, service.internal_traffic_policy)?,
            external_policy: convert_policy(&of, service.external_traffic_policy)?,
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
        let cidrs = node.pod_cidrs.iter().map(|text| {
            text.parse().map_err(|_| ConvertError::Cidr {
                of: of.clone(),
                text: text.clone(),
            })
        });
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
        Ok(wire::FrontendKind::Unspecified) | Err(_) => Err(ConvertError::Unknown {
            of: of.to_owned(),
            what: "frontend kind",
            value: frontend.kind,
        }),
    }
}

fn convert_protocol(of: &str, value: i32) -> Result<Protocol, ConvertError> {
    match wire::Protocol::try_from(value) {
        Ok(wire::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(wire::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(wire::Protocol::Sctp) => Ok(Protocol::Sctp),
        Ok(wire::Protocol::Unspecified) | Err(_) => Err(ConvertError::Unknown {
            of: of.to_owned(),
            what: "protocol",
            value,
        }),
    }
}

/// Absent means Cluster, as in the Kubernetes API.
fn convert_policy(of: &str, value: i32) -> Result<TrafficPolicy, ConvertError> {
    match wire::TrafficPolicy::try_from(value) {
        Ok(wire::TrafficPolicy::Unspecified | wire::TrafficPolicy::Cluster) => {
            Ok(TrafficPolicy::Cluster)
        }
        Ok(wire::TrafficPolicy::Local) => Ok(TrafficPolicy::Local),
        Err(_) => Err(ConvertError::Unknown {
            of: of.to_owned(),
            what: "traffic policy",
            value,
        }),
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
mod tests {
    use super::*;

    fn endpoint(last: u8, node: &str, zone: &str) -> wire::Endpoint {
        wire::Endpoint {
            address: vec![10, 244, 0, last],
            port: 8080,
            node: node.to_owned(),
            zone: zone.to_owned(),
            ready: true,
            serving: true,
            terminating: false,
        }
    }

    fn service() -> wire::ServicePort {
        wire::ServicePort {
            id: "default/web:80/TCP".to_owned(),
            protocol: wire::Protocol::Tcp.into(),
            frontends: vec![
                wire::Frontend {
                    kind: wire::FrontendKind::ClusterIp.into(),
                    address: vec![10, 96, 0, 10],
                    port: 80,
                },
                wire::Frontend {
                    kind: wire::FrontendKind::NodePort.into(),
                    address: Vec::new(),
                    port: 30080,
                },
            ],
            endpoints: vec![
                endpoint(3, "n3", "b"),
                endpoint(1, "n1", "a"),
                endpoint(2, "n2", "a"),
            ],
            ..wire::ServicePort::default()
        }
    }

    #[test]
    fn localities_depend_on_where_one_stands() {
        let route = ServiceRoute::try_from(service()).expect("a service");
        let here = Here {
            node: "n1".to_owned(),
            zone: "a".to_owned(),
        };
        let localities: Vec<_> = route
            .seen_from(&here)
            .backends
            .iter()
            .map(|backend| backend.locality)
            .collect();
        assert_eq!(
            localities,
            [Locality::Node, Locality::Zone, Locality::Elsewhere]
        );
        let nowhere = Here {
            node: "n9".to_owned(),
            zone: String::new(),
        };
        let all = route.seen_from(&nowhere).backends;
        assert!(
            all.iter()
                .all(|backend| backend.locality == Locality::Elsewhere)
        );
    }

    #[test]
    fn order_of_endpoints_is_no_difference() {
        let mut other = service();
        other.endpoints.reverse();
        assert_eq!(
            ServiceRoute::try_from(service()),
            ServiceRoute::try_from(other)
        );
    }

    #[test]
    fn endpoints_that_cannot_serve_are_left_out() {
        let mut service = service();
        service.endpoints[0].ready = false;
        service.endpoints[0].serving = false;
        service.endpoints[1].ready = false;
        service.endpoints[1].terminating = true;
        let route = ServiceRoute::try_from(service).expect("a service");
        let seen: Vec<_> = route
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.node.as_str(), endpoint.terminating))
            .collect();
        assert_eq!(seen, [("n1", true), ("n2", false)]);
    }

    /// How a service is broken, and what is said of it.
    type Case = (fn(&mut wire::ServicePort), &'static str);

    #[test]
    fn what_cannot_be_is_named() {
        let broken = |change: fn(&mut wire::ServicePort)| {
            let mut service = service();
            change(&mut service);
            ServiceRoute::try_from(service)
                .expect_err("broken")
                .to_string()
        };
        let cases: [Case; 6] = [
            (|s| s.id.clear(), "a service has no name"),
            (|s| s.protocol = 9, "default/web:80/TCP: unknown protocol 9"),
            (
                |s| s.frontends[0].kind = 0,
                "default/web:80/TCP: unknown frontend kind 0",
            ),
            (
                |s| s.frontends[0].port = 70_000,
                "default/web:80/TCP: port 70000",
            ),
            (
                |s| s.endpoints[0].address = vec![1],
                "default/web:80/TCP: an address of 1 bytes",
            ),
            (
                |s| s.internal_traffic_policy = 7,
                "default/web:80/TCP: unknown traffic policy 7",
            ),
        ];
        for (change, message) in cases {
            assert_eq!(broken(change), message);
        }
    }

    #[test]
    fn nodes_carry_their_pod_cidrs() {
        let node = wire::Node {
            name: "n2".to_owned(),
            addresses: vec![vec![10, 89, 0, 12]],
            pod_cidrs: vec!["10.244.2.0/24".to_owned()],
            ..wire::Node::default()
        };
        let route = NodeRoute::try_from(node.clone()).expect("a node");
        assert_eq!(route.as_peer().pod_cidrs.len(), 1);
        let broken = wire::Node {
            pod_cidrs: vec!["10.244".to_owned()],
            ..node
        };
        let error = NodeRoute::try_from(broken).expect_err("no CIDR");
        assert_eq!(error.to_string(), "n2: \"10.244\" is not a CIDR");
    }
}
