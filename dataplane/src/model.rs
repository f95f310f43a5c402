//! What callers say of services, and what the dataplane tells them of flows, counters and drops.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_abi::counters::{ClassCount, ServiceCount};
use serde::{Deserialize, Serialize};

/// Names one service port, for example "default/web:80/TCP". Unique and stable; ids in the maps are restored by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceName(pub String);

/// A transport that services are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

/// Who may knock at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The node and its pods: a cluster IP.
    Cluster,
    /// Everybody: an external IP.
    External,
    /// Everybody whom [`Service::source_ranges`] admits: the address of a load balancer.
    LoadBalancer,
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Frontend {
    /// One address.
    Address {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// What kind of address it is, and so who may knock.
        scope: Scope,
    },
    /// A port at every address of this node, for backends of either family.
    NodePort {
        /// The port.
        port: u16,
    },
}

/// How far away a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locality {
    /// On this node.
    Node,
    /// On another node of this zone.
    Zone,
    /// Anywhere else.
    Elsewhere,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backend {
    /// The pod's address.
    pub address: IpAddr,
    /// The port that the pod listens on.
    pub port: u16,
    /// How far away it is.
    pub locality: Locality,
    /// It finishes its flows but gets no new ones while another backend can take them.
    pub terminating: bool,
    /// Its share of new flows beside others of its class, in hundredths of an ordinary backend's; 0 gets none.
    pub weight: u32,
    /// An address of the node that it runs on, of its own family, where that is known: what encapsulated packets go to.
    pub node: Option<IpAddr>,
    /// Topology hints leave it to the clients of other nodes; a policy of Local has it all the same.
    #[serde(default)]
    pub hinted_elsewhere: bool,
}

impl Backend {
    /// An ordinary backend's weight.
    pub const ORDINARY_WEIGHT: u32 = 100;

    /// A backend that is ready, of ordinary weight.
    pub fn new(address: IpAddr, port: u16, locality: Locality) -> Self {
        Self {
            address,
            port,
            locality,
            terminating: false,
            weight: Self::ORDINARY_WEIGHT,
            node: None,
            hinted_elsewhere: false,
        }
    }
}

/// Which backends may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrafficPolicy {
    /// Any, this node's preferred.
    #[default]
    Cluster,
    /// Only this node's.
    Local,
}

/// Which of the backends that a policy allows are preferred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// This node's, as far as they can take the load; then this zone's.
    #[default]
    LoadAware,
    /// This node's as long as it has any, then this zone's (KEP-3015).
    SameNode,
    /// This zone's as long as it has any, this node's among them (KEP-2433, KEP-3015).
    SameZone,
    /// None.
    Even,
}

/// How one of a class's backends is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Consistent hashing by weight: the same answer on every node, and few flows move when backends change.
    #[default]
    Maglev,
    /// The one with fewer connections of two that a hash names.
    LeastConnections,
}

/// How the packets of a backend on another node get back to a client beyond the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReturnPath {
    /// By this node, whose address the backend sees.
    #[default]
    SourceNat,
    /// By this node without rewriting, as the backends' routes to all clients lead through it. The client's address is kept.
    Gateway,
    /// Straight from the backend's node, which sees the client's own address: the way there is encapsulated.
    Direct,
}

/// One port of one service: frontends of one protocol, both families, and the backends behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its transport.
    pub protocol: Protocol,
    /// Where clients knock.
    pub frontends: Vec<Frontend>,
    /// Who answers; none at all: connections are refused at once.
    pub backends: Vec<Backend>,
    /// For clients in pods.
    pub internal_policy: TrafficPolicy,
    /// For clients beyond the cluster.
    pub external_policy: TrafficPolicy,
    /// Which backends are preferred where a policy of Cluster leaves a choice.
    #[serde(default)]
    pub distribution: Distribution,
    /// How one of a class is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// A client keeps its backend for so many seconds after its last new flow, whatever its port.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Which clients may knock at a load balancer's address; empty: any.
    #[serde(default)]
    pub source_ranges: Vec<IpNet>,
    /// How packets of backends on other nodes get back.
    #[serde(default)]
    pub return_path: ReturnPath,
    /// Backends get flows whether or not they are ready: [`crate::Dataplane::withdraw_backend`] does not concern them.
    #[serde(default)]
    pub publish_not_ready: bool,
}

