//! What callers say of services, and what the dataplane tells them of flows, counters and drops.

use std::net::IpAddr;

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

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Frontend {
    /// One address: a cluster IP, an external IP or a load balancer's.
    Address {
        /// The address.
        address: IpAddr,
        /// The port.
        port: u16,
        /// Whether clients beyond the node may knock (external and load balancer addresses), not only its pods.
        external: bool,
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
}

/// What a service's counters say, summed over CPUs, since its id was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCounters {
    /// New flows to backends on this node.
    pub local_flows: u64,
    /// New flows to backends in this zone.
    pub zone_flows: u64,
    /// New flows to backends elsewhere.
    pub remote_flows: u64,
    /// New flows refused because no backend could take them.
    pub refused_flows: u64,
    /// Packets forwarded, both directions.
    pub packets: u64,
    /// Bytes forwarded, both directions, from the IP header on.
    pub bytes: u64,
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
