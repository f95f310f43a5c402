//! What is the socket hooks' alone: whose sockets they see, the node's own addresses, and how they come and go.

mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
};

use portolan_dataplane::{
    Dataplane, Error, Transmit, Watcher, Ways,
    model::{Frontend, Locality, Protocol, Scope, Service, ServiceName},
    report::{Decision, Filter, Verdict},
};
use support::{
    cgroup::Cgroup,
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    netns::Netns,
    servers::serve,
    talk::{Client, Style},
};

const ALONE: Ways = Ways {
    tcx: false,
    xdp: false,
};

/// A lab with a service of each protocol, whose sockets the hooks see.
fn lab(ways: Ways) -> (Lab, Cgroup) {
    let mut lab = Lab::with(Transmit::Never, |config| config.ways = ways);
    serve(&lab.local, "local", TARGET);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let local = lab::LOCAL.map(|at| backend(at, Locality::Node)).to_vec();
        lab.dataplane
            .upsert(&service(protocol, local))
            .expect("a valid service");
    }
    let cgroup = Cgroup::new();
    lab.dataplane
        .attach_sockets(cgroup.path())
        .expect("this kernel has socket hooks");
    (lab, cgroup)
}

fn cluster(family: usize) -> SocketAddr {
    SocketAddr::from((address(CLUSTER[family]), PORT))
}

#[test]
fn processes_of_the_node_reach_every_frontend() {
    let (lab, cgroup) = lab(ALONE);
    let node_ports = NODE.map(|at| SocketAddr::from((address(at), NODE_PORT)));
    let loopback = SocketAddr::from(([127, 0, 0, 1], NODE_PORT));
    for style in Style::ALL {
        for to in [
            cluster(0),
            cluster(1),
            node_ports[0],
            node_ports[1],
            loopback,
        ] {
            let talk = lab.node.enter(|| {
                cgroup.join();
                Client::open(style, to)?.talk()
            });
            let talk = talk.unwrap_or_else(|error| panic!("{style:?} to {to}: {error}"));
            assert_eq!((talk.server.as_str(), talk.partner), ("local", to));
        }
        // A pod's loopback is its own.
        let refused = lab.client.enter(|| {
            cgroup.join();
            Client::open(style, loopback)?.talk()
        });
        refused.expect_err("nobody listens there");
    }
}

#[test]
fn only_processes_of_the_control_group_and_those_below_are_seen() {
    let (lab, cgroup) = lab(ALONE);
    let child = cgroup.child();
    let ask = |group: Option<&Cgroup>| {
        lab.client.enter(|| {
            if let Some(group) = group {
                group.join();
            }
            Client::open(Style::Named, cluster(0))?.talk()
        })
    };
    ask(Some(&cgroup)).expect("it is seen");
    ask(Some(&child)).expect("it is seen");
    ask(None).expect_err("nobody translates for it");
}

#[test]
fn hooks_are_adopted_move_and_go() {
    let (mut lab, cgroup) = lab(ALONE);
    let mut streams = [0, 1].map(|family| {
        let opened = lab.client.enter(|| {
            cgroup.join();
            Client::open(Style::Stream, cluster(family))
        });
        opened.expect("it is answered")
    });
    lab.reopen(Transmit::Never);
    assert!(lab.dataplane.has_sockets());
    for stream in &mut streams {
        assert_eq!(stream.talk().expect("it goes on").server, "local");
    }
    lab.dataplane
        .attach_sockets(cgroup.path())
        .expect("they are attached already");
    let other = Cgroup::new();
    lab.dataplane
        .attach_sockets(other.path())
        .expect("another control group");
    let ask = |group: &Cgroup| {
        lab.client.enter(|| {
            group.join();
            Client::open(Style::Named, cluster(0))?.talk()
        })
    };
    ask(&other).expect("it is seen");
    ask(&cgroup).expect_err("it is seen no more");
    lab.dataplane.detach_sockets().expect("they can go");
    lab.dataplane.detach_sockets().expect("what is gone can go");
    assert!(!lab.dataplane.has_sockets());
    ask(&other).expect_err("it is seen no more");
    for stream in &mut streams {
        let Client::Stream(stream) = stream else {
            panic!("not a stream");
        };
        let peer = stream.peer_addr().expect("it is connected");
        assert_eq!(peer.port(), TARGET, "nobody tells it the frontend any more");
    }
    lab.dataplane
        .attach_sockets(cgroup.path())
        .expect("they come back");
    Dataplane::remove_pins(&lab.pins.pins()).expect("pins can be removed");
    ask(&cgroup).expect_err("it is seen no more");
}

#[test]
fn a_control_group_that_is_none_is_a_clear_error() {
    let mut lab = Lab::with(Transmit::Never, |config| config.ways = ALONE);
    let missing = lab
        .dataplane
        .attach_sockets(Path::new("/sys/fs/cgroup/no-such-group"));
    assert!(matches!(missing, Err(Error::System { .. })), "{missing:?}");
    let wrong = lab
        .dataplane
        .attach_sockets(lab.pins.pins().parent().expect("a folder"));
    assert!(matches!(wrong, Err(Error::Kernel { .. })), "{wrong:?}");
    assert!(!lab.dataplane.has_sockets());
}

