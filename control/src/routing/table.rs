//! The routing table: what is told to every node, the same to all.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Everything, by name. Unchanged entries are shared between generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By [`ServicePort::id`].
    pub services: BTreeMap<String, Arc<ServicePort>>,
    /// By name.
    pub nodes: BTreeMap<String, Arc<NodeEntry>>,
}

/// One port of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// "default/web:80/TCP".
    pub id: String,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// The port's name, empty when it has none.
    pub port_name: String,
    /// Its transport.
    pub protocol: Protocol,
    /// Where clients knock.
    pub frontends: Vec<Frontend>,
    /// Who answers, by address and port.
    pub endpoints: Vec<Endpoint>,
    /// For clients in pods.
    pub internal_policy: TrafficPolicy,
    /// For clients beyond the cluster.
    pub external_policy: TrafficPolicy,
}

/// A transport that services are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// From the word that manifests use; absent is TCP.
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// `None` for a node port: every address of every node.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// What kind of address clients knock at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrontendKind {
    /// One of the cluster's service addresses.
    ClusterIp,
    /// A port of every node.
    NodePort,
    /// An address that the network routes to the nodes.
    ExternalIp,
    /// A load balancer's address.
    LoadBalancer,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's address.
    pub address: IpAddr,
    /// The port that it listens on.
    pub port: u16,
    /// Where it runs; empty when nobody says.
    pub node: String,
    /// In which zone; empty when nobody says.
    pub zone: String,
    /// It takes new connections.
    pub ready: bool,
    /// It answers.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
}

/// Which endpoints may serve a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Any.
    #[default]
    Cluster,
    /// Only those on the client's node.
    Local,
}

impl TrafficPolicy {
    /// From the word that manifests use; whatever is not "Local" is "Cluster".
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Local") => Self::Local,
            _ => Self::Cluster,
        }
    }
}

/// A member of the cluster, as the others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// metadata.name.
    pub name: String,
    /// The label topology.kubernetes.io/zone; empty when it has none.
    pub zone: String,
    /// Its internal addresses.
    pub addresses: Vec<IpAddr>,
    /// What its pods' addresses are taken from.
    pub pod_cidrs: Vec<IpNet>,
}
