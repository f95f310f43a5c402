//! A backend's packet whose flow may have a slot: it must reach the client as if the frontend had sent it.

use crate::{
    address::Address,
    backend::delivery,
    client::home,
    flow::{Bucket, Meta},
    flow_table, hash,
    masquerade::{self, WORLD},
    outcome::Outcome,
    parse::Packet,
    rewrite::Rewrite,
    source_nat,
    tables::{Hook, Tables},
    tcp::{self, Sender},
};

/// Looks in the flow table.
#[inline(always)]
pub fn from_flows<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hook: Hook,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let client = (packet.destination, packet.destination_port);
    let hash = hash::of_client(tables.seed(), client.0, client.1, packet.protocol);
    let Some(bucket) = tables.flows(hash) else {
        return Outcome::UNKNOWN;
    };
    let mut slot = 0;
    let meta = flow_table::find_reply(
        &bucket,
        home(hash),
        client,
        packet.protocol,
        |id| is_sender(packet, id, tables),
        &mut slot,
    );
    if meta.0 == 0 {
        return Outcome::UNKNOWN;
    }
    if hook.is_transit_only() && !leaves_again(meta.backend(), tables) {
        return Outcome::PASS;
    }
    // A backend that accepts a connection on the tuple of one that is closing accepts a connection to its own address:
    // the client uses its port anew, and this flow must not answer for it.
    if tcp::accepts(packet.tcp_flags) && meta.stage().is_closing() {
        bucket.exchange(slot, meta, Meta(meta.0 & Meta::LOCK));
        return Outcome::UNKNOWN;
    }
    settle(packet, &bucket, slot, meta, tables, rewrite)
}

/// Looks in the source NAT table, where the port that the backend answers to says the slot.
#[inline(always)]
pub fn from_source_nat<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let Some((index, slot)) = source_nat::place_of_port(packet.destination_port, packet.protocol)
    else {
        return Outcome::UNKNOWN;
    };
    let Some(bucket) = tables.source_nat(index) else {
        return Outcome::UNKNOWN;
    };
    let meta = bucket.meta(slot);
    if !meta.stage().is_of(packet.protocol) {
        return Outcome::UNKNOWN;
    }
    let is_answer = if meta.backend() == WORLD {
        masquerade::is_answer(packet, bucket.frontend(slot), meta)
    } else {
        is_sender(packet, meta.backend(), tables)
    };
    if !is_answer {
        return Outcome::UNKNOWN;
    }
    let settled = settle(packet, &bucket, slot, meta, tables, rewrite);
    if settled.is_settled() {
        settled.with_port()
    } else {
        settled
    }
}

/// Whether a packet comes from a backend.
#[inline(always)]
pub fn is_sender<A: Address, T: Tables<A>>(packet: &Packet<A>, backend: u32, tables: &T) -> bool {
    match tables.backend(backend) {
        Some(backend) => backend.is_at(packet.source, packet.source_port),
        None => false,
    }
}

/// Whether a flow's client is a process of the node itself: it has the node's address, or one of them is a loopback address.
#[inline(always)]
pub fn is_nodes<A: Address, T: Tables<A>>(client: A, frontend: A, tables: &T) -> bool {
    client == tables.node_address() || client.is_loopback() || frontend.is_loopback()
}

/// Whether this node is only a gateway to the backend, so that the reply leaves where it came in.
#[inline(always)]
fn leaves_again<A: Address, T: Tables<A>>(backend: u32, tables: &T) -> bool {
    match tables.backend(backend) {
        Some(backend) => backend.delivery == delivery::GATEWAY,
        None => false,
    }
}

#[inline(always)]
fn settle<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    bucket: &T::Bucket,
    slot: u32,
    meta: Meta,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    rewrite.source = bucket.frontend(slot);
    rewrite.destination = bucket.client(slot);
    rewrite.source_port = meta.ports().frontend;
    rewrite.destination_port = meta.ports().client;
    // The slot may have been given to another flow since it matched: then nothing that was read may be used.
    if !meta.is_same_flow(bucket.meta(slot)) {
        return Outcome::UNKNOWN;
    }
    let ended = flow_table::refresh(
        bucket,
        slot,
        meta,
        Sender::Backend,
        packet.tcp_flags,
        tables.now(),
    );
    Outcome::reply(meta.backend())
        .ended_if(ended)
        .to_node_if(is_nodes(rewrite.destination, rewrite.source, tables))
}
