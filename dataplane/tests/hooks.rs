//! Programs stay attached by clsact as they do by tcx: over a restart, and until they are taken away.

mod support;

use std::process::Command;

use portolan_dataplane::{
    Dataplane, Transmit,
    model::{Locality, Protocol, TcMode},
};
use support::{
    lab::{self, CLIENT, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
    servers::{ask_from, serve},
};

/// How many filters an interface of a namespace has.
fn filters(netns: &Netns, interface: &str) -> usize {
    ["ingress", "egress"]
        .iter()
        .map(|side| {
            let output = Command::new("tc")
                .args(["-n", netns.name(), "filter", "show", "dev", interface, side])
                .output()
                .expect("tc can be started");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .filter(|line| line.contains("direct-action"))
                .count()
        })
        .sum()
}

#[test]
fn everything_is_routed_by_clsact_where_there_is_no_tcx() {
    let mut lab = Lab::with(Transmit::Never, |config| config.tc = Some(TcMode::Clsact));
    assert_eq!(lab.dataplane.tc_mode(), TcMode::Clsact);
    serve(&lab.local, "local", TARGET);
    serve(&lab.remote, "remote", TARGET);
    for _ in 0..2 {
        for (name, at, locality) in [
            ("local", lab::LOCAL, Locality::Node),
            ("remote", lab::REMOTE, Locality::Elsewhere),
        ] {
            let backends = at.map(|at| backend(at, locality)).to_vec();
            lab.dataplane
                .upsert(&service(Protocol::Tcp, backends))
                .expect("a valid service");
            for family in 0..2 {
                let vip = (address(CLUSTER[family]), PORT);
                assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, name);
                let port = (address(NODE[family]), NODE_PORT);
                assert_eq!(ask_from(&lab.outside, Protocol::Tcp, port).server, name);
            }
        }
        let before = filters(&lab.node, "eth0");
        assert!(before > 0);
        lab.reopen(Transmit::Never);
        assert_eq!(filters(&lab.node, "eth0"), before);
    }
    let mut pods = lab
        .node
        .enter(|| lab.dataplane.pods())
        .expect("they can be listed");
    pods.sort_by(|a, b| a.host_interface.cmp(&b.host_interface));
    let names: Vec<&str> = pods.iter().map(|pod| &*pod.host_interface).collect();
    assert_eq!(names, ["ptlclient", "ptllocal"], "a new process knows them");
    assert_eq!(pods[0].addresses, CLIENT.map(address));

    assert!(filters(&lab.node, "ptlclient") > 0);
    lab.node
        .enter(|| lab.dataplane.detach_pod("ptlclient"))
        .expect("it is there");
    assert_eq!(filters(&lab.node, "ptlclient"), 0);
    assert!(filters(&lab.node, "ptllocal") > 0);
    lab.node
        .enter(|| Dataplane::remove_pins(&lab.pins.pins()))
        .expect("the pins can be removed");
    assert_eq!(
        filters(&lab.node, "ptllocal") + filters(&lab.node, "eth0"),
        0
    );
}
