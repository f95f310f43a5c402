//! What the dataplane tells of the traffic that it carries.

mod support;

use portolan_dataplane::{
    Error, Transmit, Watcher,
    model::{Locality, Protocol, ServiceCounters},
    report::{Decision, Filter, PacketReport, Verdict},
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

/// Waits until there is something to read.
fn wait_for(watcher: &Watcher) {
    let ready = watcher.wait(5_000).expect("a descriptor to poll");
    assert!(ready, "nothing is reported");
}

/// Watches while something happens, and says what the programs reported of it.
fn watched(lab: &Lab, filter: Filter, happens: impl FnOnce()) -> Vec<PacketReport> {
    let mut watcher = Watcher::start(&lab.pins.pins(), &filter).expect("nobody else watches");
    happens();
    // A program has reported before its packet goes on, and what happened was answered.
    let observed = watcher.read();
    lab.node.enter(|| lab.dataplane.describe(&observed))
}

#[test]
fn a_trace_follows_a_connection_through_each_decision() {
    let mut lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    let vip = (address(CLUSTER[0]), PORT);
    let pod = (address(lab::LOCAL[0]), TARGET);
    let local = backend(lab::LOCAL[0], Locality::Node);
    lab.dataplane
        .upsert(&service(Protocol::Tcp, vec![local]))
        .expect("a valid service");
    let filter = Filter {
        packets: true,
        address: Some(vip.0),
        ..Filter::default()
    };
    let reports = watched(&lab, filter, || {
        ask_from(&lab.client, Protocol::Tcp, vip);
    });
    let [first, second, ..] = reports.as_slice() else {
        panic!("a connection has more packets than {reports:?}");
    };
    assert_eq!(first.decision, Decision::NewFlow, "{first:?}");
    assert_eq!(
        (first.tcp_flags.as_str(), first.verdict),
        ("SYN", Verdict::Redirect)
    );
    assert_eq!(
        (first.program.as_str(), first.interface.as_str()),
        ("pod_egress", "ptlclient")
    );
    assert_eq!((first.before.1, first.after.1), (vip.into(), pod.into()));
    assert_eq!(first.locality, Some(Locality::Node));
    assert_eq!(
        first.service.as_ref().map(|name| name.0.as_str()),
        Some("default/web/Tcp")
    );
    assert_eq!(second.decision, Decision::Reply, "{second:?}");
    assert_eq!(
        (second.tcp_flags.as_str(), second.interface.as_str()),
        ("SYN ACK", "ptllocal")
    );
    assert_eq!((second.before.0, second.after.0), (pod.into(), vip.into()));
    assert!(
        reports[2..]
            .iter()
            .any(|report| report.decision == Decision::KnownFlow),
        "{reports:?}"
    );

    let other = Filter {
        port: Some(1),
        ..filter
    };
    let reports = watched(&lab, other, || {
        ask_from(&lab.client, Protocol::Tcp, vip);
    });
    assert_eq!(reports, [], "the filter leaves other packets out");
}

#[test]
fn a_trace_says_why_a_packet_was_refused() {
    let mut lab = Lab::new(Transmit::Never);
    let vip = (address(CLUSTER[1]), PORT);
    lab.dataplane
        .upsert(&service(Protocol::Udp, Vec::new()))
        .expect("a valid service");
    let filter = Filter {
        packets: true,
        protocol: Some(Protocol::Udp),
        port: Some(PORT),
        ..Filter::default()
    };
    let reports = watched(&lab, filter, || {
        refused_from(&lab.client, Protocol::Udp, vip);
    });
    let [report] = reports.as_slice() else {
        panic!("one datagram was sent, not {reports:?}");
    };
    assert_eq!(report.decision, Decision::Refused);
    assert_eq!(report.reason.as_deref(), Some("no_backend"));
    assert_eq!(
        report.service.as_ref().map(|name| name.0.as_str()),
        Some("default/web/Udp")
    );
}

#[test]
fn flows_tell_when_they_open_and_end() {
    let mut lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    let vip = (address(CLUSTER[0]), PORT);
    let local = backend(lab::LOCAL[0], Locality::Node);
    lab.dataplane
        .upsert(&service(Protocol::Tcp, vec![local]))
        .expect("a valid service");
    let filter = Filter {
        opened: true,
        ended: true,
        ..Filter::default()
    };
    let mut watcher = Watcher::start(&lab.pins.pins(), &filter).expect("nobody else watches");
    ask_from(&lab.client, Protocol::Tcp, vip);
    let mut reports = Vec::new();
    while reports.len() < 2 {
        wait_for(&watcher);
        let observed = watcher.read();
        reports.extend(lab.node.enter(|| lab.dataplane.describe(&observed)));
    }
    let [opened, ended] = reports.as_slice() else {
        panic!("one flow opened and ended: {reports:?}");
    };
    assert_eq!((opened.decision, opened.ended), (Decision::NewFlow, false));
    assert!(ended.ended, "{ended:?}");
    // Whoever says the last FIN, it is between the same client and frontend.
    let client = opened.before.0;
    assert!(
        [ended.before.0, ended.after.1].contains(&client),
        "{ended:?}"
    );
}

#[test]
fn only_one_watches_and_reopening_ends_no_watch() {
    let mut lab = Lab::new(Transmit::Never);
    let filter = Filter {
        packets: true,
        port: Some(PORT),
        ..Filter::default()
    };
    let mut watcher = Watcher::start(&lab.pins.pins(), &filter).expect("nobody else watches");
    let second = Watcher::start(&lab.pins.pins(), &filter);
    assert!(matches!(second, Err(Error::AlreadyWatched)), "{second:?}");
    lab.reopen(Transmit::Never);
    lab.dataplane
        .upsert(&service(Protocol::Udp, Vec::new()))
        .expect("a valid service");
    refused_from(&lab.client, Protocol::Udp, (address(CLUSTER[0]), PORT));
    wait_for(&watcher);
    let observed = watcher.read();
    assert_eq!(lab.dataplane.describe(&observed).len(), 1);
    drop(watcher);
    Watcher::start(&lab.pins.pins(), &filter).expect("the first has ended");
}
