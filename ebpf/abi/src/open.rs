//! A client's packet that no slot answers for: the service chooses a backend, and the flow gets a slot.

use crate::{
    address::Address,
    affinity::{self, AffinityKey},
    backend::{Backend, delivery, offers},
    bytes::Be16,
    choice,
    client::{flow_key, home},
    drop_reason::{DropReason, Event},
    flow::{Bucket, Meta, SLOTS, Stage},
    flow_table::{self, Inserted, Insertion, Victim},
    hash,
    network::kind,
    outcome::Outcome,
    parse::Packet,
    service::{ServiceEntry, ServiceKey, flags, table},
    source_nat,
    tables::{Hook, Origin, Stages, Tables},
    tcp,
};

/// The backend that no flow leaves, since ids have twenty bits.
pub const NOBODY: u32 = u32::MAX;

/// Chooses a backend and gives the flow its slot, if a service is concerned. `leaves` is the backend that the flow had
/// so far, or [`NOBODY`].
///
/// Each stage is called from here and none from another: kernels before 6.2 have little stack for nested calls.
#[inline(always)]
pub fn open<A: Address, T: Stages<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    leaves: u32,
    tables: &T,
) -> Outcome {
    let chosen = tables.choose(packet, hash, hook);
    if chosen.is_settled() {
        return chosen;
    }
    let id = chosen.number();
    if !chosen.takes_port() {
        let given = tables.give_slot(packet, hash, id, leaves);
        if given != Outcome::UNKNOWN {
            return given;
        }
    }
    give_any_port(packet, hash, id, leaves, tables)
}

/// Whether the packets of a flow leave the node by the uplink that its replies come back by.
#[inline(always)]
pub const fn is_transit(delivery: u8, source_nat: bool) -> bool {
    match delivery {
        delivery::GATEWAY | delivery::DIRECT => true,
        delivery::NEIGHBOUR => source_nat,
        _ => false,
    }
}

/// Whether a backend is beyond the cluster, so that a pod's own address means nothing to it.
#[inline(always)]
fn is_beyond<A: Address, T: Tables<A>>(backend: &Backend, tables: &T) -> bool {
    backend.delivery == delivery::NEIGHBOUR
        && tables.masquerades()
        && tables.network(A::from_words(backend.address)) & kind::INSIDE == 0
}

/// [`choose`] for the client that sent a packet, and whether the node's address must stand in for the client's.
#[inline(always)]
pub fn choose_for<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    tables: &T,
) -> Outcome {
    let key = knocked_at(packet, hook, tables);
    // A process that speaks from a loopback address is a client with the node's. One that speaks to a loopback address is
    // given a port, too, so that the flow table has no loopback address: what is on a wire finds no such flow there.
    let is_loopback = hook.is_node() && packet.source.is_loopback();
    let takes_port = is_loopback || hook.is_node() && packet.destination.is_loopback();
    let client = if is_loopback {
        tables.node_address()
    } else {
        packet.source
    };
    let chosen = choose(client, &key, hash, hook.origin(), tables);
    if chosen.is_settled() {
        return chosen;
    }
    let Some(backend) = tables.backend(chosen.number()) else {
        return Outcome::PASS;
    };
    let itself = backend.is_at(packet.source, backend.port);
    let keeps_source = backend.delivery != delivery::NEIGHBOUR;
    let source_nat = itself
        || takes_port
        || (hook.is_uplink() && !keeps_source)
        || (hook == Hook::POD && is_beyond(backend, tables));
    if hook.is_transit_only() && !is_transit(backend.delivery, source_nat) {
        return Outcome::PASS;
    }
    if !source_nat {
        return chosen;
    }
    if tables.node_address() == A::default() {
        return Outcome::drop(DropReason::NoNodeAddress);
    }
    chosen.with_port()
}

/// What a client knocked at, as this node knows it: another node's node port is one of its own, and to processes of the
/// node itself a node port belongs to its loopback addresses too, as kube-proxy has it.
#[inline(always)]
pub fn knocked_at<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hook: Hook,
    tables: &T,
) -> ServiceKey<A> {
    let is_nodes = hook.is_node() && packet.destination.has_node_ports()
        || hook.is_tunnel() && tables.network(packet.destination) & kind::NODE != 0;
    let address = if is_nodes {
        tables.node_address()
    } else {
        packet.destination
    };
    ServiceKey::new(address, packet.destination_port, packet.protocol)
}

