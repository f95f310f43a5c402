//! A pod sends with its own addresses only.

mod support;

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Instant,
};

use portolan_dataplane::{
    Transmit,
    model::{Locality, Protocol},
};
use support::{
    lab::{self, CLIENT, CLUSTER, LOCAL, Lab, PORT, TARGET, address, backend, service},
    servers::{PATIENCE, ask_from, serve},
};

/// Addresses that no pod has, one that another pod has, and one beyond the cluster.
const OTHERS: [&str; 6] = [
    "10.244.1.99",
    "fd00:244:1::99",
    "10.244.1.20",
    "fd00:244:1::20",
    "192.0.2.7",
    "2001:db8::7",
];

fn spoofed(lab: &Lab) -> u64 {
    let drops = lab.dataplane.drops().expect("the counters can be read");
    let found = drops.iter().find(|drop| drop.reason == "spoofed_source");
    found.expect("there is such a reason").packets
}

fn send_as(lab: &Lab, source: IpAddr, to: SocketAddr, length: usize) -> io::Result<UdpSocket> {
    lab.client.enter(|| {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&vec![7; length], to)?;
        Ok(socket)
    })
}

#[test]
fn a_pod_cannot_send_with_anothers_address() {
    for mode in support::tc_modes() {
        let mut lab = Lab::with(Transmit::Never, |config| config.tc = Some(mode));
        serve(&lab.local, "local", TARGET);
        let local = LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
        lab.dataplane
            .upsert(&service(Protocol::Udp, local))
            .expect("a valid service");
        for other in OTHERS.map(address) {
            let prefix = if other.is_ipv4() { 32 } else { 128 };
            let address_of = format!("{other}/{prefix} dev eth0");
            let family = usize::from(other.is_ipv6());
            let direct = SocketAddr::from((address(LOCAL[family]), TARGET));
            let by_service = SocketAddr::from((address(CLUSTER[family]), PORT));
            let own = address(CLIENT[family]);
            // The longest is sent in fragments, which belong to no flow.
            for (to, length) in [(direct, 5), (by_service, 5), (direct, 3_000)] {
                let before = spoofed(&lab);
                if length < 1_000 {
                    // Neighbours are known from then on.
                    let socket = send_as(&lab, own, to, length).expect("the pod has the address");
                    socket.recv(&mut [0; 64]).expect("it is answered");
                }
                assert_eq!(spoofed(&lab), before, "{own} to {to}: counted");
                if other != to.ip() {
                    lab.client.ip(&format!("address add {address_of} nodad"));
                    send_as(&lab, other, to, length).expect("the pod has the address");
                    let began = Instant::now();
                    while spoofed(&lab) == before {
                        assert!(began.elapsed() < PATIENCE, "{other} to {to}: not dropped");
                    }
                    lab.client.ip(&format!("address delete {address_of}"));
                }
            }
        }
    }
}

#[test]
fn neighbours_are_found_and_a_pod_that_comes_back_may_send_again() {
    let mut lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    for local in LOCAL {
        let to = (address(local), TARGET);
        assert_eq!(ask_from(&lab.client, Protocol::Tcp, to).server, "local");
    }
    lab.client.ip("neighbour flush all");
    lab.node
        .enter(|| lab.dataplane.detach_pod("ptlclient").expect("it is there"));
    lab.node.enter(|| {
        let pod = lab::pod("ptlclient", CLIENT);
        lab.dataplane.attach_pod(&pod).expect("it is there");
    });
    for local in LOCAL {
        let to = (address(local), TARGET);
        assert_eq!(ask_from(&lab.client, Protocol::Tcp, to).server, "local");
    }
    assert_eq!(spoofed(&lab), 0);
}
