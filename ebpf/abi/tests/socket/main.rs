//! The decisions on sockets, over maps of plain memory.

mod model;

use std::ops::RangeInclusive;

use portolan_abi::{
    address::{V4, V6},
    backend::{offers, state},
    bytes::Be16,
    drop_reason::{DropReason, Event},
    outcome::Outcome,
    protocol::{TCP, UDP},
    service::flags,
    socket::{self, Wish},
    socket_table::{self, WAYS},
};

use model::*;

#[test]
fn a_connection_is_known_by_its_frontend_until_the_socket_is_released() {
    for protocol in [TCP, UDP] {
        let (model, memory) = (Model::web(&[3]), Memory::default());
        let outcome = socket::connect(&wish(5, protocol), &&memory, &model);
        assert_eq!((forwarded(outcome), outcome.is_opened()), (3, true));
        let known = |cookie, end| socket::known_as(cookie, end, true, &&memory);
        assert_eq!(known(5, backend_end(3)), Some(frontend_end(VIP, PORT)));
        assert_eq!(known(5, backend_end(2)), None);
        assert_eq!(known(6, backend_end(3)), None);
        socket_table::release(&&memory, 6);
        assert_eq!(owned(&memory), 1);
        socket_table::release(&&memory, 5);
        assert_eq!(owned(&memory), 0);
        assert_eq!(known(5, backend_end(3)), None);
    }
}

#[test]
fn nobody_to_serve_is_a_refusal_and_no_service_is_none_of_ours() {
    let (model, memory) = (Model::web(&[]), Memory::default());
    let refused = Outcome::refuse(DropReason::NoBackend, 7);
    assert_eq!(socket::connect(&wish(5, TCP), &&memory, &model), refused);
    assert_eq!(socket::send(&wish(5, UDP), &&memory, &model), refused);
    let elsewhere = Wish {
        port: Be16::new(81),
        ..wish(5, TCP)
    };
    assert_eq!(socket::connect(&elsewhere, &&memory, &model), Outcome::PASS);
    assert_eq!(owned(&memory), 0);
}

#[test]
fn a_datagram_socket_stays_with_its_backend_until_that_is_gone() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    let first = socket::send(&wish(5, UDP), &&memory, &model);
    assert_eq!((forwarded(first), first.is_opened()), (1, true));
    // The service prefers others by now, but 1 still takes what it is sent.
    model.serve(VIP, PORT, UDP, 0, &[2]);
    let second = socket::send(&wish(5, UDP), &&memory, &model);
    assert_eq!((forwarded(second), second.is_opened()), (1, false));
    for gone in [state::REMOVED, state::GONE] {
        let (mut model, memory) = (Model::web(&[1]), Memory::default());
        socket::send(&wish(5, UDP), &&memory, &model);
        model.backends[1].state = gone;
        model.serve(VIP, PORT, UDP, 0, &[2]);
        for opened in [true, false] {
            let outcome = socket::send(&wish(5, UDP), &&memory, &model);
            assert_eq!((forwarded(outcome), outcome.is_opened()), (2, opened));
        }
        assert_eq!(owned(&memory), 1, "the dead backend's place is used again");
        model.services.clear();
        model.backends[2].state = gone;
        assert_eq!(socket::send(&wish(5, UDP), &&memory, &model), Outcome::PASS);
    }
}

#[test]
fn connecting_again_replaces_the_connection_and_leaves_datagrams_alone() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    let other = V4::from_octets([10, 96, 0, 2]);
    model.serve(other, PORT, UDP, 0, &[2]);
    let to_other = Wish {
        address: other,
        ..wish(5, UDP)
    };
    socket::send(&to_other, &&memory, &model);
    forwarded(socket::connect(&wish(5, UDP), &&memory, &model));
    assert_eq!(
        socket::known_as(5, backend_end(2), true, &&memory),
        None,
        "no peer"
    );
    assert_eq!(
        socket::known_as(5, backend_end(2), false, &&memory),
        Some(frontend_end(other, PORT))
    );
    for _ in 0..2 * WAYS {
        forwarded(socket::connect(&wish(5, UDP), &&memory, &model));
        assert_eq!(owned(&memory), 2);
    }
    let direct = Wish {
        address: V4::from_octets([10, 244, 1, 1]),
        port: Be16::new(8_080),
        ..wish(5, UDP)
    };
    assert_eq!(socket::connect(&direct, &&memory, &model), Outcome::PASS);
    assert_eq!(
        socket::known_as(5, backend_end(1), true, &&memory),
        None,
        "what it is connected to now, it knows by its own name"
    );
    assert_eq!(owned(&memory), 1);
}

