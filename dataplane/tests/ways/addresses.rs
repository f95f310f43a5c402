//! Which addresses lead where, from whom.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use portolan_dataplane::model::{Protocol, Service};

use crate::{
    stage::{Alone, EXTERNAL, Way, Where, Who, everywhere, frontends},
    support::{
        lab::{self, CLUSTER, NODE, NODE_PORT, PORT, TARGET, address},
        servers::PATIENCE,
        talk::{Client, Style, Talk},
    },
};

/// An IPv4 address as a socket of IPv6 speaks to it.
fn mapped(to: &SocketAddr) -> Option<SocketAddr> {
    match to.ip() {
        IpAddr::V4(address) => Some(SocketAddr::from((address.to_ipv6_mapped(), to.port()))),
        IpAddr::V6(_) => None,
    }
}

pub fn every_frontend_leads_to_every_backend_and_keeps_its_name(way: Way) {
    let mut alone = Alone::new(way);
    let mut calls = [0, 0];
    for style in Style::ALL {
        for &backend in way.backends() {
            alone.upsert(style, &[backend]);
            for &who in way.callers() {
                let mut all = frontends(who);
                if who == Who::Pod {
                    let mapped: Vec<SocketAddr> = all.iter().filter_map(mapped).collect();
                    all.extend(mapped);
                }
                for to in all {
                    let family = usize::from(!to.ip().to_canonical().is_ipv4());
                    let expected = Talk {
                        server: backend.name().to_owned(),
                        seen: who.seen(backend, family),
                        partner: to,
                    };
                    let talk = alone.talk(who, style, to);
                    assert_eq!(talk, expected, "{way:?}: {who:?}, {style:?} to {to}");
                    calls[usize::from(style != Style::Stream)] += 1;
                }
            }
        }
    }
    let services = alone.lab.dataplane.services();
    for (service, counters) in services.expect("the maps can be read") {
        let flows: u64 = counters
            .classes()
            .iter()
            .map(|(_, class)| class.flows)
            .sum();
        let expected = calls[usize::from(service.protocol == Protocol::Udp)];
        assert_eq!(flows, expected, "{way:?}: {}", service.name.0);
    }
}

pub fn without_backends_every_call_is_refused_at_once(way: Way) {
    let mut alone = Alone::new(way);
    // An answer to a datagram is longer than it, and XDP leaves those to others whose frame has no room for that.
    let styles = if way == Way::Xdp {
        &Style::ALL[..1]
    } else {
        &Style::ALL
    };
    for &style in styles {
        alone.upsert(style, &[]);
        let calls = way.callers().iter();
        for (who, to) in calls.flat_map(|&who| frontends(who).into_iter().map(move |to| (who, to)))
        {
            let began = Instant::now();
            let talk = alone.enter(alone.netns(who), || {
                let mut client = Client::open(style, to)?;
                if let (Client::Named(socket, to), false) = (&client, way == Way::Sockets) {
                    // Errors that come as packets are told to connected sockets alone.
                    socket.connect(*to)?;
                    client = Client::Connected(socket.try_clone()?);
                }
                client.talk()
            });
            let error = talk.expect_err("nobody is there to answer");
            assert_eq!(
                error.kind(),
                io::ErrorKind::ConnectionRefused,
                "{way:?}: {who:?}, {style:?} to {to}: {error}"
            );
            assert!(
                began.elapsed() < PATIENCE / 2,
                "{way:?}: {who:?}, {style:?} to {to}"
            );
        }
    }
}

pub fn a_pod_reaches_itself_through_its_service(way: Way) {
    let mut alone = Alone::new(way);
    for style in Style::ALL {
        alone.upsert(style, &[Where::Local]);
        for at in CLUSTER {
            let to = SocketAddr::from((address(at), PORT));
            let talk = alone.enter(&alone.lab.local, || Client::open(style, to)?.talk());
            if way == Way::Xdp {
                // It sees nothing of what pods send.
                talk.expect_err("nobody translates for it");
                return;
            }
            let talk = talk.unwrap_or_else(|error| panic!("{way:?}: {style:?} to {to}: {error}"));
            assert_eq!((talk.server.as_str(), talk.partner), ("local", to));
        }
    }
}

pub fn whom_a_way_does_not_see_it_does_not_serve(way: Way) {
    let mut alone = Alone::new(way);
    alone.upsert(Style::Stream, &[Where::Remote]);
    let others = [Who::Pod, Who::Host, Who::World].into_iter();
    for who in others.filter(|who| !way.callers().contains(who)) {
        for node in NODE {
            let to = SocketAddr::from((address(node), NODE_PORT));
            let error = alone.ask(who, Style::Stream, to);
            error.expect_err("the node itself has no such port");
        }
    }
}

pub fn one_port_number_leads_elsewhere_by_protocol(way: Way) {
    let mut alone = Alone::new(way);
    let [first, second] = way.two();
    alone.upsert(Style::Stream, &[first]);
    alone.upsert(Style::Connected, &[second]);
    for &who in way.callers() {
        for at in EXTERNAL {
            let to = SocketAddr::from((address(at), PORT));
            for style in Style::ALL {
                let place = if style == Style::Stream {
                    first
                } else {
                    second
                };
                let server = alone.talk(who, style, to).server;
                assert_eq!(server, place.name(), "{way:?}: {who:?}, {style:?} to {to}");
            }
        }
    }
}

/// A headless service: its backends are known, and nothing is routed for it.
pub fn a_service_without_addresses_translates_nothing(way: Way) {
    let mut alone = Alone::new(way);
    for style in Style::ALL {
        alone.put(&Service {
            frontends: Vec::new(),
            ..everywhere(style, &[Where::Remote])
        });
        for &who in way.callers() {
            for (family, at) in lab::REMOTE.iter().enumerate() {
                let to = SocketAddr::from((address(at), TARGET));
                let direct = Talk {
                    server: "remote".to_owned(),
                    seen: address(who.own()[family]),
                    partner: to,
                };
                assert_eq!(alone.talk(who, style, to), direct, "{way:?}: {who:?}");
            }
        }
    }
    for (service, counters) in alone.lab.dataplane.services().expect("they can be read") {
        let mut classes = counters.classes().into_iter();
        assert!(classes.all(|(_, class)| class.flows == 0), "{service:?}");
    }
}
