//! A client's packet that no slot answers for: the service chooses a backend, and the flow gets a slot.

use crate::{
    address::Address,
    backend::delivery,
    bytes::Be16,
    choice,
    client::{flow_key, home},
    drop_reason::{DropReason, Event},
    flow::Meta,
    flow_table::{self, Inserted, Insertion, Victim},
    hash,
    outcome::Outcome,
    parse::Packet,
    service::{ServiceKey, flags},
    source_nat,
    tables::{Hook, Origin, Stages, Tables},
    tcp,
};

/// The backend that no flow leaves, since ids have twenty bits.
pub const NOBODY: u32 = u32::MAX;

/// Chooses a backend and gives the flow its slot, if a service is concerned. `leaves` is the backend that the flow had
/// so far, or [`NOBODY`].
#[inline(always)]
pub fn open<A: Address, T: Stages<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    leaves: u32,
    tables: &T,
) -> Outcome {
    let chosen = choose(packet, hash, hook.origin(), tables);
    if chosen.is_settled() {
        return chosen;
    }
    let id = chosen.number();
    let Some(backend) = tables.backend(id) else {
        return Outcome::PASS;
    };
    let itself = backend.is_at(packet.source, backend.port);
    let source_nat = itself || (hook.is_uplink() && backend.delivery != delivery::PEER);
    if hook.is_transit_only() && (!source_nat || backend.delivery != delivery::NEIGHBOUR) {
        return Outcome::PASS;
    }
    if source_nat {
        if tables.node_address() == A::default() {
            return Outcome::drop(DropReason::NoNodeAddress);
        }
        tables.give_port(packet, hash, id, leaves)
    } else {
        tables.give_slot(packet, hash, id, leaves)
    }
}

/// Whether a service is concerned, and if so a backend for the flow: [`Outcome::rechoose`] with its id.
#[inline(always)]
fn choose<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    origin: Origin,
    tables: &T,
) -> Outcome {
    let key = ServiceKey::new(packet.destination, packet.destination_port, packet.protocol);
    let Some(service) = tables.service(&key) else {
        return Outcome::PASS;
    };
    if matches!(origin, Origin::Uplink) && service.flags & flags::EXTERNAL == 0 {
        return Outcome::drop(DropReason::NotExternal);
    }
    let table = choice::table(service, origin);
    if table.lines == 0 {
        return Outcome::refuse(DropReason::NoBackend, service.id);
    }
    let place = choice::place(
        table,
        hash::of_choice(hash, packet.destination, packet.destination_port),
    );
    match tables.choice(place) {
        Some(id) => Outcome::rechoose(id),
        None => Outcome::refuse(DropReason::NoBackend, service.id),
    }
}

#[inline(always)]
fn insertion(leaves: u32, at_most: Victim) -> Insertion {
    Insertion { leaves, at_most }
}

/// A slot in the flow table: the backend sees the client's own address.
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
    let key = flow_key(packet);
    let meta = Meta::new(key.ports, backend, tcp::first(packet.protocol), now);
    let wish = insertion(leaves, Victim::Confirmed);
    let inserted = flow_table::insert(&bucket, home(hash), &key, meta, wish, now);
    match inserted.kind() {
        Inserted::NEW => count(forward.opened(), inserted.victim()),
        Inserted::EXISTING => Outcome::forward(inserted.meta_of(&bucket).backend(), Be16(0)),
        // The hash gives the next packet the same backend, and that packet will find a slot.
        _ => forward.with(Event::ForwardedWithoutSlot),
    }
}

/// A port of the node's with its slot: first in the flow's first bucket, then in its second, then one of a flow that
/// no backend has answered.
#[inline(always)]
pub fn give_port<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    backend: u32,
    leaves: u32,
    tables: &T,
) -> Outcome {
    let now = tables.now();
    let key = flow_key(packet);
    let meta = Meta::new(key.ports, backend, tcp::first(packet.protocol), now);
    let mut attempt = 0;
    while attempt < 3 {
        let index = source_nat::bucket_of_client(hash, packet.protocol, attempt == 1);
        let Some(bucket) = tables.source_nat(index) else {
            return Outcome::drop(DropReason::TableBusy);
        };
        let at_most = if attempt == 2 {
            Victim::Unconfirmed
        } else {
            Victim::Over
        };
        let inserted = flow_table::insert(
            &bucket,
            home(hash),
            &key,
            meta,
            insertion(leaves, at_most),
            now,
        );
        let port = source_nat::port_of_place(index, inserted.slot());
        match inserted.kind() {
            Inserted::NEW => {
                return count(Outcome::forward(backend, port).opened(), inserted.victim());
            }
            Inserted::EXISTING => {
                return Outcome::forward(inserted.meta_of(&bucket).backend(), port);
            }
            Inserted::BUSY => return Outcome::drop(DropReason::TableBusy),
            _ => {}
        }
        attempt += 1;
    }
    Outcome::drop(DropReason::PortsExhausted)
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
