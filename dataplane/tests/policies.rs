//! Policies and the choice of a backend, by real connections through tcx, and what a new process finds in the maps.

mod support;

use std::{collections::BTreeMap, time::Duration};

use portolan_dataplane::{
    Error, Transmit,
    local_share::BackendLoad,
    model::{
        Algorithm, Backend, Distribution, Frontend, Locality, Protocol, ReturnPath, Scope, Service,
        ServiceCounters, TrafficPolicy,
    },
};
use support::{
    lab::{self, CLUSTER, Lab, NODE, NODE_PORT, PORT, TARGET, address, backend, service},
    servers::{ask, ask_from, refused_from, serve},
};

/// A load balancer's address that the outside client's route leads to the node for.
const BALANCER: &str = "203.0.113.5";

fn lab() -> Lab {
    let lab = Lab::new(Transmit::Never);
    serve(&lab.local, "local", TARGET);
    serve(&lab.remote, "remote", TARGET);
    lab
}

/// A backend on the node and one on the other, of the first family.
fn both() -> Vec<Backend> {
    vec![
        backend(lab::LOCAL[0], Locality::Node),
        backend(lab::REMOTE[0], Locality::Elsewhere),
    ]
}

fn counters(lab: &Lab) -> ServiceCounters {
    let services = lab.dataplane.services().expect("the maps can be read");
    let [(_, counters)] = services.as_slice() else {
        panic!("one service is installed, not {services:?}");
    };
    *counters
}

fn drops(lab: &Lab, reason: &str) -> u64 {
    let drops = lab.dataplane.drops().expect("the maps can be read");
    let count = drops.iter().find(|drop| drop.reason == reason);
    count.expect("a known reason").packets
}

/// Of a hundred new flows from the client pod, how many the local backend got. The kernel gives some sockets a port
/// again whose flow is still known; those are no new flows.
fn percent_of_local(lab: &Lab) -> u64 {
    let before = counters(lab);
    for _ in 0..200 {
        ask_from(&lab.client, Protocol::Udp, (address(CLUSTER[0]), PORT));
    }
    let after = counters(lab);
    let local = after.local.flows - before.local.flows;
    let all = local + after.remote.flows - before.remote.flows;
    assert!(all > 100, "{all} of 200 were new flows");
    local * 100 / all
}

#[test]
fn a_client_keeps_its_backend_across_another_process_and_leaves_one_that_goes() {
    let mut lab = lab();
    let sticky = |backends| Service {
        distribution: Distribution::Even,
        affinity_seconds: Some(60),
        ..service(Protocol::Tcp, backends)
    };
    let vip = (address(CLUSTER[0]), PORT);
    let upsert = |lab: &mut Lab, backends| {
        lab.dataplane
            .upsert(&sticky(backends))
            .expect("a valid service");
    };
    upsert(&mut lab, both());
    let first = ask_from(&lab.client, Protocol::Tcp, vip).server;
    for _ in 0..20 {
        assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, first);
    }
    let mut left = both();
    left.retain(|backend| (backend.locality == Locality::Node) != (first == "local"));
    upsert(&mut lab, left);
    let second = ask_from(&lab.client, Protocol::Tcp, vip).server;
    assert_ne!(second, first);
    upsert(&mut lab, both());
    lab.reopen(Transmit::Never);
    for _ in 0..20 {
        assert_eq!(
            ask_from(&lab.client, Protocol::Tcp, vip).server,
            second,
            "the client keeps the backend that it has now"
        );
    }
}

