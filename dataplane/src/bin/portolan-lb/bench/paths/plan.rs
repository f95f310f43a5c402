//! Which services a stage has, and which addresses everything in it has.

use std::net::Ipv4Addr;

use portolan_dataplane::model::{
    Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName,
};

/// The port that clients knock at.
pub const SERVICE_PORT: u16 = 80;
/// The port that backends listen on.
pub const BACKEND_PORT: u16 = 8_080;
/// How many addresses the client takes turns with, so that its ports do not run out.
pub const CLIENTS: u32 = 64;
/// Addresses of the backends' host beyond those of the endpoints, for endpoints that change.
pub const SPARE: u32 = 1;

/// A forwarding path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    Direct,
    Conntrack,
    IptablesLegacy,
    IptablesNft,
    Nftables,
    Ipvs,
    Socket,
    Tcx,
    TcxUplink,
    XdpNative,
    XdpGeneric,
    Dsr,
}

impl Path {
    pub const ALL: [Self; 12] = [
        Self::Direct,
        Self::Conntrack,
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::Nftables,
        Self::Ipvs,
        Self::Socket,
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
            Self::Ipvs => "IPVS with masquerading",
            Self::Socket => "Portolan's socket hooks",
            Self::Tcx => "Portolan, tcx at the client's veth, straight into the backend's",
            Self::TcxUplink => "Portolan, tcx at the uplink, straight into the backend's veth",
            Self::XdpNative => {
                "the same below XDP in the driver, which passes up what is for a local pod"
            }
            Self::XdpGeneric => "the same below XDP in the stack",
            Self::Dsr => "Portolan, encapsulated to the backend's node, which answers directly",
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
                | Self::Tcx
                | Self::TcxUplink
                | Self::XdpNative
                | Self::XdpGeneric
                | Self::Dsr
        )
    }
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
    #[expect(clippy::unused_self, reason = "all addresses are asked of the plan")]
    pub fn service(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a60_0100 + number)
    }

    /// The address of one of the backends' host; every service has the same backends.
    pub fn backend(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0af5_0001 + number)
    }

    /// The address of an endpoint; in another variant the first one is the spare one.
    pub fn endpoint(&self, _service: u32, number: u32, variant: u32) -> Ipv4Addr {
        if variant == 1 && number == 0 {
            Self::backend(self.endpoints)
        } else {
            Self::backend(number)
        }
    }

    /// One of the client's addresses.
    pub fn client(number: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0af4_0101 + number % CLIENTS)
    }

    /// A service as the dataplane is told it.
    pub fn model(&self, number: u32, variant: u32) -> Service {
        let backends = (0..self.endpoints)
            .map(|endpoint| {
                let address = self.endpoint(number, endpoint, variant);
                Backend::new(address.into(), BACKEND_PORT, Locality::Node)
            })
            .collect();
        Service {
            frontends: vec![Frontend::Address {
                address: self.service(number).into(),
                port: SERVICE_PORT,
                scope: Scope::External,
            }],
            backends,
            ..Service::new(ServiceName(format!("bench/s{number}")), self.protocol)
        }
    }
}
