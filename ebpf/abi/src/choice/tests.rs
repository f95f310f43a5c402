//! Choices over plain memory: the share that leaves, least connections, affinity, source ranges and policies.

use std::{boxed::Box, cell::RefCell, collections::HashMap, vec, vec::Vec};

use super::*;
use crate::{
    address::V4,
    affinity::{AffinityEntry, AffinityKey},
    backend::{Backend, offers, state},
    bytes::Be16,
    drop_reason::DropReason,
    flow::{Bucket, Meta},
    open::choose,
    outcome::{Action, Outcome},
    protocol,
    service::ServiceKey,
};

/// A bucket that is never asked for.
#[derive(Clone, Copy)]
struct NoBucket;

impl Bucket<V4> for NoBucket {
    fn meta(&self, _: u32) -> Meta {
        Meta(0)
    }
    fn client(&self, _: u32) -> V4 {
        V4::default()
    }
    fn frontend(&self, _: u32) -> V4 {
        V4::default()
    }
    fn exchange(&self, _: u32, _: Meta, _: Meta) -> bool {
        false
    }
    fn try_lock(&self) -> bool {
        false
    }
    fn unlock(&self) {}
    fn publish(&self, _: u32, _: Meta) {}
    fn write(&self, _: u32, _: V4, _: V4) {}
}

/// One service whose tables lie one after the other, a line each, all lanes the same backend unless said otherwise.
struct World {
    entry: ServiceEntry,
    lines: Vec<[u32; LANES]>,
    backends: Vec<Backend>,
    loads: RefCell<Vec<Load>>,
    away: u32,
    ranges: Box<dyn Fn(u32, V4) -> bool>,
    affinity: RefCell<HashMap<AffinityKey, AffinityEntry>>,
    room: usize,
    now: u64,
}

const FRONTEND: [u8; 4] = [10, 96, 0, 1];

impl World {
    /// Backends 0 (preferred), 1 (other) and 2 (local only).
    fn new(flags: u32) -> Self {
        let table = |first_line| ChoiceTable {
            first_line,
            lines: 1,
        };
        let backend = |offers| Backend {
            state: state::LIVE,
            offers,
            ..Backend::default()
        };
        Self {
            entry: ServiceEntry {
                flags,
                tables: [table(0), table(1), table(2)],
                ..ServiceEntry::default()
            },
            lines: vec![[0; LANES], [1; LANES], [2; LANES]],
            backends: vec![
                backend(offers::CLUSTER),
                backend(offers::CLUSTER),
                backend(offers::LOCAL),
            ],
            loads: RefCell::new(vec![
                Load {
                    connections: 0,
                    weight: 100
                };
                3
            ]),
            away: 0,
            ranges: Box::new(|_, _| false),
            affinity: RefCell::default(),
            room: 1_000,
            now: 1_000_000_000_000,
        }
    }

    fn choose(&self, client: [u8; 4], port: u16, origin: Origin) -> Outcome {
        let client = V4::from_octets(client);
        let key = ServiceKey::new(V4::from_octets(FRONTEND), Be16::new(80), protocol::TCP);
        let hash = hash::of_client(7, client, Be16::new(port), protocol::TCP);
        choose(client, &key, hash, origin, self)
    }

    /// How often each backend is chosen by clients with different ports.
    fn shares(&self, origin: Origin) -> [u32; 3] {
        let mut shares = [0; 3];
        for port in 0..10_000 {
            let outcome = self.choose([10, 0, 0, 9], port, origin);
            assert_eq!(outcome.action(), Action::Rechoose);
            shares[usize::try_from(outcome.number()).expect("a small number")] += 1;
        }
        shares
    }
}

impl Tables<V4> for World {
    type Bucket = NoBucket;

