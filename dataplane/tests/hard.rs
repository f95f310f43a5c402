//! Hard packets with real sockets: path MTU discovery through services, ports where nobody listens, datagrams that are
//! sent in fragments, packets that may go over few routers, an uplink in a VLAN.

mod support;

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    thread,
    time::Duration,
};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};
use portolan_dataplane::{
    Transmit,
    model::{Backend, Locality, Protocol},
};
use support::{
    facts::note,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
    servers::{ask_from, refused_from, serve},
};

/// What the way to the remote backend takes at most.
const MTU: u32 = 1_300;
/// Enough for many packets of full size.
const BYTES: usize = 400_000;

/// A lab with services whose backend is behind a way with a smaller MTU.
fn narrow_lab(transmit: Transmit) -> Lab {
    let mut lab = Lab::new(transmit);
    serve(&lab.remote, "remote", TARGET);
    for at in lab::REMOTE {
        // Locked: what is forwarded must fit, too.
        lab.other
            .ip(&format!("route replace {at} dev ptlremote mtu lock {MTU}"));
    }
    let remote = lab::REMOTE
        .map(|at| backend(at, Locality::Elsewhere))
        .to_vec();
    lab.dataplane
        .upsert(&service(Protocol::Tcp, remote))
        .expect("a valid service");
    lab
}

/// Sends and receives many full segments. Without path MTU discovery none of them arrives.
fn exchange(to: SocketAddr) -> io::Result<usize> {
    let patience = Some(Duration::from_secs(10));
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut writer = stream.try_clone()?;
    let sender = thread::spawn(move || {
        writer.write_all(&vec![b'x'; BYTES])?;
        writer.shutdown(Shutdown::Write)
    });
    let mut echoed = Vec::new();
    stream.read_to_end(&mut echoed)?;
    sender.join().expect("the sender does not panic")?;
    // The server says its name first.
    let body = echoed.split(|byte| *byte == b'x');
    Ok(body.count() - 1)
}

/// The MTU that a namespace has learned of the way to an address.
fn learned(netns: &Netns, to: &str) -> String {
    let output = Command::new("ip")
        .args(["-n", netns.name(), "route", "get", to])
        .output()
        .expect("ip runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn assert_exchange(netns: &Netns, to: &str, port: u16) {
    let at = SocketAddr::from((address(to), port));
    match netns.enter(|| exchange(at)) {
        Ok(bytes) => assert_eq!(bytes, BYTES, "from {} to {at}", netns.name()),
        Err(error) => panic!("from {} to {at}: {error}", netns.name()),
    }
    let route = learned(netns, to);
    assert!(
        route.contains(&format!("mtu {MTU}")),
        "{} has learned nothing of the way to {to}: {route}",
        netns.name()
    );
}

#[test]
fn pods_discover_the_path_mtu_through_a_cluster_ip() {
    let lab = narrow_lab(Transmit::Never);
    for vip in CLUSTER {
        assert_exchange(&lab.client, vip, PORT);
    }
}

#[test]
fn the_world_discovers_the_path_mtu_through_a_node_port() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let lab = narrow_lab(transmit);
        for node in NODE {
            assert_exchange(&lab.outside, node, NODE_PORT);
        }
    }
}

#[test]
fn a_datagram_to_a_port_without_listener_is_refused_by_its_backend() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut lab = Lab::new(transmit);
        let cases = [
            (lab::LOCAL, Locality::Node),
            (lab::REMOTE, Locality::Elsewhere),
        ];
        for (addresses, locality) in cases {
            let backends: Vec<Backend> = addresses.map(|at| backend(at, locality)).to_vec();
            lab.dataplane
                .upsert(&service(Protocol::Udp, backends))
                .expect("a valid service");
            for family in 0..2 {
                refused_from(&lab.client, Protocol::Udp, (address(CLUSTER[family]), PORT));
                refused_from(
                    &lab.outside,
                    Protocol::Udp,
                    (address(NODE[family]), NODE_PORT),
                );
            }
        }
        let events = lab.dataplane.events().expect("readable");
        let translated = events
            .iter()
            .find(|event| event.event == "error_translated")
            .expect("it is counted");
        assert_eq!(translated.count, 8, "each refusal came from a backend");
    }
}

/// The port of servers that take large datagrams.
const LARGE: u16 = 9_000;

/// Sends back whatever comes.
fn serve_large(netns: &Netns) {
    netns.enter(|| {
        let any = SocketAddr::from(([0_u16; 8], LARGE));
        let socket = UdpSocket::bind(any).expect("the port is free");
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if let Err(error) = socket.send_to(&buffer[..length], from) {
                    eprintln!("cannot answer {from}: {error}");
                }
            }
        });
    });
}

