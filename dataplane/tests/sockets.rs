//! Real connections between namespaces through tcx and XDP.

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use portolan_dataplane::{
    Transmit,
    model::{Frontend, Locality, Protocol, Scope, ServiceName},
};
use support::{
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    servers::{PATIENCE, ask_from, refused_from, serve},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A lab whose backends serve.
fn lab(transmit: Transmit) -> Lab {
    let lab = Lab::new(transmit);
    serve(&lab.local, "local", TARGET);
    serve(&lab.remote, "remote", TARGET);
    lab
}

#[test]
fn pods_reach_a_cluster_ip_and_the_local_backend_is_preferred() {
    let mut lab = lab(Transmit::Never);
    for protocol in PROTOCOLS {
        let backends = [lab::LOCAL, lab::REMOTE];
        let localities = [Locality::Node, Locality::Elsewhere];
        let both = backends
            .iter()
            .zip(localities)
            .flat_map(|(addresses, locality)| addresses.map(|at| backend(at, locality)))
            .collect();
        lab.dataplane
            .upsert(&service(protocol, both))
            .expect("a valid service");
        for (family, vip) in CLUSTER.iter().enumerate() {
            let answer = ask_from(&lab.client, protocol, (address(vip), PORT));
            assert_eq!(answer.server, "local");
            assert_eq!(answer.seen, address(lab::CLIENT[family]));
        }
        let remote = lab::REMOTE
            .map(|at| backend(at, Locality::Elsewhere))
            .to_vec();
        lab.dataplane
            .upsert(&service(protocol, remote))
            .expect("a valid service");
        for (family, vip) in CLUSTER.iter().enumerate() {
            let answer = ask_from(&lab.client, protocol, (address(vip), PORT));
            assert_eq!(answer.server, "remote");
            assert_eq!(answer.seen, address(lab::CLIENT[family]));
        }
        lab.dataplane
            .upsert(&service(protocol, Vec::new()))
            .expect("a valid service");
        for vip in CLUSTER {
            refused_from(&lab.client, protocol, (address(vip), PORT));
        }
    }
}

#[test]
fn node_ports_are_reached_from_outside_and_from_pods() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut lab = lab(transmit);
        for protocol in PROTOCOLS {
            let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
            lab.dataplane
                .upsert(&service(protocol, local))
                .expect("a valid service");
            for (family, node) in NODE.iter().enumerate() {
                let answer = ask_from(&lab.outside, protocol, (address(node), NODE_PORT));
                assert_eq!(answer.server, "local");
                assert_eq!(
                    answer.seen,
                    address(lab::OUTSIDE[family]),
                    "the client's address is kept"
                );
                let answer = ask_from(&lab.client, protocol, (address(node), NODE_PORT));
                assert_eq!(answer.server, "local");
            }
            let remote = lab::REMOTE
                .map(|at| backend(at, Locality::Elsewhere))
                .to_vec();
            lab.dataplane
                .upsert(&service(protocol, remote))
                .expect("a valid service");
            for (family, node) in NODE.iter().enumerate() {
                let answer = ask_from(&lab.outside, protocol, (address(node), NODE_PORT));
                assert_eq!(answer.server, "remote");
                assert_eq!(
                    answer.seen,
                    address(lab::NODE[family]),
                    "the source is the node's"
                );
                let answer = ask_from(&lab.client, protocol, (address(node), NODE_PORT));
                assert_eq!(answer.server, "remote");
                assert_eq!(answer.seen, address(lab::CLIENT[family]));
            }
            lab.dataplane
                .upsert(&service(protocol, Vec::new()))
                .expect("a valid service");
            for node in NODE {
                refused_from(&lab.outside, protocol, (address(node), NODE_PORT));
            }
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut lab = lab(Transmit::Never);
    for protocol in PROTOCOLS {
        let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
        lab.dataplane
            .upsert(&service(protocol, local))
            .expect("a valid service");
        for (family, vip) in CLUSTER.iter().enumerate() {
            let answer = ask_from(&lab.local, protocol, (address(vip), PORT));
            assert_eq!(answer.server, "local");
            assert_eq!(answer.seen, address(lab::NODE[family]));
        }
    }
}

#[test]
fn a_direct_connection_is_not_taken_for_an_old_flow_of_a_service() {
    let mut lab = lab(Transmit::Never);
    let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
    lab.dataplane
        .upsert(&service(Protocol::Tcp, local))
        .expect("a valid service");
    for port in 45_000..45_003 {
        // One port for both connections, so that the second meets the flow of the first.
        let status = std::process::Command::new("ip")
            .args(["netns", "exec", lab.client.name(), "sysctl", "-qw"])
            .arg(format!("net.ipv4.ip_local_port_range={port} {port}"))
            .status()
            .expect("a namespace's knobs can be set");
        assert!(status.success());
        for (family, vip) in CLUSTER.iter().enumerate() {
            let direct = address(lab::LOCAL[family]);
            for to in [(address(vip), PORT), (direct, TARGET)] {
                assert_eq!(ask_from(&lab.client, Protocol::Tcp, to).server, "local");
            }
        }
    }
}

#[test]
fn sweeping_takes_no_flow_that_is_alive() {
    /// More than two ticks of flows' age: a sweep is under way when a tick begins.
    const LONG_ENOUGH: Duration = Duration::from_millis(2_300);
    let mut lab = lab(Transmit::Never);
    // A sweep reaches these flows last, of those of all tables.
    let remote = lab::REMOTE
        .map(|at| backend(at, Locality::Elsewhere))
        .to_vec();
    lab.dataplane
        .upsert(&service(Protocol::Udp, remote))
        .expect("a valid service");
    let is_over = AtomicBool::new(false);
    let talk = || {
        let socket = UdpSocket::bind("[::]:0").expect("a free port");
        socket
            .connect((address(NODE[1]), NODE_PORT))
            .expect("an address that can be reached");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (mut buffer, mut answers) = ([0; 64], 0);
        while !is_over.load(Ordering::Relaxed) {
            socket.send(b"hello").expect("it can be sent");
            if let Err(error) = socket.recv(&mut buffer) {
                return Err(format!("after {answers} answers: {error}"));
            }
            answers += 1;
        }
        Ok(answers)
    };
    let outcomes: Vec<Result<u64, String>> = thread::scope(|scope| {
        let talks: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| lab.outside.enter(talk)))
            .collect();
        lab.node.enter(|| {
            let begun = Instant::now();
            while begun.elapsed() < LONG_ENOUGH {
                lab.dataplane.sweep().expect("the maps can be swept");
            }
        });
        is_over.store(true, Ordering::Relaxed);
        talks
            .into_iter()
            .map(|talk| talk.join().expect("a talk panics on nothing"))
            .collect()
    });
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Ok(1..))),
        "every talk goes on: {outcomes:?}"
    );
}

