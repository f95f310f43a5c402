//! One namespace with a dataplane for BPF_PROG_TEST_RUN: an uplink whose next hops are known, two pods whose far ends
//! nobody uses, and services at the ports that [`SERVICES`] says.

use std::net::IpAddr;

use portolan_dataplane::{
    Dataplane, Transmit,
    model::{Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName, TrafficPolicy},
};

use super::{
    lab::{self, CLIENT, LOCAL, NODE, REMOTE, TARGET, address, backend},
    netns::{BpfFs, Netns},
};

/// Where routes lead to by default: the node's gateway, and its MAC address.
pub const GATEWAY: [&str; 2] = ["10.89.0.1", "fd00:89::1"];
/// The gateway's MAC address.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The other node's MAC address.
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// An external IP of each family.
pub const EXTERNAL: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
/// A load balancer's address of each family.
pub const BALANCER: [&str; 2] = ["192.0.2.20", "2001:db8::20"];
/// A client far away.
pub const WORLD: [&str; 2] = ["198.51.100.7", "2001:db8:7::7"];

/// Whose backends a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// A pod of this node.
    Local,
    /// A pod of another node.
    Remote,
    /// Nobody.
    Nobody,
    /// The pod that the tests' client is.
    Itself,
    /// A pod of another node, but a policy of Local.
    OutOfReach,
}

/// The services of the bench: the port of each one's addresses; its node port is 30,000 above.
pub const SERVICES: [(Behind, u16); 5] = [
    (Behind::Local, 80),
    (Behind::Remote, 81),
    (Behind::Nobody, 82),
    (Behind::Itself, 83),
    (Behind::OutOfReach, 84),
];

/// The port of the service that has such backends.
pub fn port_of(behind: Behind) -> u16 {
    SERVICES
        .iter()
        .find(|(of, _)| *of == behind)
        .map(|(_, port)| *port)
        .expect("every kind has its service")
}

/// What is added to a service's port for its node port.
pub const NODE_PORTS: u16 = 30_000;

/// The namespace and its dataplane.
#[derive(Debug)]
pub struct Bench {
    /// Under test.
    pub dataplane: Dataplane,
    /// Where its maps are pinned.
    pub pins: BpfFs,
    /// The interfaces: the uplink, then the two pods' ends on the node.
    pub interfaces: [u32; 3],
}

