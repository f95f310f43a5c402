//! Who may call, and which backend they get.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    thread,
    time::Duration,
};

use portolan_dataplane::model::{Distribution, Service, TrafficPolicy};

use crate::{
    stage::{Alone, BALANCER, Way, Where, Who, everywhere},
    support::{
        lab::{NODE, NODE_PORT, PORT, address},
        talk::Style,
    },
};

pub fn a_client_keeps_its_backend_until_that_is_gone_or_its_time_is_up(way: Way) {
    let mut alone = Alone::new(way);
    let both = way.two();
    let sticky = |seconds, style, places: &[Where]| Service {
        distribution: Distribution::Even,
        affinity_seconds: Some(seconds),
        ..everywhere(style, places)
    };
    let clients: Vec<(Who, usize)> = way
        .callers()
        .iter()
        .flat_map(|who| [(*who, 0), (*who, 1)])
        .collect();
    let mut firsts = BTreeMap::new();
    for style in Style::ALL {
        alone.put(&sticky(60, style, &both));
        for (number, (who, family)) in clients.iter().enumerate() {
            for _ in 0..4 {
                let server = alone.talk(*who, style, who.frontend(*family)).server;
                let first = firsts.entry(number).or_insert_with(|| server.clone());
                assert_eq!(*first, server, "{way:?}: {who:?}, {style:?}");
            }
        }
    }
    for (number, (who, family)) in clients.iter().enumerate() {
        let to = who.frontend(*family);
        let rest = both
            .into_iter()
            .find(|place| place.name() != firsts[&number]);
        let rest = rest.expect("there are two");
        alone.put(&sticky(60, Style::Stream, &[rest]));
        assert_eq!(
            alone.talk(*who, Style::Stream, to).server,
            rest.name(),
            "{way:?}"
        );
        alone.put(&sticky(60, Style::Stream, &both));
        for _ in 0..4 {
            let server = alone.talk(*who, Style::Stream, to).server;
            assert_eq!(server, rest.name(), "it keeps the one that it has now");
        }
    }
    // What counts is the time that passes without a call.
    alone.put(&sticky(1, Style::Stream, &both));
    thread::sleep(Duration::from_millis(1_100));
    for (number, (who, family)) in clients.iter().enumerate() {
        let server = alone
            .talk(*who, Style::Stream, who.frontend(*family))
            .server;
        assert_eq!(server, firsts[&number], "{way:?}: {who:?} begins anew");
    }
}

pub fn only_clients_of_its_ranges_reach_a_load_balancer(way: Way) {
    let mut alone = Alone::new(way);
    let ranged = |style, ranges: [&str; 2]| {
        let mut service = everywhere(style, &way.two()[..1]);
        let ranges = ranges.map(|range| address(range).into());
        service.source_ranges = ranges.to_vec();
        service
    };
    for &who in way.callers() {
        for style in Style::ALL {
            alone.put(&ranged(style, who.own()));
            for at in BALANCER {
                let to = SocketAddr::from((address(at), PORT));
                alone.talk(who, style, to);
            }
        }
        alone.put(&ranged(Style::Stream, ["198.51.100.99", "2001:db8::99"]));
        let balanced = SocketAddr::from((address(BALANCER[0]), PORT));
        let error = alone.ask(who, Style::Stream, balanced);
        error.expect_err("the client is in no range");
        let port = SocketAddr::from((address(NODE[0]), NODE_PORT));
        alone.talk(who, Style::Stream, port);
    }
}

pub fn a_policy_of_local_has_backends_of_this_node_only(way: Way) {
    let mut alone = Alone::new(way);
    let local = |style, places: &[Where]| Service {
        distribution: Distribution::Even,
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        ..everywhere(style, places)
    };
    for &who in way.callers() {
        for family in 0..2 {
            let to = who.frontend(family);
            // Backends of this node are none of XDP's.
            if way != Way::Xdp {
                for style in Style::ALL {
                    alone.put(&local(style, &[Where::Local, Where::Remote, Where::Other]));
                    for _ in 0..4 {
                        let talk = alone.talk(who, style, to);
                        let expected = ("local", who.seen(Where::Local, family));
                        assert_eq!((talk.server.as_str(), talk.seen), expected, "{way:?}");
                    }
                }
            }
        }
        alone.put(&local(Style::Stream, &[Where::Remote, Where::Other]));
        let error = alone.ask(who, Style::Stream, who.frontend(0));
        let error = error.expect_err("there is no backend here");
        // Who comes from beyond the cluster came to the wrong node, and is not told.
        let is_told = error.kind() == io::ErrorKind::ConnectionRefused;
        assert_eq!(is_told, who != Who::World, "{way:?}: {who:?}: {error}");
    }
}

pub fn distributions_and_weights_are_followed(way: Way) {
    let mut alone = Alone::new(way);
    let [near, far] = way.two();
    for (distribution, weight, may) in [
        (Distribution::LoadAware, 100, vec![near]),
        (Distribution::SameNode, 100, vec![near]),
        (Distribution::SameZone, 100, vec![near]),
        (Distribution::Even, 100, vec![near, far]),
        (Distribution::Even, 0, vec![far]),
    ] {
        // No backend that XDP leads to is nearer than others.
        if way == Way::Xdp && distribution != Distribution::Even {
            continue;
        }
        let mut service = everywhere(Style::Stream, &[near, far]);
        service.distribution = distribution;
        for backend in &mut service.backends[..2] {
            backend.weight = weight;
        }
        alone.put(&service);
        for &who in way.callers() {
            let calls = (0..40).map(|number| {
                let to = who.frontend(number % 2);
                alone.talk(who, Style::Stream, to).server
            });
            let servers: BTreeSet<String> = calls.collect();
            let expected = may.iter().map(|place| place.name().to_owned()).collect();
            assert_eq!(servers, expected, "{way:?}: {who:?}, {distribution:?}");
        }
    }
}