#[test]
fn a_dead_connection_does_not_fill_the_bucket_of_a_socket_that_sends_datagrams() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    forwarded(socket::connect(&wish(5, UDP), &&memory, &model));
    let outcome = socket::send(&wish(5, UDP), &&memory, &model);
    assert_eq!((forwarded(outcome), outcome.is_opened()), (1, false));
    model.backends[1].state = state::GONE;
    model.serve(VIP, PORT, UDP, 0, &[2]);
    for _ in 0..2 * WAYS {
        let outcome = socket::send(&wish(5, UDP), &&memory, &model);
        assert_eq!(forwarded(outcome), 2);
    }
    assert_eq!(owned(&memory), 2);
}

#[test]
fn what_finds_no_room_is_left_to_packets_and_overwrites_nothing() {
    let (model, memory) = (Model::web(&[1]), Memory::default());
    for cookie in 1..=u64::from(WAYS) {
        forwarded(socket::connect(&wish(cookie, TCP), &&memory, &model));
    }
    let left = Outcome::PASS.with(Event::SocketLeftToPackets);
    assert_eq!(socket::connect(&wish(99, TCP), &&memory, &model), left);
    assert_eq!(socket::send(&wish(99, UDP), &&memory, &model), left);
    for cookie in 1..=u64::from(WAYS) {
        assert!(socket::known_as(cookie, backend_end(1), true, &&memory).is_some());
    }
    socket_table::release(&&memory, 3);
    forwarded(socket::connect(&wish(99, TCP), &&memory, &model));
}

#[test]
fn replies_that_two_frontends_could_have_sent_are_left_to_packets() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    let other = V4::from_octets([10, 96, 0, 2]);
    model.serve(other, PORT, UDP, 0, &[1]);
    forwarded(socket::send(&wish(5, UDP), &&memory, &model));
    let to_other = Wish {
        address: other,
        ..wish(5, UDP)
    };
    assert_eq!(
        socket::send(&to_other, &&memory, &model),
        Outcome::PASS.with(Event::SocketLeftToPackets)
    );
    assert_eq!(owned(&memory), 1);
}

#[test]
fn who_may_knock_is_decided_by_the_address_of_the_sockets_pod_or_node() {
    let memory = Memory::default();
    let mut model = Model::web(&[1]);
    for entry in model.services.values_mut() {
        entry.flags |= flags::SOURCE_RANGES;
    }
    let of_node = Wish {
        netns: NODE_NETNS,
        ..wish(6, TCP)
    };
    for (range, served) in [(POD, wish(5, TCP)), (NODE, of_node)] {
        model.range = Some(range);
        for wish in [wish(5, TCP), of_node] {
            let outcome = socket::connect(&wish, &&memory, &model);
            if wish == served {
                forwarded(outcome);
            } else {
                assert_eq!(outcome, Outcome::drop(DropReason::OutOfRange));
            }
        }
    }
}

#[test]
fn a_client_keeps_its_backend_over_all_its_sockets_until_its_time_is_up() {
    const SECOND: u64 = 1_000_000_000;
    let memory = Memory::default();
    let mut model = Model::web(&[1, 2, 3, 4, 5]);
    for entry in model.services.values_mut() {
        entry.affinity_seconds = 10;
    }
    for backend in &mut model.backends {
        backend.offers = offers::CLUSTER;
        backend.service = 7;
    }
    let connect = |model: &Model, cookie| {
        let outcome = socket::connect(&wish(cookie, TCP), &&memory, model);
        socket_table::release(&&memory, cookie);
        forwarded(outcome)
    };
    let first = connect(&model, 1);
    // The service prefers another by now.
    let other = if first == 1 { 2 } else { 1 };
    model.serve(VIP, PORT, TCP, 0, &[other]);
    for entry in model.services.values_mut() {
        entry.affinity_seconds = 10;
    }
    for cookie in 2..20 {
        model.now += 9 * SECOND;
        assert_eq!(connect(&model, cookie), first);
    }
    model.now += 10 * SECOND;
    assert_eq!(connect(&model, 20), other, "its time is up");
    model.backends[other as usize].state = state::GONE;
    model.serve(VIP, PORT, TCP, 0, &[first]);
    assert_eq!(connect(&model, 21), first, "its backend is gone");
}