#[test]
fn source_ranges_stand_before_a_load_balancers_address_and_nowhere_else() {
    let mut lab = lab();
    lab.outside
        .ip(&format!("route add {BALANCER} via {}", NODE[0]));
    let balanced = |ranges: &[&str]| {
        let mut service = service(Protocol::Tcp, both());
        service.frontends.push(Frontend::Address {
            address: address(BALANCER),
            port: PORT,
            scope: Scope::LoadBalancer,
        });
        let ranges = ranges.iter().map(|text| text.parse().expect("a range"));
        service.source_ranges = ranges.collect();
        service
    };
    let to = (address(BALANCER), PORT);
    for ranges in [&[][..], &["10.89.0.0/24", "2001:db8::/32"], &["0.0.0.0/0"]] {
        lab.dataplane
            .upsert(&balanced(ranges))
            .expect("a valid service");
        ask_from(&lab.outside, Protocol::Tcp, to);
    }
    for ranges in [&["198.51.100.0/24"][..], &["::/0"]] {
        lab.dataplane
            .upsert(&balanced(ranges))
            .expect("a valid service");
        let before = drops(&lab, "out_of_range");
        let answer = lab.outside.enter(|| ask(Protocol::Tcp, to.into()));
        answer.expect_err("the client is in no range");
        assert!(drops(&lab, "out_of_range") > before);
        ask_from(&lab.outside, Protocol::Tcp, (address(NODE[0]), NODE_PORT));
    }
}

#[test]
fn a_policy_of_local_keeps_outside_clients_addresses_and_no_pod_from_any_backend() {
    let mut lab = lab();
    let local = |backends| Service {
        external_policy: TrafficPolicy::Local,
        ..service(Protocol::Tcp, backends)
    };
    let port = (address(NODE[0]), NODE_PORT);
    lab.dataplane
        .upsert(&local(both()))
        .expect("a valid service");
    let answer = ask_from(&lab.outside, Protocol::Tcp, port);
    assert_eq!(
        (answer.server.as_str(), answer.seen),
        ("local", address(lab::OUTSIDE[0]))
    );
    let elsewhere = both()[1..].to_vec();
    lab.dataplane
        .upsert(&local(elsewhere))
        .expect("a valid service");
    assert_eq!(ask_from(&lab.client, Protocol::Tcp, port).server, "remote");
    let before = drops(&lab, "no_local_backend");
    let answer = lab.outside.enter(|| ask(Protocol::Tcp, port.into()));
    let error = answer.expect_err("no local backend");
    assert_ne!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(drops(&lab, "no_local_backend") > before);
    // Without any backend at all, the client is told.
    lab.dataplane
        .upsert(&local(Vec::new()))
        .expect("a valid service");
    refused_from(&lab.outside, Protocol::Tcp, port);
    let internal = Service {
        internal_policy: TrafficPolicy::Local,
        ..service(Protocol::Tcp, both()[1..].to_vec())
    };
    lab.dataplane.upsert(&internal).expect("a valid service");
    refused_from(&lab.client, Protocol::Tcp, (address(CLUSTER[0]), PORT));
}

#[test]
fn weights_and_distributions_are_what_flows_follow() {
    let mut lab = lab();
    let spread = |distribution, weights: [u32; 2]| {
        let mut backends = both();
        for (backend, weight) in backends.iter_mut().zip(weights) {
            backend.weight = weight;
        }
        Service {
            distribution,
            ..service(Protocol::Udp, backends)
        }
    };
    for (distribution, weights, least, most) in [
        (Distribution::LoadAware, [100, 100], 100, 100),
        (Distribution::SameNode, [100, 100], 100, 100),
        (Distribution::SameZone, [100, 100], 100, 100),
        (Distribution::Even, [100, 100], 32, 68),
        (Distribution::Even, [300, 100], 60, 90),
        (Distribution::Even, [0, 100], 0, 0),
        (Distribution::LoadAware, [0, 100], 0, 0),
    ] {
        lab.dataplane
            .upsert(&spread(distribution, weights))
            .expect("a valid service");
        let local = percent_of_local(&lab);
        assert!(
            (least..=most).contains(&local),
            "{distribution:?} of {weights:?}: {local} of 100 stay"
        );
    }
}

