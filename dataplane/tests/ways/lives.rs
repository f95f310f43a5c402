//! What becomes of clients when their backends go.

use std::{io, net::SocketAddr, time::Instant};

use nix::libc;
use portolan_dataplane::model::Service;

use crate::{
    stage::{Alone, Way, everywhere},
    support::{
        lab::Lab,
        servers::PATIENCE,
        talk::{Client, Style},
    },
};

pub fn datagrams_leave_a_backend_that_is_gone_at_once(way: Way) {
    let mut alone = Alone::new(way);
    let [first, second] = way.two();
    for style in [Style::Connected, Style::Named] {
        for family in 0..2 {
            alone.upsert(style, &[first]);
            let to = alone.caller().frontend(family);
            let mut client = alone.open(style, to).expect("it can be opened");
            assert_eq!(client.talk().expect("it is answered").server, first.name());
            alone.upsert(style, &[second]);
            let flows = alone.lab.dataplane.flows().expect("they can be listed");
            let given = flows.iter().find(|flow| flow.state == "socket-sends");
            assert_eq!(given, None, "translations go with their backend");
            let began = Instant::now();
            match client.talk() {
                Ok(talk) => assert_eq!((talk.server.as_str(), talk.partner), (second.name(), to)),
                // A connected socket asks nobody again, so it is told.
                Err(error) => {
                    assert_eq!((way, style), (Way::Sockets, Style::Connected), "{error}");
                    let told = [Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)];
                    assert!(told.contains(&error.raw_os_error()), "{error}");
                    let again = alone.talk(alone.caller(), style, to);
                    assert_eq!(again.server, second.name());
                }
            }
            assert!(began.elapsed() < PATIENCE / 2, "{way:?}: {style:?} to {to}");
        }
    }
}

fn open_streams(alone: &Alone) -> [Client; 2] {
    [0, 1].map(|family| {
        let to = alone.caller().frontend(family);
        let opened = alone.open(Style::Stream, to);
        opened.expect("it is answered")
    })
}

pub fn a_connection_outlives_its_backends_removal_but_not_its_pod(way: Way) {
    let mut alone = Alone::new(way);
    let [first, second] = way.two();
    alone.upsert(Style::Stream, &[first]);
    let mut clients = open_streams(&alone);
    for client in &mut clients {
        client.talk().expect("it is answered");
    }
    alone.upsert(Style::Stream, &[second]);
    for client in &mut clients {
        assert_eq!(client.talk().expect("it goes on").server, first.name());
    }
    if way == Way::Xdp {
        // The pods that it leads to are other nodes'.
        return;
    }
    let Lab {
        node, dataplane, ..
    } = &mut alone.lab;
    node.enter(|| dataplane.detach_pod("ptllocal"))
        .expect("it can be detached");
    for client in &mut clients {
        let began = Instant::now();
        let error = client.talk().expect_err("its pod is gone");
        let told = [
            io::ErrorKind::ConnectionAborted,
            io::ErrorKind::ConnectionReset,
        ];
        assert!(told.contains(&error.kind()), "{way:?}: {error}");
        assert!(began.elapsed() < PATIENCE / 2, "{way:?}");
    }
}

pub fn a_backend_that_terminates_keeps_its_flows_and_has_new_ones_only_if_all_do(way: Way) {
    let mut alone = Alone::new(way);
    let [first, second] = way.two();
    for style in [Style::Stream, Style::Connected] {
        let ending = |with_other: bool| {
            let mut service = everywhere(style, &[first]);
            for backend in &mut service.backends {
                backend.terminating = true;
            }
            if with_other {
                service.backends.extend(second.backends());
            }
            service
        };
        for &who in way.callers() {
            for family in 0..2 {
                let to: SocketAddr = who.frontend(family);
                alone.upsert(style, &[first]);
                let opened = alone.enter(alone.netns(who), || Client::open(style, to));
                let mut old = opened.expect("it is answered");
                assert_eq!(old.talk().expect("it is answered").server, first.name());
                let services: [(Service, _); 2] = [(ending(true), second), (ending(false), first)];
                for (service, place) in services {
                    alone.put(&service);
                    assert_eq!(old.talk().expect("it goes on").server, first.name());
                    let new = alone.talk(who, style, to);
                    assert_eq!(new.server, place.name(), "{way:?}: {who:?}, {style:?}");
                }
            }
        }
    }
}
