//! Which paths there are, which services a stage has, and which addresses everything in it has.

use std::net::{IpAddr, Ipv4Addr};

use clap::ValueEnum;
use portolan_dataplane::model::{
    Backend, Frontend, Locality, Protocol, ReturnPath, Scope, Service, ServiceName,
};

/// The port that clients knock at.
pub const SERVICE_PORT: u16 = 80;
/// The port that backends listen on.
pub const BACKEND_PORT: u16 = 8_080;
/// How many addresses the client takes turns with, so that its ports do not run out.
pub const CLIENTS: u32 = 64;
/// Pods that backends are in. A pod has one address, unless there are more endpoints than these.
pub const PODS: u32 = 4;
/// The node's address on a fabric, and that of the node behind which the backends are.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 243, 0, 1);
pub const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(10, 243, 0, 2);

/// A forwarding path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Path {
    Direct,
    Conntrack,
    IptablesLegacy,
    IptablesNft,
    Nftables,
    Ipvs,
    Socket,
    SocketTcx,
    Tcx,
    TcxUplink,
    XdpNative,
    XdpGeneric,
    Dsr,
}

impl Path {
    pub const ALL: [Self; 13] = [
        Self::Direct,
        Self::Conntrack,
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::Nftables,
        Self::Ipvs,
        Self::Socket,
        Self::SocketTcx,
        Self::Tcx,
        Self::TcxUplink,
        Self::XdpNative,
        Self::XdpGeneric,
        Self::Dsr,
    ];

    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Conntrack => "conntrack",
            Self::IptablesLegacy => "iptables_legacy",
            Self::IptablesNft => "iptables_nft",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
            Self::Socket => "socket",
            Self::SocketTcx => "socket_tcx",
            Self::Tcx => "tcx",
            Self::TcxUplink => "tcx_uplink",
            Self::XdpNative => "xdp_native",
            Self::XdpGeneric => "xdp_generic",
            Self::Dsr => "dsr",
        }
    }

    /// What it is, for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Direct => "plain routing to the backend's own address, no rule at all",
            Self::Conntrack => "the same with connection tracking and empty NAT chains",
            Self::IptablesLegacy => "kube-proxy's iptables chains, by iptables-legacy",
            Self::IptablesNft => "kube-proxy's iptables chains, by iptables-nft",
            Self::Nftables => "kube-proxy's nftables maps",
            Self::Ipvs => {
                "IPVS with masquerading and a device with all addresses, as kube-proxy makes it"
            }
            Self::Socket => {
                "Portolan's socket hooks alone: the client's socket gets its backend when it connects, packets are routed plainly"
            }
            Self::SocketTcx => {
                "the same on Portolan's pod network: tcx puts packets straight into the backend's veth"
            }
            Self::Tcx => "Portolan, tcx at the client's veth, straight into the backend's",
            Self::TcxUplink => {
                "Portolan, a client beyond the cluster: tcx at the uplink, straight into the backend's veth"
            }
            Self::XdpNative => {
                "the same below XDP in the driver, which passes up what is for a local pod"
            }
            Self::XdpGeneric => "the same below XDP in the stack",
            Self::Dsr => {
                "Portolan, backends on a second node: encapsulated there by tcx, the reply goes straight to the client. Both nodes' work and that of the bridge between them counts"
            }
        }
    }

    /// Whether clients reach the backends' own addresses.
    pub fn is_without_service(self) -> bool {
        matches!(self, Self::Direct | Self::Conntrack)
    }

    /// Whether the dataplane does the work.
    pub fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Socket
                | Self::SocketTcx
                | Self::Tcx
                | Self::TcxUplink
                | Self::XdpNative
                | Self::XdpGeneric
                | Self::Dsr
        )
    }

    /// Whether the client is a pod of the node whose dataplane forwards.
    pub fn has_client_pod(self) -> bool {
        matches!(self, Self::Tcx | Self::Socket | Self::SocketTcx)
    }

    /// Whether clients' sockets must be in a control group with hooks.
    pub fn has_sockets(self) -> bool {
        matches!(self, Self::Socket | Self::SocketTcx)
    }
}

/// Which endpoints a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// As it was loaded.
    Loaded,
    /// The first one is replaced by the spare one.
    Changed,
    /// The first one alone.
    First,
    /// The spare one alone.
    Spare,
}

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Plan {
    pub services: u32,
    pub endpoints: u32,
    pub protocol: Protocol,
}

impl Plan {
    /// As rules name the protocol.
    pub fn protocol_name(&self) -> &'static str {
        if self.protocol == Protocol::Udp {
            "udp"
        } else {
            "tcp"
        }
    }

    /// A service's address.
    pub fn service(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a60_0100 + number)
    }

    /// The address of one of the backends' host; every service has the same backends.
    pub fn backend(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0af5_0001 + number)
    }

    /// The address that no service has as it was loaded.
    pub fn spare(&self) -> Ipv4Addr {
        Self::backend(self.endpoints)
    }

    /// The addresses of a service's endpoints.
    pub fn endpoints(&self, variant: Variant) -> Vec<Ipv4Addr> {
        let others = || (1..self.endpoints).map(Self::backend);
        match variant {
            Variant::Loaded => (0..self.endpoints).map(Self::backend).collect(),
            Variant::Changed => std::iter::once(self.spare()).chain(others()).collect(),
            Variant::First => vec![Self::backend(0)],
            Variant::Spare => vec![self.spare()],
        }
    }

    /// Every address that backends have, the spare one too, by the pods that they are in.
    pub fn pods(&self) -> Vec<Vec<Ipv4Addr>> {
        let pods = (self.endpoints + 1).min(PODS);
        (0..pods)
            .map(|pod| {
                let numbers = (pod..=self.endpoints).step_by(PODS as usize);
                numbers.map(Self::backend).collect()
            })
            .collect()
    }

    /// The pod that an endpoint is in.
    pub fn pod_of(endpoint: u32) -> usize {
        (endpoint % PODS) as usize
    }

    /// One of the client's addresses.
    pub fn client(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0af4_0101 + number % CLIENTS)
    }

    /// A service as the dataplane is told it, of a node that has its backends or of one that must send there.
    pub fn model(&self, number: u32, variant: Variant, near: bool) -> Service {
        let backend = |address: Ipv4Addr| {
            if near {
                Backend::new(address.into(), BACKEND_PORT, Locality::Node)
            } else {
                Backend {
                    node: Some(IpAddr::V4(OTHER_NODE)),
                    ..Backend::new(address.into(), BACKEND_PORT, Locality::Elsewhere)
                }
            }
        };
        Service {
            frontends: vec![Frontend::Address {
                address: Self::service(number).into(),
                port: SERVICE_PORT,
                scope: Scope::External,
            }],
            backends: self.endpoints(variant).into_iter().map(backend).collect(),
            ..Service::new(ServiceName(format!("bench/s{number}")), self.protocol)
        }
    }

    /// The same, of a service whose backends answer clients themselves.
    pub fn direct_return(&self, number: u32, variant: Variant, near: bool) -> Service {
        Service {
            return_path: ReturnPath::Direct,
            ..self.model(number, variant, near)
        }
    }
}