#[test]
fn sockets_of_namespaces_that_are_neither_pods_nor_the_nodes_are_left_to_packets() {
    let (model, memory) = (Model::web(&[1]), Memory::default());
    let stranger = Wish {
        netns: 99,
        ..wish(5, UDP)
    };
    let left = Outcome::PASS.with(Event::SocketLeftToPackets);
    assert_eq!(socket::connect(&stranger, &&memory, &model), left);
    assert_eq!(socket::send(&stranger, &&memory, &model), left);
    let elsewhere = Wish {
        port: Be16::new(81),
        ..stranger
    };
    assert_eq!(socket::connect(&elsewhere, &&memory, &model), Outcome::PASS);
    assert_eq!(owned(&memory), 0);
}

#[test]
fn what_userspace_takes_away_meanwhile_is_not_written_to() {
    let (model, memory) = (Model::web(&[1]), Memory::default());
    socket::send(&wish(5, UDP), &&memory, &model);
    let translation = memory.0.borrow().translations[0];
    // Another socket has the way by the time that the first comes back to it.
    memory.0.borrow_mut().owners[0] = 6;
    assert!(socket_table::put(&&memory, 5, 0, &translation));
    assert_eq!(memory.0.borrow().owners[..2], [6, 5]);
}

#[test]
fn connections_to_backends_that_are_counted_are_counted() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    forwarded(socket::connect(&wish(5, TCP), &&memory, &model));
    assert!(model.connections.borrow().is_empty());
    model.backends[1].offers = offers::COUNTED;
    forwarded(socket::connect(&wish(6, TCP), &&memory, &model));
    assert_eq!(*model.connections.borrow(), [1]);
}

#[test]
fn loopback_stands_for_the_node_only_in_the_nodes_namespace_and_only_at_node_ports() {
    let (mut model, memory) = (Model::web(&[1]), Memory::default());
    model.serve(NODE, PORT, TCP, flags::EXTERNAL, &[1]);
    let loopback = V4::from_octets([127, 0, 0, 1]);
    let of_pod = Wish {
        address: loopback,
        port: NODE_PORT,
        ..wish(5, TCP)
    };
    let of_node = Wish {
        netns: NODE_NETNS,
        ..of_pod
    };
    assert_eq!(socket::connect(&of_pod, &&memory, &model), Outcome::PASS);
    forwarded(socket::connect(&of_node, &&memory, &model));
    assert_eq!(
        socket::known_as(5, backend_end(1), true, &&memory),
        Some(frontend_end(loopback, NODE_PORT))
    );
    let external = Wish {
        port: PORT,
        cookie: 6,
        ..of_node
    };
    assert_eq!(socket::connect(&external, &&memory, &model), Outcome::PASS);
}

#[test]
fn sockets_spread_evenly_over_backends() {
    const BACKENDS: RangeInclusive<u32> = 1..=4;
    let ids: Vec<u32> = BACKENDS.collect();
    let (model, memory) = (Model::web(&ids), Memory::default());
    let mut shares = [0_u32; 5];
    for cookie in 1..=4_000 {
        let outcome = socket::connect(&wish(cookie, TCP), &&memory, &model);
        shares[forwarded(outcome) as usize] += 1;
        socket_table::release(&&memory, cookie);
    }
    assert!(
        shares[1..].iter().all(|share| (850..1_150).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn a_released_cookie_frees_a_way_that_was_left_half_written() {
    let memory = Memory::default();
    memory.0.borrow_mut().owners[2] = 5 | socket_table::WRITING;
    socket_table::release(&&memory, 5);
    assert_eq!(owned(&memory), 0);
    assert_eq!(V6::default().unmapped(), None);
}
