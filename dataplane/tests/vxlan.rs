//! Nodes that reach each other's pods through a tunnel: services by it, and nothing of pods on the link between the nodes.

mod support;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use portolan_dataplane::{
    Dataplane, Transmit,
    model::{Locality, Network, NetworkRole, Protocol, Service},
};
use support::{
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, OTHER, PORT, REMOTE, TARGET, address, service},
    netns::{BpfFs, Netns},
    servers::{PATIENCE, ask_from, serve},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
const POD_NETWORKS: [[&str; 2]; 2] = [
    ["10.244.1.0/24", "fd00:244:1::/64"],
    ["10.244.2.0/24", "fd00:244:2::/64"],
];
/// The hardware addresses of both ends.
const ENDS: [&str; 2] = ["06:00:00:00:00:01", "06:00:00:00:00:02"];
/// What both families of the tunnel's outer header leave of a link's 1500 bytes.
const MTU: [u32; 2] = [1_450, 1_430];

/// The lab with a dataplane on the other node too, and a tunnel over one family between them.
struct Tunnelled {
    lab: Lab,
    other: Dataplane,
    _pins: BpfFs,
}

impl Tunnelled {
    fn new(transmit: Transmit, underlay: usize) -> Self {
        let mut lab = Lab::new(transmit);
        let pins = BpfFs::new();
        let mut config = lab::config(&pins, Transmit::Never);
        config.node_addresses = OTHER.map(address).to_vec();
        join(&lab.node, (0, NODE), (1, OTHER), underlay);
        join(&lab.other, (1, OTHER), (0, NODE), underlay);
        for (namespace, pod) in [
            (&lab.client, "client"),
            (&lab.local, "local"),
            (&lab.remote, "remote"),
        ] {
            namespace.ip(&format!("link set eth0 mtu {}", MTU[underlay]));
            let node = if pod == "remote" {
                &lab.other
            } else {
                &lab.node
            };
            node.ip(&format!("link set ptl{pod} mtu {}", MTU[underlay]));
        }
        let mut other = lab.other.enter(|| {
            let mut dataplane = Dataplane::open(config).expect("the dataplane opens");
            dataplane.attach_uplink("eth0").expect("it is there");
            let pod = lab::pod("ptlremote", REMOTE);
            dataplane.attach_pod(&pod).expect("it is there");
            dataplane
        });
        for (namespace, dataplane, own) in [
            (&lab.node, &mut lab.dataplane, 0),
            (&lab.other, &mut other, 1),
        ] {
            let networks = networks(own);
            dataplane.set_networks(&networks).expect("there is room");
            let set = || dataplane.set_tunnel(Some("vxlan")).expect("it is there");
            namespace.enter(set);
        }
        serve(&lab.remote, "remote", TARGET);
        serve(&lab.local, "local", TARGET);
        Self {
            lab,
            other,
            _pins: pins,
        }
    }

    /// Makes the service known to both nodes, each seeing the backends from where it is.
    fn upsert(&mut self, protocol: Protocol, backends: &[[&str; 2]]) {
        let seen = |here: [&str; 2]| -> Service {
            let backends = backends.iter().flat_map(|pod| {
                let near = *pod == here;
                let locality = if near {
                    Locality::Node
                } else {
                    Locality::Elsewhere
                };
                pod.map(|at| lab::backend(at, locality))
            });
            service(protocol, backends.collect())
        };
        let (first, second) = (seen(lab::LOCAL), seen(REMOTE));
        self.lab.dataplane.upsert(&first).expect("a valid service");
        self.other.upsert(&second).expect("a valid service");
    }
}

fn networks(own: usize) -> Vec<Network> {
    let other = 1 - own;
    let mut networks = Vec::new();
    let mut add = |prefix: &str, role| {
        let prefix = prefix.parse().unwrap_or_else(|_| address(prefix).into());
        networks.push(Network { prefix, role });
    };
    for family in 0..2 {
        add(POD_NETWORKS[own][family], NetworkRole::Inside);
        add(POD_NETWORKS[other][family], NetworkRole::Pods);
        add([NODE, OTHER][own][family], NetworkRole::Node);
        add([NODE, OTHER][other][family], NetworkRole::Peer);
    }
    networks
}