#[test]
fn a_hot_node_sheds_new_flows_within_five_seconds_and_has_them_back_when_it_has_cooled() {
    let mut lab = lab();
    lab.dataplane
        .upsert(&service(Protocol::Udp, both()))
        .expect("a valid service");
    assert_eq!(counters(&lab).local_share, Some(1_000));
    assert_eq!(percent_of_local(&lab), 100);
    let mut second = 0;
    let mut balance = |lab: &mut Lab, cpu: f64, seconds: u64| {
        let load = BackendLoad {
            cpu,
            pressure: if cpu > 0.9 { 0.8 } else { 0.0 },
            overflows: 0,
        };
        let loads = BTreeMap::from([(address(lab::LOCAL[0]), load)]);
        for _ in 0..seconds {
            second += 1;
            lab.dataplane.balance(&loads, Duration::from_secs(second));
        }
    };
    balance(&mut lab, 1.0, 5);
    let share = counters(&lab).local_share.expect("decided by load");
    assert!(share <= 500, "{share} of 1000 stay");
    let local = percent_of_local(&lab);
    assert!(local < 65, "{local} of 100 stay");
    // Another process goes on where this one was.
    lab.reopen(Transmit::Never);
    assert_eq!(counters(&lab).local_share, Some(share));
    balance(&mut lab, 0.2, 60);
    assert_eq!(counters(&lab).local_share, Some(1_000));
    assert_eq!(percent_of_local(&lab), 100);
    // One that asks for its own node alone is never shed.
    let same = Service {
        distribution: Distribution::SameNode,
        ..service(Protocol::Udp, both())
    };
    lab.dataplane.upsert(&same).expect("a valid service");
    balance(&mut lab, 1.0, 10);
    assert_eq!(counters(&lab).local_share, None);
    assert_eq!(percent_of_local(&lab), 100);
}

#[test]
fn another_process_finds_everything_that_was_asked_for() {
    let mut lab = lab();
    let mut wanted = service(Protocol::Tcp, both());
    wanted.frontends.push(Frontend::Address {
        address: address(BALANCER),
        port: PORT,
        scope: Scope::LoadBalancer,
    });
    wanted.distribution = Distribution::SameZone;
    wanted.algorithm = Algorithm::LeastConnections;
    wanted.affinity_seconds = Some(30);
    wanted.source_ranges = vec!["10.0.0.0/8".parse().expect("a range")];
    wanted.return_path = ReturnPath::SourceNat;
    wanted.publish_not_ready = true;
    wanted.external_policy = TrafficPolicy::Local;
    wanted.backends[1].weight = 250;
    wanted.backends[1].hinted_elsewhere = true;
    wanted.frontends.sort();
    lab.dataplane.upsert(&wanted).expect("a valid service");
    lab.reopen(Transmit::Never);
    let mut found = lab.dataplane.services().expect("the maps can be read");
    let (mut found, _) = found.pop().expect("one service");
    found.frontends.sort();
    assert_eq!(found, wanted);
}

#[test]
fn a_full_table_leaves_what_stands() {
    let mut lab = Lab::with(Transmit::Never, |config| {
        config.capacity.choice_lines = 2;
        config.capacity.source_ranges = 1;
    });
    serve(&lab.local, "local", TARGET);
    let one = service(Protocol::Tcp, both()[..1].to_vec());
    lab.dataplane.upsert(&one).expect("there is room");
    let vip = (address(CLUSTER[0]), PORT);
    let mut many = service(Protocol::Tcp, Vec::new());
    many.backends = (1..20)
        .map(|last| Backend::new([10, 244, 9, last].into(), TARGET, Locality::Node))
        .collect();
    let error = lab.dataplane.upsert(&many).expect_err("no room");
    assert!(
        matches!(
            error,
            Error::TableFull {
                table: "choice tables",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, "local");
    let mut ranged = one.clone();
    ranged.frontends.push(Frontend::Address {
        address: address(BALANCER),
        port: PORT,
        scope: Scope::LoadBalancer,
    });
    ranged.source_ranges = ["10.0.0.0/8", "192.0.2.0/24"]
        .map(|text| text.parse().expect("a range"))
        .to_vec();
    let error = lab.dataplane.upsert(&ranged).expect_err("no room");
    assert!(
        matches!(
            error,
            Error::TableFull {
                table: "source ranges",
                ..
            }
        ),
        "{error}"
    );
    ranged.source_ranges.truncate(1);
    lab.dataplane
        .upsert(&ranged)
        .expect("what was tried before has left no trace");
    assert_eq!(ask_from(&lab.client, Protocol::Tcp, vip).server, "local");
}