/// The MAC address of the uplink.
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 3, 0];
/// What packets into the client's pod begin with: its MAC address, then that of the node's end.
pub const CLIENT_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 3, 1]];
/// What packets into the local backend's pod begin with.
pub const LOCAL_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 2, 2], [2, 0, 0, 0, 3, 2]];

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Bench {
    /// Runs a function on a thread in the namespace, with the bench in it. Services are for the caller to make.
    pub fn run<T: Send>(
        configure: impl FnOnce(&mut portolan_dataplane::Config) + Send,
        function: impl FnOnce(Self) -> T + Send,
    ) -> T {
        let netns = Netns::new("bench");
        for (name, far, mac) in [
            ("eth0", "far0", NODE_MAC),
            ("ptlclient", "far1", CLIENT_MACS[1]),
            ("ptllocal", "far2", LOCAL_MACS[1]),
        ] {
            netns.ip(&format!(
                "link add {name} address {} type veth peer name {far}",
                text(mac)
            ));
            netns.ip(&format!("link set {name} up"));
            netns.ip(&format!("link set {far} up"));
        }
        for family in 0..2 {
            netns.ip(&format!(
                "address add {}/{} dev eth0 nodad",
                NODE[family],
                [24, 64][family]
            ));
            for (at, mac) in [
                (GATEWAY[family], GATEWAY_MAC),
                (lab::OTHER[family], OTHER_MAC),
            ] {
                netns.ip(&format!(
                    "neighbour add {at} lladdr {} dev eth0 nud permanent",
                    text(mac)
                ));
            }
            netns.ip(&format!("route add default via {}", GATEWAY[family]));
            netns.ip(&format!(
                "route add {} via {}",
                ["10.244.2.0/24", "fd00:244:2::/64"][family],
                lab::OTHER[family]
            ));
            netns.ip(&format!("route add {} dev ptlclient", CLIENT[family]));
            netns.ip(&format!("route add {} dev ptllocal", LOCAL[family]));
        }
        let pins = BpfFs::new();
        netns.enter(move || {
            let mut config = lab::config(&pins, Transmit::Always);
            configure(&mut config);
            let mut dataplane = Dataplane::open(config).expect("the dataplane opens");
            dataplane
                .attach_uplink("eth0")
                .expect("the uplink is there");
            let names = ["eth0", "ptlclient", "ptllocal"];
            let interfaces =
                names.map(|name| nix::net::if_::if_nametoindex(name).expect("it is there"));
            let mut bench = Self {
                dataplane,
                pins,
                interfaces,
            };
            bench.attach_pods().expect("the pods are there");
            function(bench)
        })
    }

    /// Attaches both pods, unless they are.
    pub fn attach_pods(&mut self) -> Result<(), portolan_dataplane::Error> {
        let pods = [
            (CLIENT_MACS[0], "ptlclient", CLIENT),
            (LOCAL_MACS[0], "ptllocal", LOCAL),
        ];
        pods.into_iter().try_for_each(|(pod_mac, name, addresses)| {
            self.dataplane
                .attach_pod(&portolan_dataplane::PodInterface {
                    pod_mac,
                    ..lab::pod(name, addresses)
                })
        })
    }

    /// The interface that a program sees a frame at: the uplink, or that of the pod whose address it has. What has
    /// another's address comes from the client's pod.
    pub fn interface_of(&self, program: &str, frame: &[u8]) -> u32 {
        if program != "pod_egress" {
            return self.interfaces[0];
        }
        let source: Option<IpAddr> = match frame.get(12..14) {
            Some([0x08, 0x00]) => frame
                .get(26..30)
                .and_then(|at| <[u8; 4]>::try_from(at).ok())
                .map(IpAddr::from),
            Some([0x86, 0xdd]) => frame
                .get(22..38)
                .and_then(|at| <[u8; 16]>::try_from(at).ok())
                .map(IpAddr::from),
            _ => None,
        };
        let is_local = source.is_some_and(|source| LOCAL.map(address).contains(&source));
        self.interfaces[if is_local { 2 } else { 1 }]
    }

    /// Makes every service of [`SERVICES`] for a protocol.
    pub fn serve(&mut self, protocol: Protocol) {
        for (behind, port) in SERVICES {
            self.dataplane
                .upsert(&service(protocol, behind, port))
                .expect("a valid service");
        }
    }
}

/// One of [`SERVICES`], at cluster, external and load balancer's addresses and at a node port.
pub fn service(protocol: Protocol, behind: Behind, port: u16) -> Service {
    let at = |addresses: [&str; 2], scope| {
        addresses.map(|text| Frontend::Address {
            address: address(text),
            port,
            scope,
        })
    };
    let backends = |addresses: [&str; 2], locality| -> Vec<Backend> {
        addresses.map(|at| backend(at, locality)).to_vec()
    };
    let mut service = Service::new(
        ServiceName(format!("bench/{behind:?}/{protocol:?}")),
        protocol,
    );
    service.frontends = [
        at(lab::CLUSTER, Scope::Cluster),
        at(EXTERNAL, Scope::External),
        at(BALANCER, Scope::LoadBalancer),
    ]
    .concat();
    service.frontends.push(Frontend::NodePort {
        port: NODE_PORTS + port,
    });
    service.backends = match behind {
        Behind::Local => backends(LOCAL, Locality::Node),
        Behind::Remote | Behind::OutOfReach => backends(REMOTE, Locality::Elsewhere),
        Behind::Nobody => Vec::new(),
        Behind::Itself => backends(CLIENT, Locality::Node),
    };
    if behind == Behind::OutOfReach {
        service.internal_policy = TrafficPolicy::Local;
        service.external_policy = TrafficPolicy::Local;
    }
    service
}

/// Where a service's backend listens, of a family.
pub fn target(behind: Behind, family: usize) -> (IpAddr, u16) {
    let at = match behind {
        Behind::Local => LOCAL,
        Behind::Itself => CLIENT,
        _ => REMOTE,
    };
    (address(at[family]), TARGET)
}
