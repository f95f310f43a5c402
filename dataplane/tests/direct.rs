//! Packets of clients beyond the cluster go to the backend's node as they are, and replies straight back.

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use portolan_dataplane::{
    Dataplane, Transmit,
    model::{
        Backend, Frontend, Locality, Network, NetworkRole, Protocol, ReturnPath, Scope, Service,
    },
};
use support::{
    lab::{self, Lab, NODE, NODE_PORT, OTHER, OUTSIDE, REMOTE, TARGET, address, service},
    netns::BpfFs,
    servers::{PATIENCE, ask_from, serve},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Addresses of a load balancer, which the world reaches by the first node.
const BALANCER: [&str; 2] = ["203.0.113.80", "2001:db8:113::80"];

/// The lab with a dataplane on the other node too, whose only pod is the backend.
struct Two {
    lab: Lab,
    other: Dataplane,
    _pins: BpfFs,
}

fn networks() -> Vec<Network> {
    let node = |text: &&str| Network {
        prefix: address(text).into(),
        role: NetworkRole::Node,
    };
    [NODE, OTHER].concat().iter().map(node).collect()
}

/// The service as a node sees it from which the backend is so far away.
fn seen(protocol: Protocol, locality: Locality) -> Service {
    let backends = REMOTE.iter().zip(OTHER).map(|(at, node)| Backend {
        node: Some(address(node)),
        ..lab::backend(at, locality)
    });
    let mut service = service(protocol, backends.collect());
    service.return_path = ReturnPath::Direct;
    service
        .frontends
        .extend(BALANCER.map(|at| Frontend::Address {
            address: address(at),
            port: lab::PORT,
            scope: Scope::LoadBalancer,
        }));
    service
}

impl Two {
    fn new(transmit: Transmit) -> Self {
        let mut lab = Lab::new(transmit);
        let pins = BpfFs::new();
        let mut config = lab::config(&pins, Transmit::Never);
        config.node_addresses = OTHER.map(address).to_vec();
        let mut other = lab.other.enter(|| {
            let mut dataplane = Dataplane::open(config).expect("the dataplane opens");
            dataplane.attach_uplink("eth0").expect("it is there");
            let pod = lab::pod("ptlremote", REMOTE);
            dataplane.attach_pod(&pod).expect("it is there");
            dataplane
        });
        for dataplane in [&mut lab.dataplane, &mut other] {
            dataplane.set_networks(&networks()).expect("there is room");
        }
        for (at, via) in BALANCER.iter().zip(NODE) {
            lab.outside.ip(&format!("route add {at} via {via}"));
        }
        serve(&lab.remote, "remote", TARGET);
        Self {
            lab,
            other,
            _pins: pins,
        }
    }

    fn upsert(&mut self, protocol: Protocol) {
        let (near, far) = (Locality::Node, Locality::Elsewhere);
        let (first, second) = (seen(protocol, far), seen(protocol, near));
        self.lab.dataplane.upsert(&first).expect("a valid service");
        self.other.upsert(&second).expect("a valid service");
    }

    fn count(&self, event: &str) -> (u64, u64) {
        let of = |dataplane: &Dataplane| {
            let events = dataplane.events().expect("they can be read");
            let found = events.iter().find(|count| count.event == event);
            found.expect("there is such an event").count
        };
        (of(&self.lab.dataplane), of(&self.other))
    }
}

#[test]
fn the_backend_sees_the_client_and_answers_it_without_the_first_node() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut two = Two::new(transmit);
        for protocol in PROTOCOLS {
            two.upsert(protocol);
            for family in 0..2 {
                let knocks = [
                    (address(NODE[family]), NODE_PORT),
                    (address(BALANCER[family]), lab::PORT),
                ];
                for to in knocks {
                    let sent = two.count("encapsulated").0;
                    let taken = two.count("decapsulated").1;
                    let answer = ask_from(&two.lab.outside, protocol, to);
                    assert_eq!(answer.server, "remote");
                    assert_eq!(answer.seen, address(OUTSIDE[family]), "{to:?}");
                    assert!(
                        two.count("encapsulated").0 > sent,
                        "{to:?} by the first node"
                    );
                    assert!(two.count("decapsulated").1 > taken, "{to:?} by the second");
                }
                let inside = (address(lab::CLUSTER[family]), lab::PORT);
                let answer = ask_from(&two.lab.client, protocol, inside);
                assert_eq!(
                    answer.seen,
                    address(lab::CLIENT[family]),
                    "pods need no tunnel"
                );
            }
        }
        let flows = two.other.flows().expect("they can be listed");
        assert!(flows.iter().any(|flow| flow.frontend.0 == address(NODE[0])));
    }
}

#[test]
fn much_is_sent_through_links_that_the_outer_header_makes_too_small() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut two = Two::new(transmit);
        two.upsert(Protocol::Tcp);
        for node in NODE {
            let to = SocketAddr::from((address(node), NODE_PORT));
            two.lab.outside.enter(|| {
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
            });
        }
    }
}

#[test]
fn only_nodes_are_taken_at_their_outer_header() {
    let mut two = Two::new(Transmit::Never);
    two.upsert(Protocol::Udp);
    // What "outside" claims to have had from itself is not decapsulated: it has no such protocol to speak.
    let inner = [
        0x45, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 89, 0, 200, 10, 89, 0, 11, 0x30, 0x39,
        0x75, 0x80, 0, 13, 0, 0, b'h', b'e', b'l', b'l', b'o',
    ];
    let frame = |from: [u8; 4]| {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 53, 0, 0, 0x40, 0, 64, 4, 0, 0]);
        frame.extend(from);
        frame.extend([10, 89, 0, 12]);
        frame.extend(inner);
        frame
    };
    let run = |two: &Two, frame: &[u8]| {
        let index = || nix::net::if_::if_nametoindex("eth0").expect("it is there");
        let index = two.lab.other.enter(index);
        let run = || two.other.run("uplink_ingress", frame, index);
        two.lab.other.enter(run).expect("it runs").verdict
    };
    assert_eq!(run(&two, &frame([10, 89, 0, 200])), -1);
    assert_eq!(two.count("decapsulated").1, 0);
    assert_eq!(run(&two, &frame([10, 89, 0, 11])), 7);
    assert_eq!(two.count("decapsulated").1, 1);
}