/// Whether a service is concerned with a packet for an address. IPv4's loopback addresses have node ports alone.
#[inline(always)]
pub fn is_concerned<A: Address>(service: &ServiceEntry, destination: A) -> bool {
    !destination.has_node_ports() || service.flags & flags::NODE_PORT != 0
}

/// Whether a service is concerned, and if so a backend for a client's new flow: [`Outcome::rechoose`] with its id.
/// `hash` is what [`hash::of_client`] gives. Hooks that see sockets and not packets ask the same.
#[inline(always)]
pub fn choose<A: Address, T: Tables<A>>(
    client: A,
    key: &ServiceKey<A>,
    hash: u64,
    origin: Origin,
    tables: &T,
) -> Outcome {
    match tables.service(key) {
        Some(service) => choose_of(service, client, key, hash, origin, tables),
        None => Outcome::PASS,
    }
}

/// [`choose`] of a service that is known already.
#[inline(always)]
pub fn choose_of<A: Address, T: Tables<A>>(
    service: &ServiceEntry,
    client: A,
    key: &ServiceKey<A>,
    hash: u64,
    origin: Origin,
    tables: &T,
) -> Outcome {
    if !matches!(origin, Origin::Pod) && service.flags & flags::EXTERNAL == 0 {
        return Outcome::drop(DropReason::NotExternal);
    }
    if service.flags & flags::SOURCE_RANGES != 0
        && !tables.is_in_ranges(service.source_ranges, client)
    {
        return Outcome::drop(DropReason::OutOfRange);
    }
    let local_only = choice::is_local_only(service, origin);
    let sticks = service.affinity_seconds != 0;
    let hash = if sticks {
        hash::of_affinity(client)
    } else {
        hash::of_choice(hash, key.address, key.port)
    };
    let table = choice::table(service, local_only, hash, tables);
    if table.lines == 0 {
        return nobody(service, origin);
    }
    if !sticks {
        return match choice::backend(service, table, hash, tables) {
            Some(id) => Outcome::rechoose(id),
            None => Outcome::refuse(DropReason::NoBackend, service.id),
        };
    }
    let key = AffinityKey::new(client, service.id);
    let had = affinity::recall(&key, service, local_only, tables);
    match had.or_else(|| choice::backend(service, table, hash, tables)) {
        Some(id) => {
            affinity::remember(&key, id, tables);
            Outcome::rechoose(id)
        }
        None => Outcome::refuse(DropReason::NoBackend, service.id),
    }
}

/// What becomes of a client that no backend may serve. As kube-proxy has it, one from beyond the cluster is not told
/// that it came to the wrong node: what sends it here is about to learn that, and the client tries again.
#[inline(always)]
fn nobody(service: &ServiceEntry, origin: Origin) -> Outcome {
    // A refusal would go to the node that sent the packet on, not to the client.
    let is_tunnel = matches!(origin, Origin::Tunnel);
    let has_others = service.tables[table::PREFERRED].lines != 0;
    if is_tunnel || (matches!(origin, Origin::Uplink) && has_others) {
        Outcome::drop(DropReason::NoLocalBackend)
    } else {
        Outcome::refuse(DropReason::NoBackend, service.id)
    }
}

#[inline(always)]
fn insertion(leaves: u32, at_most: Victim) -> Insertion {
    Insertion { leaves, at_most }
}

/// Whether a live flow would look the same to the backend as a client's new one: the same client port, towards another
/// frontend, at the same backend. Its replies could not be told from the new one's. Such flows that are over are taken out.
#[inline(always)]
fn has_twin<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    bucket: &T::Bucket,
    backend: &Backend,
    now: u64,
    tables: &T,
) -> bool {
    let stages = Stage::all_of(packet.protocol);
    let mut slot = 0;
    while slot < SLOTS {
        let meta = bucket.meta(slot);
        let is_twin = meta.client_port() == packet.source_port
            && meta.stage().is_in(stages)
            && bucket.client(slot) == packet.source
            && !(meta.has_ports(flow_key(packet).ports)
                && bucket.frontend(slot) == packet.destination)
            && match tables.backend(meta.backend()) {
                Some(other) => other.address == backend.address && other.port == backend.port,
                None => false,
            };
        if is_twin {
            if !meta.stage().is_over() && !meta.is_stale(now) {
                return true;
            }
            bucket.exchange(slot, meta, Meta(meta.0 & Meta::LOCK));
        }
        slot += 1;
    }
    false
}

