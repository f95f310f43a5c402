//! What a dataplane is opened with.

use std::{net::IpAddr, path::PathBuf};

use crate::model::{TcMode, XdpMode};

/// How many of each thing the maps hold. Fixed when the maps are made; adopted maps keep what they were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Service ports (one [`crate::model::Service`] each).
    pub services: u32,
    /// Addresses and ports that clients knock at, each family.
    pub frontends: u32,
    /// Backends, those that still have flows after their removal included.
    pub backends: u32,
    /// Places in the choice tables, 16 each; a backend takes about one to two of them in each table that it is in.
    pub choice_lines: u32,
    /// Prefixes of all load balancers' source ranges.
    pub source_ranges: u32,
    /// Networks that [`crate::Dataplane::set_networks`] tells of.
    pub networks: u32,
    /// Clients of services with session affinity that are remembered at once.
    pub affinities: u32,
    /// Pods of this node, counted by address.
    pub pod_addresses: u32,
    /// Flows of IPv4, a power of two. Best at least twice the flows that are expected at once.
    pub flows_v4: u32,
    /// Flows of IPv6, a power of two.
    pub flows_v6: u32,
    /// Sockets that the socket hooks translate at once, a power of two. Others are left to the hooks that see packets.
    pub sockets: u32,
}

impl Capacity {
    /// Tables for so many service ports, each with up to four frontends of a family.
    #[must_use]
    pub fn with_services(mut self, services: u32) -> Self {
        self.services = services;
        self.frontends = services.saturating_mul(4);
        self
    }

    /// Tables for so many backends, each in one or two of the tables of choices.
    #[must_use]
    pub fn with_backends(mut self, backends: u32) -> Self {
        self.backends = backends;
        self.choice_lines = backends.max(64);
        self
    }

    /// Tables for so many flows of IPv4, and half as many of IPv6; rounded up to powers of two.
    #[must_use]
    pub fn with_flows(mut self, flows: u32) -> Self {
        self.flows_v4 = flows;
        self.flows_v6 = flows / 2;
        self
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: 16_384,
            frontends: 65_536,
            backends: 65_536,
            choice_lines: 65_536,
            source_ranges: 16_384,
            networks: 65_536,
            affinities: 65_536,
            pod_addresses: 2_048,
            flows_v4: 131_072,
            flows_v6: 65_536,
            sockets: 32_768,
        }
    }
}

/// Whether the XDP program may send packets out of the uplink itself (`XDP_TX`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transmit {
    /// Yes, unless the uplink is a veth whose peer runs no XDP program: such a peer drops what XDP sends, silently.
    #[default]
    Auto,
    /// Yes: the caller knows that the other end takes such packets.
    Always,
    /// No: what XDP would send goes up to tcx, which forwards it.
    Never,
}

/// Which of the programs that see packets run. The socket hooks are attached by a call of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ways {
    /// tcx on pods' veths and on the uplink.
    pub tcx: bool,
    /// XDP on the uplink.
    pub xdp: bool,
}

impl Default for Ways {
    fn default() -> Self {
        Self {
            tcx: true,
            xdp: true,
        }
    }
}

/// What a dataplane is opened with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The object file with the kernel programs; none: those that were built in.
    pub object: Option<PathBuf>,
    /// A folder on a bpffs, for maps and links. Made if missing (the bpffs itself must be mounted).
    pub pin_dir: PathBuf,
    /// This node's addresses, the first of each family being the source of forwarded `NodePort` traffic.
    pub node_addresses: Vec<IpAddr>,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// What XDP may do at the uplink.
    pub transmit: Transmit,
    /// What pods send beyond the networks of [`crate::Dataplane::set_networks`] leaves by the uplink with the node's address.
    pub masquerade: bool,
    /// How XDP is attached to the uplink; none: in the driver, else in the stack.
    pub xdp: Option<XdpMode>,
    /// How tc programs are attached; `None`: by the newest way that the kernel has.
    pub tc: Option<TcMode>,
    /// Which programs see packets.
    pub ways: Ways,
}

impl Config {
    /// A configuration with the default capacity.
    pub fn new(
        object: impl Into<Option<PathBuf>>,
        pin_dir: PathBuf,
        node_addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            object: object.into(),
            pin_dir,
            node_addresses,
            capacity: Capacity::default(),
            transmit: Transmit::default(),
            masquerade: false,
            xdp: None,
            tc: None,
            ways: Ways::default(),
        }
    }
}

/// A pod's veth, as seen from the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// The veth's end on the node, in the caller's network namespace.
    pub host_interface: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The MAC address of the pod's own end (its eth0).
    pub pod_mac: [u8; 6],
    /// The cookie of the pod's network namespace, as [`crate::netns_cookie`] says it there. Zero if it is not known: then
    /// the socket hooks leave the pod's sockets to the programs that see packets.
    pub netns: u64,
}

/// What one sweep over the flow tables did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Flows that are in the tables.
    pub live: u64,
    /// Flows that were taken out because they had aged.
    pub expired: u64,
    /// Backend ids that no flow refers to any more.
    pub freed_backends: u64,
}