fn assert_echo(netns: &Netns, to: SocketAddr, length: usize) {
    let said: Vec<u8> = (0..length)
        .map(|at| u8::try_from(at % 251).expect("below 251"))
        .collect();
    let echoed = netns.enter(|| -> io::Result<Vec<u8>> {
        let any: SocketAddr = if to.is_ipv4() {
            ([0_u8; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.connect(to)?;
        socket.send(&said)?;
        let mut buffer = vec![0; 65_536];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    });
    match echoed {
        Ok(echoed) => assert!(echoed == said, "{length} bytes came back changed from {to}"),
        Err(error) => panic!("{length} bytes from {} to {to}: {error}", netns.name()),
    }
}

#[test]
fn datagrams_in_fragments_arrive_and_are_answered() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut lab = Lab::new(transmit);
        serve_large(&lab.local);
        serve_large(&lab.remote);
        let cases = [
            (lab::LOCAL, Locality::Node),
            (lab::REMOTE, Locality::Elsewhere),
        ];
        for (addresses, locality) in cases {
            let backends = addresses.map(|at| Backend::new(address(at), LARGE, locality));
            lab.dataplane
                .upsert(&service(Protocol::Udp, backends.to_vec()))
                .expect("a valid service");
            for family in 0..2 {
                for length in [1_400, 2_000, 9_000, 40_000] {
                    let cluster = (address(CLUSTER[family]), PORT).into();
                    assert_echo(&lab.client, cluster, length);
                    let node = (address(NODE[family]), NODE_PORT).into();
                    assert_echo(&lab.outside, node, length);
                }
            }
        }
    }
}

/// Who says that a datagram may go no further, or that it has arrived.
#[derive(Debug, PartialEq, Eq)]
enum Hop {
    Router(IpAddr),
    Service,
}

/// What comes of a datagram that may go over so many routers.
fn probe(to: SocketAddr, hops: u32) -> io::Result<Hop> {
    let any: SocketAddr = if to.is_ipv4() {
        ([0_u8; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let limit = i32::try_from(hops).expect("few");
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        setsockopt(&socket, sockopt::Ipv4Ttl, &limit)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        setsockopt(&socket, sockopt::Ipv6Ttl, &limit)?;
    }
    socket.connect(to)?;
    socket.send(b"how far?")?;
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Ok(Hop::Service),
        Err(error) if error.kind() == io::ErrorKind::HostUnreachable => router(&socket),
        Err(error) => Err(error),
    }
}

/// Who sent the error that a socket has got.
fn router(socket: &UdpSocket) -> io::Result<Hop> {
    let mut space = nix::cmsg_space!([u8; 128]);
    let mut data = [0; 64];
    let mut parts = [io::IoSliceMut::new(&mut data)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_ERRQUEUE,
    )?;
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
                let octets = from.sin_addr.s_addr.to_ne_bytes();
                return Ok(Hop::Router(IpAddr::from(octets)));
            }
            ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
                return Ok(Hop::Router(IpAddr::from(from.sin6_addr.s6_addr)));
            }
            _ => {}
        }
    }
    Err(io::Error::other("an error from nobody"))
}

#[test]
fn every_router_on_the_way_through_a_service_tells_its_name() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let mut lab = Lab::new(transmit);
        serve(&lab.local, "local", TARGET);
        serve(&lab.remote, "remote", TARGET);
        let node = |family: usize| Hop::Router(address(NODE[family]));
        let other = |family: usize| Hop::Router(address(lab::OTHER[family]));
        for family in 0..2 {
            let cluster = SocketAddr::from((address(CLUSTER[family]), PORT));
            let outer = SocketAddr::from((address(NODE[family]), NODE_PORT));
            for (addresses, locality, way) in [
                (lab::LOCAL, Locality::Node, vec![node(family), Hop::Service]),
                (
                    lab::REMOTE,
                    Locality::Elsewhere,
                    vec![node(family), other(family), Hop::Service],
                ),
            ] {
                let backends = addresses.map(|at| backend(at, locality)).to_vec();
                lab.dataplane
                    .upsert(&service(Protocol::Udp, backends))
                    .expect("a valid service");
                for (netns, to) in [(&lab.client, cluster), (&lab.outside, outer)] {
                    for (hops, expected) in (1..).zip(&way) {
                        let hop = netns.enter(|| probe(to, hops));
                        let hop = hop.unwrap_or_else(|error| {
                            panic!(
                                "{transmit:?}: {hops} hops from {} to {to}: {error}",
                                netns.name()
                            )
                        });
                        assert_eq!(hop, *expected, "{transmit:?}: {hops} hops to {to}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_uplink_may_be_in_a_vlan() {
    let mut lab = Lab::new(Transmit::Never);
    let vlan = "link add link eth0 name eth0.7 type vlan id 7";
    let made = Command::new("ip")
        .args(["-n", lab.node.name()])
        .args(vlan.split(' '))
        .output()
        .expect("ip runs");
    if !made.status.success() {
        note("feature vlan absent");
        return;
    }
    note("feature vlan native");
    lab.outside.ip(vlan);
    for (netns, at) in [
        (&lab.node, ["10.97.0.11/24", "fd00:97::11/64"]),
        (&lab.outside, ["10.97.0.200/24", "fd00:97::200/64"]),
    ] {
        netns.ip(&format!("address add {} dev eth0.7", at[0]));
        netns.ip(&format!("address add {} dev eth0.7 nodad", at[1]));
        netns.ip("link set eth0.7 up");
    }
    serve(&lab.local, "local", TARGET);
    let backends = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        lab.dataplane
            .upsert(&service(protocol, backends.clone()))
            .expect("a valid service");
    }
    let Lab {
        node, dataplane, ..
    } = &mut lab;
    node.enter(|| dataplane.attach_uplink("eth0.7"))
        .expect("the uplink is there");
    for family in 0..2 {
        let via = ["10.97.0.11", "fd00:97::11"][family];
        let to = NODE[family];
        lab.outside.ip(&format!("route replace {to} via {via}"));
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let answer = ask_from(&lab.outside, protocol, (address(to), NODE_PORT));
            let seen = ["10.97.0.200", "fd00:97::200"][family];
            assert_eq!(
                (answer.server.as_str(), answer.seen),
                ("local", address(seen))
            );
        }
    }
}