    fn seed(&self) -> u64 {
        7
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn node_address(&self) -> V4 {
        V4::default()
    }
    fn flows(&self, _: u64) -> Option<NoBucket> {
        None
    }
    fn source_nat(&self, _: u32) -> Option<NoBucket> {
        None
    }
    fn service(&self, key: &ServiceKey<V4>) -> Option<&ServiceEntry> {
        (key.address == V4::from_octets(FRONTEND)).then_some(&self.entry)
    }
    fn choice(&self, place: Place) -> Option<u32> {
        let line = self.lines.get(usize::try_from(place.line).ok()?)?;
        line.get(usize::try_from(place.lane).ok()?).copied()
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(usize::try_from(id).ok()?)
    }
    fn away(&self, _: u32) -> u32 {
        self.away
    }
    fn load(&self, backend: u32) -> Option<Load> {
        let loads = self.loads.borrow();
        loads.get(usize::try_from(backend).ok()?).copied()
    }
    fn add_connection(&self, backend: u32) {
        self.loads.borrow_mut()[usize::try_from(backend).expect("small")].connections += 1;
    }
    fn is_in_ranges(&self, set: u32, client: V4) -> bool {
        (self.ranges)(set, client)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) {
        let mut map = self.affinity.borrow_mut();
        if map.contains_key(key) || map.len() < self.room {
            map.insert(*key, *entry);
        }
    }
}

#[test]
fn the_share_that_is_to_leave_leaves() {
    let mut world = World::new(flags::LOAD_AWARE);
    assert_eq!(
        world.shares(Origin::Pod),
        [10_000, 0, 0],
        "all stay at first"
    );
    world.away = ALL / 4;
    let [stay, leave, _] = world.shares(Origin::Pod);
    assert!(stay.abs_diff(7_500) < 200, "{stay} stay and {leave} leave");
    world.away = ALL;
    assert_eq!(world.shares(Origin::Pod), [0, 10_000, 0]);
    world.entry.flags = 0;
    assert_eq!(world.shares(Origin::Pod), [10_000, 0, 0], "not load-aware");
}

#[test]
fn a_growing_share_only_adds_to_those_that_leave() {
    let mut world = World::new(flags::LOAD_AWARE);
    let mut gone = [false; 1_000];
    for away in (0..=ALL).step_by(4_096) {
        world.away = away;
        for (port, gone) in (0..).zip(&mut gone) {
            let leaves = world.choose([10, 0, 0, 9], port, Origin::Pod).number() == 1;
            assert!(leaves || !*gone, "port {port} came back at {away}");
            *gone = leaves;
        }
    }
    assert!(gone.iter().all(|gone| *gone));
}

#[test]
fn policies_of_local_concern_their_own_clients() {
    let world = World::new(flags::EXTERNAL | flags::EXTERNAL_LOCAL);
    assert_eq!(world.shares(Origin::Uplink), [0, 0, 10_000]);
    assert_eq!(
        world.shares(Origin::Pod),
        [10_000, 0, 0],
        "pods that call an external address get any backend"
    );
    let world = World::new(flags::EXTERNAL | flags::INTERNAL_LOCAL);
    assert_eq!(world.shares(Origin::Pod), [0, 0, 10_000]);
    assert_eq!(world.shares(Origin::Uplink), [10_000, 0, 0]);
}

#[test]
fn nobody_serves_in_two_ways() {
    let mut world = World::new(flags::EXTERNAL | flags::EXTERNAL_LOCAL | flags::INTERNAL_LOCAL);
    world.entry.tables[table::LOCAL_ONLY] = ChoiceTable::default();
    let here = world.choose([10, 0, 0, 9], 1, Origin::Pod);
    assert_eq!(
        (here.action(), here.reason()),
        (Action::Refuse, DropReason::NoBackend.index())
    );
    let outside = world.choose([10, 0, 0, 9], 1, Origin::Uplink);
    assert_eq!(outside, Outcome::drop(DropReason::NoLocalBackend));
    world.entry.tables = [ChoiceTable::default(); 3];
    let outside = world.choose([10, 0, 0, 9], 1, Origin::Uplink);
    assert_eq!(outside.action(), Action::Refuse);
}

#[test]
fn source_ranges_are_asked_before_anything_is_chosen() {
    let mut world = World::new(flags::EXTERNAL | flags::SOURCE_RANGES);
    world.entry.source_ranges = 5;
    world.ranges = Box::new(|set, client| set == 5 && client == V4::from_octets([10, 0, 0, 9]));
    for origin in [Origin::Pod, Origin::Uplink] {
        let admitted = world.choose([10, 0, 0, 9], 1, origin);
        assert_eq!(admitted.action(), Action::Rechoose);
        let other = world.choose([10, 0, 0, 8], 1, origin);
        assert_eq!(other, Outcome::drop(DropReason::OutOfRange));
    }
}

/// A world with affinity whose preferred table has all three backends.
fn sticky() -> World {
    let mut world = World::new(0);
    world.entry.affinity_seconds = 60;
    for (lane, backend) in (0..3).cycle().enumerate().take(LANES) {
        world.lines[0][lane] = backend;
    }
    for backend in &mut world.backends {
        backend.offers = offers::CLUSTER;
    }
    world
}

#[test]
fn a_client_keeps_its_backend_until_its_time_is_over() {
    let mut world = sticky();
    let first = world.choose([10, 0, 0, 9], 1, Origin::Pod).number();
    // Another backend is now what the tables say.
    let other = (first + 1) % 3;
    world.lines[0] = [other; LANES];
    for port in 2..100 {
        world.now += 50_000_000_000;
        let again = world.choose([10, 0, 0, 9], port, Origin::Pod).number();
        assert_eq!(again, first, "each new flow starts the time anew");
    }
    world.now += 61_000_000_000;
    assert_eq!(world.choose([10, 0, 0, 9], 1, Origin::Pod).number(), other);
}

#[test]
fn a_client_leaves_a_backend_that_takes_no_new_flows() {
    let gone = |change: fn(&mut Backend)| {
        let mut world = sticky();
        let first = world.choose([10, 0, 0, 9], 1, Origin::Pod).number();
        change(&mut world.backends[usize::try_from(first).expect("small")]);
        let other = (first + 1) % 3;
        world.lines[0] = [other; LANES];
        assert_eq!(world.choose([10, 0, 0, 9], 2, Origin::Pod).number(), other);
        // And stays with the one that it has now.
        world.lines[0] = [(first + 2) % 3; LANES];
        assert_eq!(world.choose([10, 0, 0, 9], 3, Origin::Pod).number(), other);
    };
    gone(|backend| backend.state = state::REMOVED);
    gone(|backend| backend.state = state::GONE);
    gone(|backend| backend.offers = 0);
    gone(|backend| backend.service = 9);
}

#[test]
fn a_full_map_of_affinity_still_keeps_clients_together() {
    let mut world = sticky();
    world.room = 0;
    let mut seen = [false; 3];
    for last in 0..200 {
        let first = world.choose([10, 0, 0, last], 1, Origin::Pod).number();
        seen[usize::try_from(first).expect("small")] = true;
        for port in 2..20 {
            let again = world.choose([10, 0, 0, last], port, Origin::Pod).number();
            assert_eq!(again, first);
        }
    }
    assert_eq!(seen, [true; 3], "different clients get different backends");
}

#[test]
fn affinity_to_a_backend_elsewhere_does_not_outlive_a_policy_of_local() {
    let mut world = sticky();
    world.entry.flags = flags::INTERNAL_LOCAL | flags::EXTERNAL;
    world.backends[2].offers = offers::CLUSTER | offers::LOCAL;
    world.lines[0] = [0; LANES];
    assert_eq!(world.choose([10, 0, 0, 9], 1, Origin::Uplink).number(), 0);
    assert_eq!(world.choose([10, 0, 0, 9], 1, Origin::Pod).number(), 2);
}

#[test]
fn of_two_backends_the_less_busy_is_chosen() {
    let mut world = World::new(flags::LEAST_CONNECTIONS);
    for (lane, backend) in (0..3).cycle().enumerate().take(LANES) {
        world.lines[0][lane] = backend;
    }
    for port in 0..3_000 {
        let chosen = world.choose([10, 0, 0, 9], port, Origin::Pod).number();
        world.add_connection(chosen);
    }
    let loads: Vec<_> = world
        .loads
        .borrow()
        .iter()
        .map(|load| load.connections)
        .collect();
    let (most, least) = (loads.iter().max(), loads.iter().min());
    assert!(
        most.zip(least)
            .is_some_and(|(most, least)| most - least < 20),
        "{loads:?}"
    );
}

#[test]
fn loads_are_compared_by_weight() {
    let load = |connections, weight| Load {
        connections,
        weight,
    };
    assert!(load(0, 100).is_less_than(load(1, 100)));
    assert!(!load(1, 100).is_less_than(load(1, 100)));
    assert!(load(3, 200).is_less_than(load(2, 100)));
    assert!(load(u32::MAX - 1, u32::MAX).is_less_than(load(u32::MAX, u32::MAX)));
}