/// One node's end of the tunnel, set up as an agent does it, in place of the routes over the fabric.
fn join(node: &Netns, own: (usize, [&str; 2]), peer: (usize, [&str; 2]), underlay: usize) {
    node.ip(&format!(
        "link add vxlan address {} mtu {} type vxlan id 112 dstport 4789 local {} nolearning",
        ENDS[own.0], MTU[underlay], own.1[underlay]
    ));
    node.ip("link set vxlan up");
    support::netns::run(&format!(
        "bridge -n {} fdb append {} dev vxlan dst {}",
        node.name(),
        ENDS[peer.0],
        peer.1[underlay]
    ));
    for (family, gateway) in ["10.244.255.1", "fe80::ffff"].iter().enumerate() {
        for neighbour in [gateway, peer.1[family]] {
            node.ip(&format!(
                "neighbour replace {neighbour} lladdr {} dev vxlan nud permanent",
                ENDS[peer.0]
            ));
        }
        node.ip(&format!(
            "route replace {} via {gateway} dev vxlan onlink src {}",
            POD_NETWORKS[peer.0][family], own.1[family]
        ));
    }
}

/// Every frame that crosses the fabric while something is done.
fn frames(fabric: &Netns, work: impl FnOnce() + Send) -> Vec<Vec<u8>> {
    fabric.enter(|| {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let all = Some(SockProtocol::EthAll);
        let sniffer = socket(AddressFamily::Packet, SockType::Raw, flags, all)
            .expect("root may look at packets");
        nix::sys::socket::setsockopt(
            &sniffer,
            nix::sys::socket::sockopt::RcvBufForce,
            &(32 << 20),
        )
        .expect("a large buffer");
        work();
        let mut seen = Vec::new();
        let mut buffer = vec![0; 70_000];
        while let Ok(length) = recv(sniffer.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            seen.push(buffer[..length].to_vec());
        }
        seen
    })
}

/// Whether an address of the outermost IP header is a pod's.
fn shows_pods(frame: &[u8]) -> bool {
    let ends: Vec<IpAddr> = match frame.get(12..14) {
        Some([8, 0]) => frame[26..34]
            .chunks_exact(4)
            .map(|bytes| IpAddr::from(<[u8; 4]>::try_from(bytes).expect("four bytes")))
            .collect(),
        Some([0x86, 0xdd]) => frame[22..54]
            .chunks_exact(16)
            .map(|bytes| IpAddr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")))
            .collect(),
        _ => Vec::new(),
    };
    let networks = POD_NETWORKS.as_flattened().iter();
    let networks: Vec<ipnet::IpNet> = networks.map(|text| text.parse().expect("valid")).collect();
    ends.iter()
        .any(|end| networks.iter().any(|network| network.contains(end)))
}

#[test]
fn services_reach_backends_of_the_other_node_through_the_tunnel() {
    for (transmit, underlay) in [(Transmit::Never, 0), (Transmit::Auto, 1)] {
        let mut tunnelled = Tunnelled::new(transmit, underlay);
        for protocol in PROTOCOLS {
            tunnelled.upsert(protocol, &[REMOTE]);
        }
        let lab = &tunnelled.lab;
        let seen = frames(&lab.fabric, || {
            for (protocol, family) in PROTOCOLS.into_iter().flat_map(|one| [(one, 0), (one, 1)]) {
                let cluster = (address(CLUSTER[family]), PORT);
                let answer = ask_from(&lab.client, protocol, cluster);
                assert_eq!(answer.server, "remote");
                assert_eq!(answer.seen, address(lab::CLIENT[family]), "{protocol:?}");
                let straight = (address(REMOTE[family]), TARGET);
                let answer = ask_from(&lab.client, protocol, straight);
                assert_eq!(answer.seen, address(lab::CLIENT[family]), "no service");
                // From the world by either node, and from a node's own process.
                for node in [NODE, OTHER] {
                    let port = (address(node[family]), NODE_PORT);
                    assert_eq!(ask_from(&lab.outside, protocol, port).server, "remote");
                }
                assert_eq!(ask_from(&lab.node, protocol, straight).server, "remote");
            }
        });
        assert!(seen.len() > 50, "only {} frames were seen", seen.len());
        let bare = seen.iter().filter(|frame| shows_pods(frame)).count();
        assert_eq!(bare, 0, "frames of pods outside of the tunnel");
    }
}

#[test]
fn pods_reach_node_ports_and_processes_of_the_other_node() {
    let mut tunnelled = Tunnelled::new(Transmit::Never, 0);
    for protocol in PROTOCOLS {
        tunnelled.upsert(protocol, &[lab::LOCAL]);
    }
    let lab = &tunnelled.lab;
    serve(&lab.node, "node", 9_000);
    let seen = frames(&lab.fabric, || {
        for (protocol, family) in PROTOCOLS.into_iter().flat_map(|one| [(one, 0), (one, 1)]) {
            let port = (address(NODE[family]), NODE_PORT);
            assert_eq!(ask_from(&lab.remote, protocol, port).server, "local");
            let process = (address(NODE[family]), 9_000);
            let answer = ask_from(&lab.remote, protocol, process);
            assert_eq!(answer.server, "node");
            assert_eq!(answer.seen, address(REMOTE[family]));
        }
    });
    assert!(!seen.is_empty());
    assert!(!seen.iter().any(|frame| shows_pods(frame)));
}

#[test]
fn much_is_sent_through_the_tunnel_by_pods_and_by_the_world() {
    for underlay in 0..2 {
        let mut tunnelled = Tunnelled::new(Transmit::Auto, underlay);
        tunnelled.upsert(Protocol::Tcp, &[REMOTE]);
        let lab = &tunnelled.lab;
        for family in 0..2 {
            for (from, to) in [
                (&lab.client, (address(CLUSTER[family]), PORT)),
                (&lab.outside, (address(NODE[family]), NODE_PORT)),
            ] {
                from.enter(|| echo_much(to.into()));
            }
        }
    }
}

fn echo_much(to: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("it connects");
    let wait = Some(PATIENCE * 5);
    stream.set_read_timeout(wait).expect("a time to wait");
    stream.set_write_timeout(wait).expect("a time to wait");
    let sent = vec![b'x'; 300_000];
    stream.write_all(&sent).expect("it takes all");
    stream.shutdown(std::net::Shutdown::Write).expect("open");
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).expect("it sends all back");
    let echoed: usize = echo.iter().map(|byte| usize::from(*byte == b'x')).sum();
    assert_eq!(echoed, sent.len(), "{to}");
}