#[test]
fn two_services_of_one_backend_are_told_apart_though_the_client_uses_one_port() {
    let other = ["10.96.0.81", "fd00:10:96::81"];
    let mut lab = lab(Transmit::Never);
    for protocol in PROTOCOLS {
        let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
        let first = service(protocol, local);
        let mut second = first.clone();
        second.name = ServiceName(format!("default/other/{protocol:?}"));
        second.frontends = other
            .map(|at| Frontend::Address {
                address: address(at),
                port: PORT,
                scope: Scope::Cluster,
            })
            .to_vec();
        for service in [&first, &second] {
            lab.dataplane.upsert(service).expect("a valid service");
        }
    }
    for (family, frontends) in CLUSTER.into_iter().zip(other).enumerate() {
        let from = std::net::SocketAddr::from((address(lab::CLIENT[family]), 46_000));
        lab.client.enter(|| {
            let socket = std::net::UdpSocket::bind(from).expect("the port is free");
            socket
                .set_read_timeout(Some(PATIENCE))
                .expect("a timeout can be set");
            // Both at once: the backend must see two clients, and each answer come from whom was asked.
            for at in [frontends.0, frontends.1, frontends.0, frontends.1] {
                let to = std::net::SocketAddr::from((address(at), PORT));
                socket.send_to(b"hello", to).expect("it leaves");
                let (_, who) = socket.recv_from(&mut [0; 256]).expect("an answer comes");
                assert_eq!(who, to);
            }
        });
        let status = std::process::Command::new("ip")
            .args(["netns", "exec", lab.client.name(), "sysctl", "-qw"])
            .arg("net.ipv4.ip_local_port_range=46100 46100")
            .status()
            .expect("a namespace's knobs can be set");
        assert!(status.success());
        // The same port again as soon as the first connection is over.
        for at in [frontends.0, frontends.1] {
            let answer = ask_from(&lab.client, Protocol::Tcp, (address(at), PORT));
            assert_eq!(answer.server, "local");
        }
    }
}

#[test]
fn flows_by_several_addresses_to_one_backend_from_one_port_are_told_apart() {
    let mut lab = lab(Transmit::Never);
    for protocol in PROTOCOLS {
        let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
        lab.dataplane
            .upsert(&service(protocol, local))
            .expect("a valid service");
    }
    for family in 0..2 {
        let ways = [
            SocketAddr::from((address(CLUSTER[family]), PORT)),
            SocketAddr::from((address(NODE[family]), NODE_PORT)),
        ];
        lab.client.enter(|| {
            let own = address(lab::CLIENT[family]);
            let socket = UdpSocket::bind((own, 5_556)).expect("the port is free");
            socket
                .set_read_timeout(Some(PATIENCE))
                .expect("a time to wait");
            let mut buffer = [0; 64];
            for _ in 0..3 {
                for way in ways {
                    socket.send_to(b"hello", way).expect("it is sent");
                    let (_, from) = socket.recv_from(&mut buffer).expect("it is answered");
                    assert_eq!(from, way, "the reply comes from where the client knocked");
                }
            }
        });
        let range = "/proc/sys/net/ipv4/ip_local_port_range";
        lab.client.enter(|| {
            std::fs::write(range, "45100 45100").expect("a namespace's knobs can be set");
            let mut streams = ways.map(|way| {
                let stream = TcpStream::connect_timeout(&way, PATIENCE).expect("it connects");
                assert_eq!(stream.local_addr().expect("it has one").port(), 45_100);
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a time to wait");
                stream
            });
            for _ in 0..3 {
                for stream in &mut streams {
                    stream.write_all(b"hello").expect("it is sent");
                    let read = stream.read(&mut [0; 64]).expect("it is answered");
                    assert!(read > 0);
                }
            }
        });
    }
}
