//! What pods send beyond the cluster leaves with the node's address, and what they send within it with their own.

mod support;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{FromRawFd, OwnedFd},
};

use portolan_dataplane::{
    Transmit,
    model::{Locality, Network, NetworkRole, Protocol},
};
use support::{
    lab::{
        self, CLIENT, CLUSTER, LOCAL, Lab, NODE, OTHER, OUTSIDE, PORT, TARGET, address, backend,
        service,
    },
    netns::Netns,
    servers::{PATIENCE, ask_from, serve},
};

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A lab whose node masquerades, with a server beyond the cluster.
fn lab(transmit: Transmit) -> Lab {
    let mut lab = Lab::with(transmit, |config| config.masquerade = true);
    let inside = ["10.244.0.0/16", "fd00:244::/32"].map(|prefix| (prefix, NetworkRole::Inside));
    let nodes = [NODE, OTHER].concat();
    let mut networks: Vec<Network> = inside
        .map(|(prefix, role)| Network {
            prefix: prefix.parse().expect("a prefix"),
            role,
        })
        .to_vec();
    networks.extend(nodes.into_iter().map(|node| Network {
        prefix: address(node).into(),
        role: NetworkRole::Node,
    }));
    for _ in 0..2 {
        lab.dataplane
            .set_networks(&networks)
            .expect("there is room");
    }
    serve(&lab.outside, "world", TARGET);
    serve(&lab.remote, "remote", TARGET);
    lab
}

#[test]
fn the_world_sees_the_node_and_the_cluster_sees_the_pod() {
    for transmit in [Transmit::Never, Transmit::Auto] {
        let lab = lab(transmit);
        for (family, world) in OUTSIDE.iter().enumerate() {
            for protocol in PROTOCOLS {
                let answer = ask_from(&lab.client, protocol, (address(world), TARGET));
                assert_eq!(answer.server, "world");
                assert_eq!(answer.seen, address(NODE[family]));
                let remote = (address(lab::REMOTE[family]), TARGET);
                let answer = ask_from(&lab.client, protocol, remote);
                assert_eq!(answer.server, "remote");
                assert_eq!(answer.seen, address(CLIENT[family]));
            }
        }
        let flows = lab.dataplane.flows().expect("they can be listed");
        let to_world = |flow: &&portolan_dataplane::model::Flow| {
            OUTSIDE.map(address).contains(&flow.backend.0) && flow.service.is_none()
        };
        assert_eq!(flows.iter().filter(to_world).count(), 4, "{flows:?}");
    }
}

#[test]
fn a_services_backend_beyond_the_cluster_sees_the_node() {
    let mut lab = lab(Transmit::Never);
    for protocol in PROTOCOLS {
        let world = OUTSIDE.map(|at| backend(at, Locality::Elsewhere)).to_vec();
        lab.dataplane
            .upsert(&service(protocol, world))
            .expect("a valid service");
        for (family, vip) in CLUSTER.iter().enumerate() {
            let answer = ask_from(&lab.client, protocol, (address(vip), PORT));
            assert_eq!(answer.server, "world");
            assert_eq!(answer.seen, address(NODE[family]));
        }
        let remote = lab::REMOTE
            .map(|at| backend(at, Locality::Elsewhere))
            .to_vec();
        lab.dataplane
            .upsert(&service(protocol, remote))
            .expect("a valid service");
        for (family, vip) in CLUSTER.iter().enumerate() {
            let answer = ask_from(&lab.client, protocol, (address(vip), PORT));
            assert_eq!(answer.seen, address(CLIENT[family]));
        }
    }
}

#[test]
fn without_being_asked_nothing_is_masqueraded() {
    let lab = Lab::new(Transmit::Never);
    serve(&lab.outside, "world", TARGET);
    lab.outside
        .ip(&format!("route add 10.244.1.0/24 via {}", NODE[0]));
    let answer = ask_from(&lab.client, Protocol::Udp, (address(OUTSIDE[0]), TARGET));
    assert_eq!(answer.seen, address(CLIENT[0]));
}

#[test]
fn pods_that_use_one_port_are_told_apart() {
    let lab = lab(Transmit::Never);
    for (family, world) in OUTSIDE.iter().enumerate() {
        let world = SocketAddr::from((address(world), TARGET));
        let pods = [(&lab.client, CLIENT[family]), (&lab.local, LOCAL[family])];
        let sockets = pods.map(|(netns, own)| {
            netns.enter(|| {
                let socket = UdpSocket::bind((address(own), 5_555)).expect("the port is free");
                socket
                    .set_read_timeout(Some(PATIENCE))
                    .expect("a time to wait");
                socket.send_to(own.as_bytes(), world).expect("it is sent");
                socket
            })
        });
        for ((_, own), socket) in pods.iter().zip(sockets) {
            let mut buffer = [0; 256];
            let (length, from) = socket.recv_from(&mut buffer).expect("it is answered");
            assert_eq!(from, world);
            let said = String::from_utf8_lossy(&buffer[..length]).into_owned();
            assert!(said.ends_with(own), "{own} got {said:?}");
        }
    }
}

/// Sends an echo request and waits for its reply.
fn ping(netns: &Netns, to: IpAddr) -> io::Result<()> {
    netns.enter(|| {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
        let (family, protocol, request) = if to.is_ipv4() {
            (libc::AF_INET, libc::IPPROTO_ICMP, 8)
        } else {
            (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128)
        };
        // SAFETY: a plain system call that makes a descriptor.
        let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us alone.
        let socket = UdpSocket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&[request, 0, 0, 0, 0, 0, 0, 1, 42], (to, 0))?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer)?;
        assert_eq!((length, from.ip(), buffer[8]), (9, to, 42));
        Ok(())
    })
}

#[test]
fn the_world_answers_pings() {
    let lab = lab(Transmit::Auto);
    for (family, world) in OUTSIDE.iter().enumerate() {
        for _ in 0..3 {
            ping(&lab.client, address(world)).expect("the world answers");
            ping(&lab.local, address(world)).expect("the world answers");
        }
        ping(&lab.client, address(LOCAL[family])).expect("a pod of the node answers");
        ping(&lab.client, address(lab::REMOTE[family])).expect("a pod of another node answers");
        ping(&lab.client, address(NODE[family])).expect("the node answers");
        ping(&lab.outside, address(NODE[family])).expect("the node answers the world");
    }
}
