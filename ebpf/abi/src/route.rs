//! The decision on a packet: known flow, reply of a known flow, or a service's new flow, in this order.

use crate::{
    address::Address,
    hash,
    open::{NOBODY, is_concerned, knocked_at, open},
    outcome::{Action, Outcome},
    parse::Packet,
    rewrite::Rewrite,
    tables::{Hook, Stages},
};

/// Decides on a packet and writes its flow's slot. For a reply, `rewrite` says what it leaves with.
#[inline(always)]
pub fn route<A: Address, T: Stages<A>>(
    packet: &Packet<A>,
    hook: Hook,
    tables: &T,
    rewrite: &mut Rewrite<A>,
) -> Outcome {
    let hash = hash::of_client(
        tables.seed(),
        packet.source,
        packet.source_port,
        packet.protocol,
    );
    let to_node = packet.destination == tables.node_address();
    let mut outcome = Outcome::UNKNOWN;
    if to_node {
        outcome = tables.reply_from_source_nat(packet, rewrite);
        // From outside, most flows to the node's own address are source-NATed ones.
        if outcome == Outcome::UNKNOWN && hook.is_uplink() {
            outcome = in_source_nat(packet, hash, hook, tables);
        }
    }
    if outcome == Outcome::UNKNOWN {
        outcome = tables.client_in_flows(packet, hash, hook);
    }
    if outcome == Outcome::UNKNOWN {
        outcome = tables.reply_from_flows(packet, hook, rewrite);
    }
    if outcome.is_settled() {
        return outcome;
    }
    let mut leaves = match outcome.action() {
        Action::Rechoose => outcome.number(),
        _ => NOBODY,
    };
    if leaves == NOBODY && !(to_node && hook.is_uplink()) && !hook.is_tunnel() {
        // A pod that calls itself, or a client of an address that is not the node's own: rare, so looked for last.
        let known = tables.service(&knocked_at(packet, hook, tables));
        if !known.is_some_and(|service| is_concerned(service, packet.destination)) {
            return Outcome::PASS;
        }
        let found = in_source_nat(packet, hash, hook, tables);
        if found.is_settled() {
            return found;
        }
        if found.action() as u8 == Action::Rechoose as u8 {
            leaves = found.number();
        }
    }
    open(packet, hash, hook, leaves, tables)
}

/// Looks in both buckets of the source NAT table.
#[inline(always)]
fn in_source_nat<A: Address, T: Stages<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    tables: &T,
) -> Outcome {
    let first = tables.client_in_source_nat(packet, hash, hook, false);
    if first == Outcome::UNKNOWN {
        tables.client_in_source_nat(packet, hash, hook, true)
    } else {
        first
    }
}
