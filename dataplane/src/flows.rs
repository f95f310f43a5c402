//! The flow tables from userspace: listing flows, and taking out those that have aged.
//!
//! A program may write the same words at the same time. A flow is taken out by a compare-and-exchange of the meta word
//! that was judged, so that a flow of which a packet is seen meanwhile stays.

use std::{collections::BTreeMap, net::IpAddr, sync::atomic::Ordering};

use portolan_abi::{
    address::{V4, V6},
    backend::{MAX_BACKENDS, state},
    bytes::Be32,
    flow::{BucketV4, BucketV6, Meta, SLOTS, Stage},
    masquerade::WORLD,
    protocol,
    socket_table::kind,
};

use crate::{
    backends,
    choice::locality_of,
    frontends,
    maps::Maps,
    model::{Flow, Locality, Protocol, ServiceName},
    sys::{self, Mapped, Plain},
    translations::{self, Given},
};

/// Where the words of a slot lie in a bucket of a family.
trait Layout: Plain {
    const SLOT_BYTES: usize;
    const META: usize;
    fn addresses(words: impl Fn(usize) -> u64) -> (IpAddr, IpAddr);
}

impl Layout for BucketV4 {
    const SLOT_BYTES: usize = 16;
    const META: usize = 8;

    fn addresses(words: impl Fn(usize) -> u64) -> (IpAddr, IpAddr) {
        let both = words(0);
        let half = |bits: u64| {
            let bits = u32::try_from(bits & 0xffff_ffff).unwrap_or_default();
            IpAddr::from(V4(Be32(bits)).octets())
        };
        (half(both), half(both >> 32))
    }
}

impl Layout for BucketV6 {
    const SLOT_BYTES: usize = 64;
    const META: usize = 0;

    fn addresses(words: impl Fn(usize) -> u64) -> (IpAddr, IpAddr) {
        let address = |first: usize| IpAddr::from(V6([words(first), words(first + 1)]).octets());
        (address(1), address(3))
    }
}

/// Calls `visit` with the place and the meta word of every flow of a table.
fn each<B: Layout>(table: &Mapped<B>, mut visit: impl FnMut(u32, usize, Meta)) {
    for bucket in 0..table.len() {
        for slot in 0..SLOTS as usize {
            let at = slot * B::SLOT_BYTES;
            let meta = Meta(table.word(bucket, at + B::META).load(Ordering::Acquire));
            if meta.stage() != Stage::EMPTY {
                visit(bucket, at, meta);
            }
        }
    }
}

/// How many flows and translated sockets each backend id has, over or not, and how many flows there are and went.
#[derive(Debug)]
pub struct Census {
    referring: Vec<u32>,
    open: Vec<u32>,
    pub live: u64,
    pub expired: u64,
    /// How many flows are in each of the tables: of IPv4, of IPv6, and of both those that have a port of the node's.
    pub by_table: [u64; 4],
}

impl Census {
    /// Whether a flow refers to the id.
    pub fn is_referred(&self, id: u32) -> bool {
        self.referring
            .get(id as usize)
            .is_none_or(|flows| *flows != 0)
    }

    fn note(&mut self, backend: usize, is_open: u32) {
        if let (Some(referring), Some(open)) =
            (self.referring.get_mut(backend), self.open.get_mut(backend))
        {
            *referring += 1;
            *open += is_open;
        }
    }

    /// How many flows of the id are not over.
    pub fn open(&self, id: u32) -> u32 {
        self.open.get(id as usize).copied().unwrap_or(0)
    }
}

/// Takes out the flows that have aged.
pub fn sweep(maps: &Maps) -> Census {
    let ids = maps.backends.len().min(MAX_BACKENDS) as usize;
    let mut census = Census {
        referring: vec![0; ids],
        open: vec![0; ids],
        live: 0,
        expired: 0,
        by_table: [0; 4],
    };
    let mut before = 0;
    let mut since = |census: &Census| census.live - std::mem::replace(&mut before, census.live);
    sweep_table(&maps.flows_v4, &mut census);
    census.by_table[0] = since(&census);
    sweep_table(&maps.flows_v6, &mut census);
    census.by_table[1] = since(&census);
    sweep_table(&maps.source_nat_v4, &mut census);
    census.by_table[2] = since(&census);
    sweep_table(&maps.source_nat_v6, &mut census);
    census.by_table[3] = since(&census);
    translations::each_backend(maps, |id| census.note(id as usize, 1));
    census
}

