//! probe
mod support;
use portolan_dataplane::{Transmit, model::{Locality, Protocol}};
use support::{lab::{self, CLUSTER, Lab, PORT, TARGET, address, backend, service}, servers::{ask_from, serve}};
#[test]
fn probe() {
    let mut lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
    lab.dataplane.upsert(&service(Protocol::Tcp, local)).unwrap();
    for _ in 0..5 {
        for vip in CLUSTER { ask_from(&lab.client, Protocol::Tcp, (address(vip), PORT)); }
    }
    for flow in lab.dataplane.flows().unwrap() { println!("{flow:?}"); }
    // the same source port again
    lab.client.enter(|| {
        use nix::sys::socket::*;
        for round in 0..6 {
            let s = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
            setsockopt(&s, sockopt::ReuseAddr, &true).unwrap();
            setsockopt(&s, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
            use std::os::fd::AsRawFd;
            bind(s.as_raw_fd(), &SockaddrIn::new(10, 244, 1, 10, 45_000)).unwrap();
            connect(s.as_raw_fd(), &SockaddrIn::new(10, 96, 0, 80, 80)).unwrap();
            drop(s);
            println!("{round} {:?}", lab.dataplane.services().unwrap()[0].1);
            for flow in lab.dataplane.flows().unwrap() { if flow.client.1 == 45_000 { println!("{}", flow.state); } }
        }
    });
}