/// A slot in the flow table: the backend sees the client's own address. [`Outcome::UNKNOWN`] if the flow needs a port of
/// the node's, lest the backend take it for another.
#[inline(always)]
pub fn give_slot<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    backend: u32,
    leaves: u32,
    tables: &T,
) -> Outcome {
    let forward = Outcome::forward(backend, Be16(0));
    let Some(bucket) = tables.flows(hash) else {
        return forward;
    };
    let now = tables.now();
    if let Some(entry) = tables.backend(backend)
        && has_twin(packet, &bucket, entry, now, tables)
        && tables.node_address() != A::default()
    {
        return Outcome::UNKNOWN;
    }
    let key = flow_key(packet);
    let meta = Meta::new(key.ports, backend, tcp::first(packet.protocol), now);
    let wish = insertion(leaves, Victim::Confirmed);
    let inserted = flow_table::insert(&bucket, home(hash), &key, meta, wish, now);
    match inserted.kind() {
        Inserted::NEW => {
            count_connection(backend, tables);
            count(forward.opened(), inserted.victim())
        }
        Inserted::EXISTING => Outcome::forward(inserted.meta_of(&bucket).backend(), Be16(0)),
        // The hash gives the next packet the same backend, and that packet will find a slot.
        _ => forward.with(Event::ForwardedWithoutSlot),
    }
}

/// A port of the node's with its slot: first in the flow's first bucket, then in its second, then one of a flow that
/// no backend has answered.
#[inline(always)]
pub fn give_any_port<A: Address, T: Stages<A>>(
    packet: &Packet<A>,
    hash: u64,
    backend: u32,
    leaves: u32,
    tables: &T,
) -> Outcome {
    let mut attempt = 0;
    while attempt < PORT_ATTEMPTS {
        let given = tables.give_port(packet, hash, backend, leaves, attempt);
        if given != Outcome::UNKNOWN {
            return given;
        }
        attempt += 1;
    }
    Outcome::drop(DropReason::PortsExhausted)
}

/// How many attempts to give a port there are.
const PORT_ATTEMPTS: u32 = 3;

/// One attempt of [`give_any_port`]; [`Outcome::UNKNOWN`] if it fails.
#[inline(always)]
pub fn give_port<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    backend: u32,
    leaves: u32,
    attempt: u32,
    tables: &T,
) -> Outcome {
    let now = tables.now();
    let key = flow_key(packet);
    let meta = Meta::new(key.ports, backend, tcp::first(packet.protocol), now);
    let index = source_nat::bucket_of_client(hash, packet.protocol, attempt == 1);
    let Some(bucket) = tables.source_nat(index) else {
        return Outcome::drop(DropReason::TableBusy);
    };
    let at_most = if attempt == PORT_ATTEMPTS - 1 {
        Victim::Unconfirmed
    } else {
        Victim::Over
    };
    let wish = insertion(leaves, at_most);
    let inserted = flow_table::insert(&bucket, home(hash), &key, meta, wish, now);
    let port = source_nat::port_of_place(index, inserted.slot());
    match inserted.kind() {
        Inserted::NEW => {
            count_connection(backend, tables);
            count(Outcome::forward(backend, port).opened(), inserted.victim())
        }
        Inserted::EXISTING => Outcome::forward(inserted.meta_of(&bucket).backend(), port),
        Inserted::BUSY => Outcome::drop(DropReason::TableBusy),
        _ => Outcome::UNKNOWN,
    }
}

/// Counts a flow that begins, if its service asks how many a backend has.
#[inline(always)]
fn count_connection<A: Address, T: Tables<A>>(backend: u32, tables: &T) {
    if tables
        .backend(backend)
        .is_some_and(|entry| entry.offers & offers::COUNTED != 0)
    {
        tables.add_connection(backend);
    }
}

#[inline(always)]
fn count(outcome: Outcome, victim: u32) -> Outcome {
    if victim == Victim::Unconfirmed as u32 {
        outcome.with(Event::EvictedUnconfirmed)
    } else if victim == Victim::Confirmed as u32 {
        outcome.with(Event::EvictedConfirmed)
    } else {
        outcome
    }
}