/// How many sockets were left to the programs that see packets.
fn left(lab: &Lab) -> u64 {
    let events = lab.dataplane.events().expect("the maps can be read");
    let event = events
        .iter()
        .find(|event| event.event == "socket_left_to_packets");
    event.expect("it is counted").count
}

#[test]
fn a_socket_in_a_namespace_that_is_no_pods_is_left_to_packets_though_its_process_is_a_pods() {
    let (lab, cgroup) = lab(ALONE);
    let ask = |netns: &Netns, style| {
        netns.enter(|| {
            cgroup.join();
            Client::open(style, cluster(0))?.talk()
        })
    };
    for (style, expected) in [(Style::Stream, 1), (Style::Named, 2)] {
        ask(&lab.other, style).expect_err("nobody there knows the address");
        assert_eq!(left(&lab), expected);
        ask(&lab.client, style).expect("a pod's own is served");
        assert_eq!(left(&lab), expected);
    }
}

#[test]
fn a_trace_and_the_list_of_flows_tell_of_sockets() {
    let (mut lab, cgroup) = lab(ALONE);
    let filter = Filter {
        packets: true,
        address: Some(cluster(1).ip()),
        ..Filter::default()
    };
    let mut watcher = Watcher::start(&lab.pins.pins(), &filter).expect("nobody else watches");
    let _client = lab.client.enter(|| {
        cgroup.join();
        let mut client = Client::open(Style::Stream, cluster(1)).expect("it is served");
        client.talk().expect("it is answered");
        client
    });
    let observed = watcher.read();
    let reports = lab.node.enter(|| lab.dataplane.describe(&observed));
    let [report] = reports.as_slice() else {
        panic!("one call, no packet: {reports:?}");
    };
    let pod = SocketAddr::from((address(lab::LOCAL[1]), TARGET));
    let client = address(lab::CLIENT[1]);
    assert_eq!(
        (report.program.as_str(), report.decision, report.verdict),
        ("socket", Decision::NewFlow, Verdict::Pass)
    );
    let ends = |to| (SocketAddr::new(client, 0), to);
    assert_eq!(report.before, ends(cluster(1)));
    assert_eq!(report.after, ends(pod));
    let name = report.service.as_ref().map(|name| name.0.as_str());
    assert_eq!(name, Some("default/web/Tcp"));
    let flows = lab.dataplane.flows().expect("they can be listed");
    let [flow] = flows.as_slice() else {
        panic!("one socket was given a backend: {flows:?}");
    };
    assert_eq!(
        (flow.client, flow.frontend, flow.backend),
        ((client, 0), (cluster(1).ip(), PORT), (pod.ip(), pod.port()))
    );
    assert_eq!(flow.state, "socket-connected");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        lab.dataplane
            .upsert(&service(protocol, Vec::new()))
            .expect("a valid service");
    }
    let refused = lab.client.enter(|| {
        cgroup.join();
        Client::open(Style::Stream, cluster(1))
    });
    refused.expect_err("nobody serves");
    let observed = watcher.read();
    let reports = lab.node.enter(|| lab.dataplane.describe(&observed));
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(
        (reports[0].decision, reports[0].reason.as_deref()),
        (Decision::Refused, Some("no_backend"))
    );
}

/// Nine services, one more than a bucket has ways.
#[test]
fn a_socket_that_speaks_to_more_services_than_there_is_room_for_reaches_them_by_tcx() {
    let (mut lab, cgroup) = lab(Ways::default());
    let frontends: Vec<SocketAddr> = (1..=9)
        .map(|last| SocketAddr::from(([10, 96, 1, last], 53)))
        .collect();
    for (to, port) in frontends.iter().zip(9_001..) {
        serve(&lab.local, "local", port);
        let mut backend = backend(lab::LOCAL[0], Locality::Node);
        backend.port = port;
        lab.dataplane
            .upsert(&Service {
                frontends: vec![Frontend::Address {
                    address: to.ip(),
                    port: to.port(),
                    scope: Scope::Cluster,
                }],
                backends: vec![backend],
                ..Service::new(ServiceName(to.to_string()), Protocol::Udp)
            })
            .expect("a valid service");
    }
    lab.client.enter(|| {
        cgroup.join();
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket
            .set_read_timeout(Some(support::servers::PATIENCE))
            .expect("a timeout");
        for _ in 0..2 {
            for to in &frontends {
                socket.send_to(b"hello", to).expect("it can be sent");
                let (_, from) = socket.recv_from(&mut [0; 64]).expect("it is answered");
                assert_eq!(from, *to);
            }
        }
    });
    assert_eq!(left(&lab), 2, "the ninth service, twice");
}
