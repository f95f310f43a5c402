//! A node under test, a pod client, a pod backend, another node with a backend behind it, and a client outside:
//!
//! ```text
//!   client   local                         remote
//!      |       |                              |
//!      '- node -'      fabric (bridge)      other
//!           |___________|   |   |_____________|
//!                           |
//!                        outside
//! ```

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use portolan_dataplane::{
    Config, Dataplane, PodInterface, Transmit,
    model::{Backend, Frontend, Locality, Protocol, Scope, Service, ServiceName, XdpMode},
};

use super::netns::{BpfFs, Netns};

/// The node's addresses.
pub const NODE: [&str; 2] = ["10.89.0.11", "fd00:89::11"];
/// The other node's addresses.
pub const OTHER: [&str; 2] = ["10.89.0.12", "fd00:89::12"];
/// The outside client's addresses.
pub const OUTSIDE: [&str; 2] = ["10.89.0.200", "fd00:89::200"];
/// The client pod's addresses.
pub const CLIENT: [&str; 2] = ["10.244.1.10", "fd00:244:1::10"];
/// The local backend pod's addresses.
pub const LOCAL: [&str; 2] = ["10.244.1.20", "fd00:244:1::20"];
/// The remote backend pod's addresses.
pub const REMOTE: [&str; 2] = ["10.244.2.20", "fd00:244:2::20"];
/// The cluster IPs of services.
pub const CLUSTER: [&str; 2] = ["10.96.0.80", "fd00:10:96::80"];
/// The services' cluster port.
pub const PORT: u16 = 80;
/// The services' node port.
pub const NODE_PORT: u16 = 30_080;
/// The port that backends listen on.
pub const TARGET: u16 = 8_080;

/// An address written in a constant.
///
/// # Panics
/// If it is none.
pub fn address(text: &str) -> IpAddr {
    text.parse().expect("a valid address")
}

/// The namespaces and the dataplane of the node under test.
#[derive(Debug)]
pub struct Lab {
    /// Under test. Before the namespaces, so that it goes first.
    pub dataplane: Dataplane,
    /// How XDP runs on its uplink.
    pub mode: XdpMode,
    /// Where its pins are.
    pub pins: BpfFs,
    /// The node under test.
    pub node: Netns,
    /// The other node.
    pub other: Netns,
    /// Between the nodes.
    pub fabric: Netns,
    /// Beyond the nodes.
    pub outside: Netns,
    /// A pod of the node.
    pub client: Netns,
    /// Another pod of the node.
    pub local: Netns,
    /// A pod of the other node.
    pub remote: Netns,
}

impl Lab {
    /// Builds all of it. With `transmit`, the fabric's ends run `xdp_pass` and complete checksums, as a wire does.
    pub fn new(transmit: Transmit) -> Self {
        Self::with(transmit, |_| {})
    }

    /// The same with a change to the dataplane's configuration.
    pub fn with(transmit: Transmit, change: impl FnOnce(&mut Config) + Send) -> Self {
        let [node, other, fabric, outside, client, local, remote] = [
            "node", "other", "fabric", "outside", "client", "local", "remote",
        ]
        .map(Netns::new);
        connect(
            &fabric,
            [(&node, NODE), (&other, OTHER), (&outside, OUTSIDE)],
        );
        host_pods(
            (&node, NODE),
            &[(&client, "ptlclient", CLIENT), (&local, "ptllocal", LOCAL)],
        );
        host_pods((&other, OTHER), &[(&remote, "ptlremote", REMOTE)]);
        for netns in [&node, &outside] {
            netns.ip_batch(&[
                format!("route add 10.244.2.0/24 via {}", OTHER[0]),
                format!("route add fd00:244:2::/64 via {}", OTHER[1]),
            ]);
        }
        other.ip_batch(&[
            format!("route add 10.244.1.0/24 via {}", NODE[0]),
            format!("route add fd00:244:1::/64 via {}", NODE[1]),
        ]);
        // Some way to services' addresses, as any node has one, and ports below those of the dataplane.
        node.ip_batch(&OUTSIDE.map(|gateway| format!("route add default via {gateway}")));
        node.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 29999")
                .expect("a namespace's knobs can be set");
        });
        if transmit != Transmit::Never {
            make_wire(&fabric, "port0");
        }
        let pins = BpfFs::new();
        let (dataplane, mode) = node.enter(|| {
            let mut config = config(&pins, transmit);
            change(&mut config);
            let mut dataplane = Dataplane::open(config).expect("the dataplane opens");
            let mode = dataplane
                .attach_uplink("eth0")
                .expect("the uplink is there");
            let pods = [
                (pod("ptlclient", CLIENT), &client),
                (pod("ptllocal", LOCAL), &local),
            ];
            for (pod, netns) in pods {
                let netns = netns.enter(portolan_dataplane::netns_cookie);
                dataplane
                    .attach_pod(&PodInterface { netns, ..pod })
                    .expect("the pod is there");
            }
            (dataplane, mode)
        });
        Self {
            dataplane,
            mode,
            pins,
            node,
            other,
            fabric,
            outside,
            client,
            local,
            remote,
        }
    }

    /// Closes the dataplane and opens it again, as an agent that was killed and started.
    pub fn reopen(&mut self, transmit: Transmit) {
        let mut config = self.dataplane.config().clone();
        config.transmit = transmit;
        self.dataplane = self
            .node
            .enter(|| Dataplane::open(config).expect("the dataplane opens again"));
    }
}

