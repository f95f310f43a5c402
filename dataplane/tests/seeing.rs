//! What the dataplane tells of the traffic that it carries.

mod support;

use portolan_dataplane::{
    Transmit,
    model::{Locality, Protocol, ServiceCounters},
};
use support::{
    lab::{self, CLUSTER, Lab, PORT, TARGET, address, backend, service},
    servers::{ask_from, refused_from, serve},
};

fn counters(lab: &Lab) -> ServiceCounters {
    let services = lab.dataplane.services().expect("the maps can be read");
    let [(_, counters)] = services.as_slice() else {
        panic!("one service is installed, not {services:?}");
    };
    *counters
}

#[test]
fn counters_tell_the_classes_apart() {
    let mut lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    serve(&lab.remote, "remote", TARGET);
    let vip = (address(CLUSTER[0]), PORT);
    let local = backend(lab::LOCAL[0], Locality::Node);
    let remote = backend(lab::REMOTE[0], Locality::Elsewhere);
    for (backends, answers) in [(vec![local], "local"), (vec![remote], "remote")] {
        lab.dataplane
            .upsert(&service(Protocol::Tcp, backends))
            .expect("a valid service");
        let before = counters(&lab);
        assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, answers);
        let after = counters(&lab);
        for ((class, before), (_, after)) in before.classes().into_iter().zip(after.classes()) {
            let expected = u64::from(class == answers);
            assert_eq!(after.flows - before.flows, expected, "{class}: {after:?}");
            assert_eq!(after.packets > before.packets, expected == 1, "{class}");
            assert_eq!(after.bytes > before.bytes, expected == 1, "{class}");
        }
    }
    lab.dataplane
        .upsert(&service(Protocol::Tcp, Vec::new()))
        .expect("a valid service");
    refused_from(&lab.client, Protocol::Tcp, vip);
    assert_eq!(counters(&lab).refused, 1);
}