fn sweep_table<B: Layout>(table: &Mapped<B>, census: &mut Census) {
    each(table, |bucket, at, meta| {
        // The clock is read after the word: a flow is never judged by a time before its last packet.
        if meta.is_stale(sys::clock::now()) {
            let empty = meta.0 & Meta::LOCK;
            let word = table.word(bucket, at + B::META);
            if word
                .compare_exchange(meta.0, empty, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                census.expired += 1;
                return;
            }
        }
        census.live += 1;
        let open = u32::from(!meta.stage().is_over());
        census.note(meta.backend() as usize, open);
    });
}

/// Takes every TCP flow that is being opened for established.
pub fn establish(maps: &Maps) {
    let now = sys::clock::now();
    establish_table(&maps.flows_v4, now);
    establish_table(&maps.flows_v6, now);
}

fn establish_table<B: Layout>(table: &Mapped<B>, now: u64) {
    each(table, |bucket, at, meta| {
        if meta.stage() == Stage::TCP_SYN {
            let established = meta.at(Stage::TCP_ESTABLISHED, now);
            table
                .word(bucket, at + B::META)
                .store(established.0, Ordering::Release);
        }
    });
}

/// Takes every routed flow out.
pub fn forget(maps: &Maps) {
    forget_table(&maps.flows_v4);
    forget_table(&maps.flows_v6);
}

fn forget_table<B: Layout>(table: &Mapped<B>) {
    each(table, |bucket, at, _| {
        table.word(bucket, at + B::META).store(0, Ordering::Release);
    });
}

/// Every flow.
pub fn list(maps: &Maps, names: &BTreeMap<u32, ServiceName>) -> Vec<Flow> {
    let mut flows = Vec::new();
    list_table(&maps.flows_v4, maps, names, &mut flows);
    list_table(&maps.flows_v6, maps, names, &mut flows);
    list_table(&maps.source_nat_v4, maps, names, &mut flows);
    list_table(&maps.source_nat_v6, maps, names, &mut flows);
    flows.extend(translations::list(maps).filter_map(|given| of_socket(maps, names, given)));
    flows
}

/// What a socket was given, as a flow: its port and its age are the kernel's alone to know.
fn of_socket(maps: &Maps, names: &BTreeMap<u32, ServiceName>, given: Given) -> Option<Flow> {
    if given.backend >= maps.backends.len() {
        return None;
    }
    let backend = maps.backends.get(given.backend);
    let service = names
        .get(&backend.service)
        .filter(|_| backend.state != state::FREE);
    Some(Flow {
        protocol: frontends::protocol(given.protocol),
        client: (given.client, 0),
        frontend: given.frontend,
        backend: (backends::address(&backend), backend.port.get()),
        service: service.cloned(),
        locality: locality_of(backend.class),
        idle_seconds: 0,
        state: match given.kind {
            kind::NAMED => "socket-sends",
            _ => "socket-connected",
        }
        .to_owned(),
    })
}

fn list_table<B: Layout>(
    table: &Mapped<B>,
    maps: &Maps,
    names: &BTreeMap<u32, ServiceName>,
    flows: &mut Vec<Flow>,
) {
    each(table, |bucket, at, meta| {
        let (client, frontend) =
            B::addresses(|word| table.word(bucket, at + word * 8).load(Ordering::Acquire));
        let again = Meta(table.word(bucket, at + B::META).load(Ordering::Acquire));
        let protocol = match meta.stage().protocol() {
            protocol::TCP => Protocol::Tcp,
            protocol::UDP => Protocol::Udp,
            protocol::SCTP => Protocol::Sctp,
            // Echoes are no flows to those who ask.
            _ => return,
        };
        if !meta.is_same_flow(again) {
            return;
        }
        let ports = meta.ports();
        let mut flow = Flow {
            protocol,
            client: (client, ports.client.get()),
            frontend: (frontend, ports.frontend.get()),
            backend: (frontend, ports.frontend.get()),
            service: None,
            locality: Locality::Elsewhere,
            idle_seconds: meta.idle_nanoseconds(sys::clock::now()) / 1_000_000_000,
            state: meta.stage().name().to_owned(),
        };
        if meta.backend() == WORLD {
            flows.push(flow);
            return;
        }
        if meta.backend() >= maps.backends.len() {
            return;
        }
        let backend = maps.backends.get(meta.backend());
        let name = names
            .get(&backend.service)
            .filter(|_| backend.state != state::FREE);
        flow.backend = (backends::address(&backend), backend.port.get());
        flow.service = name.cloned();
        flow.locality = locality_of(backend.class);
        flows.push(flow);
    });
}
