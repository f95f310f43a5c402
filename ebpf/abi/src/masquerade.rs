//! What pods send to addresses beyond the cluster: it leaves with the node's address, and replies come back through the
//! same slot of the source NAT table.
//!
//! Such a flow's slot names no backend but [`WORLD`]: whoever was spoken to is the one who answers.

use crate::{
    address::Address,
    backend::MAX_BACKENDS,
    client::{flow_key, home},
    flow::Meta,
    flow_table, hash,
    network::kind,
    open::{NOBODY, give_any_port},
    outcome::Outcome,
    parse::Packet,
    source_nat,
    tables::{Stages, Tables},
    tcp::{self, Sender},
};

/// In place of a backend's id: the flow's frontend itself. No backend has this id.
pub const WORLD: u32 = MAX_BACKENDS - 1;

/// Decides on a pod's packet that no service and no pod of this node is concerned with: [`Outcome::forward`] to
/// [`WORLD`], or [`Outcome::PASS`] for one that stays as it is.
#[inline(always)]
pub fn masquerade<A: Address, T: Stages<A>>(packet: &Packet<A>, tables: &T) -> Outcome {
    let hash = hash::of_client(
        tables.seed(),
        packet.source,
        packet.source_port,
        packet.protocol,
    );
    match tables.world(packet, hash) {
        Outcome::UNKNOWN => give_any_port(packet, hash, WORLD, NOBODY, tables),
        // The client uses its port anew, and its old connection's slot.
        found if !found.is_settled() => give_any_port(packet, hash, WORLD, WORLD, tables),
        found => found,
    }
}

/// Whether a packet goes beyond the cluster, and the node has an address to send it with.
#[inline(always)]
fn leaves<A: Address, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> bool {
    tables.node_address() != A::default()
        && !packet.destination.is_local_scope()
        && tables.network(packet.destination) & kind::INSIDE == 0
}

/// Looks for the slot of a packet that leaves the cluster.
#[inline(always)]
pub fn in_source_nat<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    tables: &T,
) -> Outcome {
    if !leaves(packet, tables) {
        return Outcome::PASS;
    }
    let mut second = 0;
    while second < 2 {
        let index = source_nat::bucket_of_client(hash, packet.protocol, second == 1);
        let Some(bucket) = tables.source_nat(index) else {
            return Outcome::UNKNOWN;
        };
        let mut slot = 0;
        let meta = flow_table::find(&bucket, home(hash), &flow_key(packet), &mut slot);
        if meta.0 != 0 && meta.backend() == WORLD {
            let now = tables.now();
            if tcp::opens(packet.protocol, packet.tcp_flags) && meta.stage().is_closing() {
                return Outcome::rechoose(WORLD);
            }
            flow_table::refresh(&bucket, slot, meta, Sender::Client, packet.tcp_flags, now);
            return Outcome::forward(WORLD, source_nat::port_of_place(index, slot));
        }
        second += 1;
    }
    Outcome::UNKNOWN
}

/// Whether a packet comes from whom a flow of [`WORLD`] was begun with.
#[inline(always)]
pub fn is_answer<A: Address>(packet: &Packet<A>, frontend: A, meta: Meta) -> bool {
    packet.source == frontend && packet.source_port == meta.ports().frontend
}
