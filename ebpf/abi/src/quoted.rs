//! The flow of a packet that an ICMP error quotes, turned around: then it travels the way that the error does, and finds
//! its flow as any packet would. Nothing is written to the flow, as anybody may send an error.

use crate::{
    address::Address,
    bytes::Be16,
    client::{flow_key, home},
    flow::Bucket,
    flow_table, hash,
    masquerade::{self, WORLD},
    outcome::Outcome,
    parse::Packet,
    reply::{is_nodes, is_sender},
    rewrite::Rewrite,
    source_nat,
    tables::{Stages, Tables},
};

/// The flow that a quoted packet belongs to. `rewrite` says what the packet turned around would leave with.
#[inline(always)]
pub fn find<A: Address, T: Stages<A>>(
    about: &Packet<A>,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let hash = hash::of_client(
        tables.seed(),
        about.source,
        about.source_port,
        about.protocol,
    );
    let mut outcome = Outcome::UNKNOWN;
    if about.destination == tables.node_address() {
        outcome = tables.quoted_by_port(about, rewrite);
    }
    if outcome == Outcome::UNKNOWN {
        outcome = tables.quoted_in_source_nat(about, hash, rewrite);
    }
    if outcome == Outcome::UNKNOWN {
        outcome = tables.quoted_in_flows(about, hash, rewrite);
    }
    if outcome == Outcome::UNKNOWN {
        outcome = tables.quoted_reply(about, rewrite);
    }
    outcome
}

/// A client's packet with a source that source NAT gave.
#[inline(always)]
pub fn by_port<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let place = source_nat::place_of_port(about.destination_port, about.protocol);
    let Some((index, slot)) = place else {
        return Outcome::UNKNOWN;
    };
    let Some(bucket) = tables.source_nat(index) else {
        return Outcome::UNKNOWN;
    };
    let found = to_client(about, &bucket, slot, tables, rewrite);
    if found.is_settled() {
        found.with_port()
    } else {
        found
    }
}

/// A reply of a flow of source NAT.
#[inline(always)]
pub fn in_source_nat<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    hash: u64,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let mut second = 0;
    while second < 2 {
        let index = source_nat::bucket_of_client(hash, about.protocol, second == 1);
        if let Some(bucket) = tables.source_nat(index) {
            let outcome = to_backend(about, hash, &bucket, Some(index), tables, rewrite);
            if outcome != Outcome::UNKNOWN {
                return outcome;
            }
        }
        second += 1;
    }
    Outcome::UNKNOWN
}

/// A reply of another flow.
#[inline(always)]
pub fn in_flows<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    hash: u64,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    match tables.flows(hash) {
        Some(bucket) => to_backend(about, hash, &bucket, None, tables, rewrite),
        None => Outcome::UNKNOWN,
    }
}

/// A client's packet with the client's own source.
#[inline(always)]
pub fn reply<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let client = (about.destination, about.destination_port);
    let hash = hash::of_client(tables.seed(), client.0, client.1, about.protocol);
    let Some(bucket) = tables.flows(hash) else {
        return Outcome::UNKNOWN;
    };
    let mut slot = 0;
    let sends = |id| is_sender(about, id, tables);
    let meta = flow_table::find_reply(
        &bucket,
        home(hash),
        client,
        about.protocol,
        sends,
        &mut slot,
    );
    if meta.0 == 0 {
        return Outcome::UNKNOWN;
    }
    to_client(about, &bucket, slot, tables, rewrite)
}

/// The packet was a client's: the error is for the client.
#[inline(always)]
fn to_client<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    bucket: &T::Bucket,
    slot: u32,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let meta = bucket.meta(slot);
    let is_sender = if meta.backend() == WORLD {
        masquerade::is_answer(about, bucket.frontend(slot), meta)
    } else {
        is_sender(about, meta.backend(), tables)
    };
    if !meta.stage().is_of(about.protocol) || !is_sender {
        return Outcome::UNKNOWN;
    }
    rewrite.source = bucket.frontend(slot);
    rewrite.destination = bucket.client(slot);
    rewrite.source_port = meta.ports().frontend;
    rewrite.destination_port = meta.ports().client;
    // The slot may have been given to another flow since it matched.
    if meta.is_same_flow(bucket.meta(slot)) {
        Outcome::reply(meta.backend()).to_node_if(is_nodes(
            rewrite.destination,
            rewrite.source,
            tables,
        ))
    } else {
        Outcome::UNKNOWN
    }
}

/// The packet was a reply: the error is for the backend.
#[inline(always)]
fn to_backend<A: Address, T: Tables<A>>(
    about: &Packet<A>,
    hash: u64,
    bucket: &T::Bucket,
    source_nat: Option<u32>,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let mut slot = 0;
    let meta = flow_table::find(bucket, home(hash), &flow_key(about), &mut slot);
    if meta.0 == 0 {
        return Outcome::UNKNOWN;
    }
    let port = match source_nat {
        None => Be16(0),
        Some(index) => source_nat::port_of_place(index, slot),
    };
    if meta.backend() == WORLD {
        rewrite.source = tables.node_address();
        rewrite.destination = about.destination;
        rewrite.source_port = port;
        rewrite.destination_port = about.destination_port;
    } else {
        let Some(backend) = tables.backend(meta.backend()) else {
            return Outcome::UNKNOWN;
        };
        rewrite.to_backend(about, backend, port, tables.node_address());
    }
    Outcome::forward(meta.backend(), port)
}