/// A small dataplane whose pins are in a file system of the test's own.
pub fn config(pins: &BpfFs, transmit: Transmit) -> Config {
    let mut config = Config::new(super::object(), pins.pins(), NODE.map(address).to_vec());
    config.transmit = transmit;
    // XDP that sends nothing passes everything: loading it would only take time.
    config.ways.xdp = transmit != Transmit::Never;
    config.capacity.services = 256;
    config.capacity.flows_v4 = 16_384;
    config.capacity.flows_v6 = 16_384;
    config.capacity.sockets = 4_096;
    config
}

/// The pod behind a veth of [`attach_namespace`].
pub fn pod(host_interface: &str, addresses: [&str; 2]) -> PodInterface {
    PodInterface {
        host_interface: host_interface.to_owned(),
        addresses: addresses.map(address).to_vec(),
        pod_mac: mac(host_interface),
        netns: 0,
    }
}

/// The MAC address of a pod's own end: a local one made of the interface's name.
fn mac(host_interface: &str) -> [u8; 6] {
    let sum = host_interface
        .bytes()
        .fold(7_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    [0x02, 0, 0, 0, 0, sum]
}

/// Joins namespaces by a bridge.
fn connect(fabric: &Netns, hosts: [(&Netns, [&str; 2]); 3]) {
    let mut lines = vec!["link add br0 type bridge".into(), "link set br0 up".into()];
    for (number, (netns, _)) in hosts.iter().enumerate() {
        let port = format!("port{number}");
        lines.push(format!(
            "link add {port} type veth peer name eth0 netns {}",
            netns.name()
        ));
        lines.push(format!("link set {port} master br0 up"));
    }
    fabric.ip_batch(&lines);
    for (netns, [v4, v6]) in hosts {
        netns.ip_batch(&[
            format!("address add {v4}/24 dev eth0"),
            format!("address add {v6}/64 dev eth0 nodad"),
            "link set eth0 up".into(),
        ]);
    }
}

/// Joins pods' namespaces to their node, with routes as a pod network makes them.
fn host_pods((node, own): (&Netns, [&str; 2]), pods: &[(&Netns, &str, [&str; 2])]) {
    let mut lines = Vec::new();
    for (pod, interface, addresses) in pods {
        let mac = mac(interface).map(|byte| format!("{byte:02x}")).join(":");
        lines.push(format!(
            "link add {interface} type veth peer name eth0 address {mac} netns {}",
            pod.name()
        ));
        lines.push(format!("link set {interface} up"));
        lines.push(format!("address add 169.254.1.1/32 dev {interface}"));
        lines.push(format!("address add fe80::1/64 dev {interface} nodad"));
        for (address, own) in addresses.iter().zip(own) {
            lines.push(format!("route add {address} dev {interface} src {own}"));
        }
    }
    node.ip_batch(&lines);
    for (pod, _, [v4, v6]) in pods {
        pod.ip_batch(&[
            "link set eth0 up".into(),
            format!("address add {v4}/32 dev eth0"),
            format!("address add {v6}/128 dev eth0 nodad"),
            "route add 169.254.1.1 dev eth0".into(),
            "route add default via 169.254.1.1".into(),
            "route add default via fe80::1 dev eth0".into(),
        ]);
    }
}

/// Makes a veth of the fabric behave as the far end of a wire: it takes what XDP sends, and checksums are complete.
fn make_wire(fabric: &Netns, port: &str) {
    let object = super::object().with_file_name("portolan-xdp-pass.o");
    let (object, section) = if super::kernel() < (5, 18) {
        (without_fragments(&object), "xdp")
    } else {
        (object, "xdp.frags")
    };
    fabric.ip(&format!(
        "link set dev {port} xdp obj {} sec {section}",
        object.display()
    ));
    fabric.enter(|| {
        portolan_dataplane::offload_checksums(port, false).expect("a veth can complete checksums");
    });
}

/// A copy of an object whose XDP programs take whole packets alone, as old kernels have them.
fn without_fragments(object: &Path) -> PathBuf {
    const NAME: &[u8] = b"xdp.frags\0";
    let mut bytes = std::fs::read(object).expect("the object is there");
    while let Some(at) = bytes.windows(NAME.len()).position(|bytes| bytes == NAME) {
        bytes[at + b"xdp".len()] = 0;
    }
    let copy = std::env::temp_dir().join(format!("ptl-xdp-pass-{}.o", std::process::id()));
    std::fs::write(&copy, bytes).expect("there is room for a file");
    copy
}

/// A backend.
pub fn backend(at: &str, locality: Locality) -> Backend {
    Backend::new(address(at), TARGET, locality)
}

/// A service with a cluster IP of each family and a node port.
pub fn service(protocol: Protocol, backends: Vec<Backend>) -> Service {
    let cluster = CLUSTER.map(|text| Frontend::Address {
        address: address(text),
        port: PORT,
        scope: Scope::Cluster,
    });
    Service {
        frontends: [
            cluster.as_slice(),
            &[Frontend::NodePort { port: NODE_PORT }],
        ]
        .concat(),
        backends,
        ..Service::new(ServiceName(format!("default/web/{protocol:?}")), protocol)
    }
}
