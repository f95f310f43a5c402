//! A client's packet whose flow may have a slot.

use crate::{
    address::Address,
    backend::state,
    bytes::Be16,
    drop_reason::DropReason,
    flow::{Ports, Stage},
    flow_table::{self, FlowKey},
    open::is_transit,
    outcome::Outcome,
    parse::Packet,
    protocol, source_nat,
    tables::{Hook, Tables},
    tcp::{self, Sender},
};

/// Where probing starts in a bucket.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "bits of a hash")]
pub const fn home(hash: u64) -> u32 {
    hash as u32 & 7
}

/// The flow of a packet that a client sent.
#[inline(always)]
pub const fn flow_key<A: Copy>(packet: &Packet<A>) -> FlowKey<A> {
    FlowKey {
        client: packet.source,
        frontend: packet.destination,
        ports: Ports {
            client: packet.source_port,
            frontend: packet.destination_port,
        },
        protocol: packet.protocol,
    }
}

/// Looks in the flow table. A hook for transit leaves what it finds there to others.
#[inline(always)]
pub fn in_flows<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    tables: &T,
) -> Outcome {
    let Some(bucket) = tables.flows(hash) else {
        return Outcome::UNKNOWN;
    };
    search(packet, hash, &bucket, None, hook.is_transit_only(), tables)
}

/// Looks in one of the two buckets of the source NAT table that the flow may stand in.
#[inline(always)]
pub fn in_source_nat<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    hook: Hook,
    second: bool,
    tables: &T,
) -> Outcome {
    let index = source_nat::bucket_of_client(hash, packet.protocol, second);
    let Some(bucket) = tables.source_nat(index) else {
        return Outcome::UNKNOWN;
    };
    let transit_only = hook.is_transit_only();
    search(packet, hash, &bucket, Some(index), transit_only, tables)
}

/// A client's packet of a flow that has a slot goes on, unless the flow must leave its backend.
#[inline(always)]
fn search<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    bucket: &T::Bucket,
    source_nat: Option<u32>,
    transit_only: bool,
    tables: &T,
) -> Outcome {
    let mut slot = 0;
    let meta = flow_table::find(bucket, home(hash), &flow_key(packet), &mut slot);
    if meta.0 == 0 {
        return Outcome::UNKNOWN;
    }
    let id = meta.backend();
    let Some(backend) = tables.backend(id) else {
        return Outcome::UNKNOWN;
    };
    let now = tables.now();
    let opens = tcp::opens(packet.protocol, packet.tcp_flags);
    let early = matches!(
        meta.stage(),
        Stage::TCP_SYN | Stage::TCP_REPLIED | Stage::SCTP_INIT
    );
    // A SYN on anything but a connection that is being opened comes from a client that uses its port anew.
    let anew = opens && (!early || meta.is_stale(now));
    let may_choose = packet.protocol == protocol::UDP || opens;
    let stays =
        backend.state == state::LIVE && !anew || backend.state == state::REMOVED && !may_choose;
    if !stays && may_choose {
        return Outcome::rechoose(id);
    }
    if transit_only && !is_transit(backend.delivery, source_nat.is_some()) {
        return Outcome::PASS;
    }
    // A flow whose backend is gone is reset, so that its slot is soon free.
    let flags = if stays { packet.tcp_flags } else { tcp::RST };
    let ended = flow_table::refresh(bucket, slot, meta, Sender::Client, flags, now);
    if !stays {
        return Outcome::refuse(DropReason::BackendGone, backend.service).ended_if(ended);
    }
    let port = match source_nat {
        None => Be16(0),
        Some(index) => source_nat::port_of_place(index, slot),
    };
    Outcome::forward(id, port).ended_if(ended)
}