#[test]
fn only_nodes_may_send_into_the_tunnel() {
    let tunnelled = Tunnelled::new(Transmit::Never, 0);
    let frame = |from: [u8; 4], port: u16| {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend(from);
        frame.extend([10, 89, 0, 11, 0xc0, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 16, 0, 0, 8, 0, 0, 0, 0, 0, 112, 0]);
        frame
    };
    let verdict = |frame: &[u8]| {
        let lab = &tunnelled.lab;
        let index = || nix::net::if_::if_nametoindex("eth0").expect("it is there");
        let index = lab.node.enter(index);
        let run = || lab.dataplane.run("uplink_ingress", frame, index);
        lab.node.enter(run).expect("it runs").verdict
    };
    let strangers = || {
        let drops = tunnelled.lab.dataplane.drops().expect("they can be read");
        let found = drops.iter().find(|drop| drop.reason == "tunnel_stranger");
        found.expect("there is such a reason").packets
    };
    assert_eq!(verdict(&frame([10, 89, 0, 12], 4_789)), -1, "another node");
    assert_eq!(strangers(), 0);
    assert_eq!(verdict(&frame([10, 89, 0, 200], 4_789)), 2, "a stranger");
    assert_eq!(strangers(), 1);
    assert_eq!(verdict(&frame([10, 89, 0, 200], 4_790)), -1, "another port");
}

#[test]
fn a_tunnel_outlives_its_agent_and_goes_when_told() {
    let mut tunnelled = Tunnelled::new(Transmit::Never, 0);
    tunnelled.upsert(Protocol::Tcp, &[REMOTE]);
    tunnelled.lab.reopen(Transmit::Never);
    let attach = |dataplane: &mut Dataplane| dataplane.attach_uplink("eth0").map(drop);
    let dataplane = &mut tunnelled.lab.dataplane;
    tunnelled
        .lab
        .node
        .enter(|| attach(dataplane))
        .expect("it is there");
    let cluster = (address(CLUSTER[0]), PORT);
    let answer = ask_from(&tunnelled.lab.client, Protocol::Tcp, cluster);
    assert_eq!(answer.server, "remote", "before it is told of a tunnel");
    let links = tunnelled.lab.pins.pins().join("links");
    let pin = links.join("uplink_ingress-vxlan");
    assert!(pin.exists());
    let dataplane = &mut tunnelled.lab.dataplane;
    let leave = || dataplane.set_tunnel(None);
    tunnelled.lab.node.enter(leave).expect("it goes");
    assert!(!pin.exists());
    assert!(!links.join("node_egress-vxlan").exists());
    assert!(links.join("uplink_ingress-eth0").exists());
}
