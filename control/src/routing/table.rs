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
    /// What else it asks for.
    pub options: Options,
}

/// What a Service asks for beside ports, addresses and policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// How one of them is chosen.
    pub algorithm: Algorithm,
    /// How packets of endpoints on other nodes get back; `None`: as each node is configured.
    pub return_path: Option<ReturnPath>,
    /// For so many seconds after its last new flow a client keeps its endpoint.
    pub affinity_seconds: Option<u32>,
    /// Who may knock at a load balancer's address; empty: anybody.
    pub source_ranges: Vec<IpNet>,
    /// Endpoints get flows whether or not they are ready.
    pub publish_not_ready: bool,
    /// Where each node says how many local endpoints it has.
    pub health_check_node_port: Option<u16>,
}

/// Which endpoints are preferred where a policy of Cluster leaves a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// The node's own as far as they can take the load.
    #[default]
    LoadAware,
    /// The node's own.
    SameNode,
    /// The zone's.
    SameZone,
    /// None.
    Even,
}

/// How one of them is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// Consistent hashing.
    #[default]
    Maglev,
    /// The less busy of two.
    LeastConnections,
}

/// How packets of endpoints on other nodes get back to clients beyond the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReturnPath {
    /// By the node that the client knocked at.
    SourceNat,
    /// Straight from the endpoint's node.
    Direct,
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
    /// Its share of new flows beside others, where 100 is ordinary.
    pub weight: u32,
    /// Topology hints: the zones whose clients it is for.
    pub hinted_zones: Vec<String>,
    /// Topology hints: the nodes whose clients it is for.
    pub hinted_nodes: Vec<String>,
}

impl Endpoint {
    /// The weight of an endpoint of which nobody says anything else.
    pub const ORDINARY_WEIGHT: u32 = 100;
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