impl Service {
    /// A service that nobody can reach yet and nobody answers for.
    pub fn new(name: ServiceName, protocol: Protocol) -> Self {
        Self {
            name,
            protocol,
            frontends: Vec::new(),
            backends: Vec::new(),
            internal_policy: TrafficPolicy::default(),
            external_policy: TrafficPolicy::default(),
            distribution: Distribution::default(),
            algorithm: Algorithm::default(),
            affinity_seconds: None,
            source_ranges: Vec::new(),
            return_path: ReturnPath::default(),
            publish_not_ready: false,
        }
    }
}

/// What was counted of the backends of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassCounters {
    /// New flows.
    pub flows: u64,
    /// Packets forwarded, both directions.
    pub packets: u64,
    /// Bytes forwarded, both directions, from the IP header on.
    pub bytes: u64,
    /// TCP resets forwarded, both directions.
    pub resets: u64,
}

/// What a network is to pods. What is in no network is beyond the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkRole {
    /// Pods speak to it with their own addresses.
    Inside,
    /// The same, and it is a node of the cluster.
    Node,
    /// The same, and another than this one: with a tunnel, what pods send to it goes through that.
    Peer,
    /// Pods speak to it with their own addresses, and it is other nodes' pods, which are behind the tunnel if there is one.
    Pods,
}

/// A network that the node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network {
    /// Its addresses. The longest prefix counts.
    pub prefix: IpNet,
    /// What it is.
    pub role: NetworkRole,
}

/// What a service's counters say, summed over CPUs, since its id was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounters {
    /// Of backends on this node.
    pub local: ClassCounters,
    /// Of backends on other nodes of this zone.
    pub zone: ClassCounters,
    /// Of backends elsewhere.
    pub remote: ClassCounters,
    /// New flows refused because no backend could take them.
    pub refused: u64,
    /// Of a thousand new flows, how many stay with this node's backends; `None` where nothing decides that by load.
    #[serde(default)]
    pub local_share: Option<u16>,
}

impl From<ClassCount> for ClassCounters {
    fn from(count: ClassCount) -> Self {
        Self {
            flows: count.flows,
            packets: count.packets,
            bytes: count.bytes,
            resets: count.resets,
        }
    }
}

impl From<ServiceCount> for ServiceCounters {
    fn from(count: ServiceCount) -> Self {
        let [local, zone, remote] = count.classes.map(ClassCounters::from);
        Self {
            local,
            zone,
            remote,
            refused: count.refused,
            local_share: None,
        }
    }
}

impl ServiceCounters {
    /// The classes with their names, nearest first.
    pub fn classes(&self) -> [(&'static str, ClassCounters); 3] {
        [
            ("local", self.local),
            ("zone", self.zone),
            ("remote", self.remote),
        ]
    }
}

/// One live entry of the flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Its transport.
    pub protocol: Protocol,
    /// The client, as it sent.
    pub client: (IpAddr, u16),
    /// Where the client knocked.
    pub frontend: (IpAddr, u16),
    /// Who answers.
    pub backend: (IpAddr, u16),
    /// The service, if it still exists.
    pub service: Option<ServiceName>,
    /// Where the backend is.
    pub locality: Locality,
    /// Seconds since a packet of the flow was last noticed, in ticks of the table's clock.
    pub idle_seconds: u64,
    /// "syn", "established", "fin", "udp", ...
    pub state: String,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableUse {
    /// What it holds.
    pub table: String,
    /// How many it holds.
    pub used: u64,
    /// How many it can hold.
    pub capacity: u64,
    /// How many it is to hold, if that is not what it was made for: that needs a teardown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<u64>,
}

/// How often packets were dropped for one reason, summed over CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The reason's name, from the one enum of drop reasons.
    pub reason: String,
    /// What it means, from the same enum.
    pub description: String,
    /// Packets.
    pub packets: u64,
}

/// How often something happened that an operator may want to know of, summed over CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCount {
    /// Its name.
    pub event: String,
    /// What it means.
    pub description: String,
    /// How often.
    pub count: u64,
}

/// How the uplink's XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the driver made an skb.
    Generic,
    /// Not at all: tcx on the uplink does the work.
    Absent,
}

/// How the tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcMode {
    /// By tcx links.
    Tcx,
    /// As filters of a clsact qdisc, where the kernel has no tcx.
    Clsact,
}
