//! The short way of most packets: their flow is known, its backend lives, and they change nothing but themselves.
//!
//! What is out of the ordinary in the least is left to [`crate::route::route`], which decides the same on these packets,
//! only slower.

use crate::{
    address::Address,
    backend::state,
    bytes::Be16,
    client::{flow_key, home},
    flow::{Bucket, Meta},
    flow_table, hash,
    parse::Packet,
    reply,
    tables::Tables,
    tcp::{self, Sender},
};

/// The backend that a client's packet goes to as it is, if it is one of those packets.
#[inline(always)]
pub fn backend_of<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    hash: u64,
    tables: &T,
) -> Option<u32> {
    let bucket = tables.flows(hash)?;
    let mut slot = 0;
    let meta = flow_table::find(&bucket, home(hash), &flow_key(packet), &mut slot);
    let backend = tables.backend(meta.backend())?;
    let goes_on = meta.0 != 0
        && backend.state == state::LIVE
        && changes_nothing(meta, Sender::Client, packet.tcp_flags, tables.now());
    goes_on.then_some(meta.backend())
}

/// The backend whose packet goes back to its client, if it is one of those packets, and the frontend that it leaves as.
#[inline(always)]
pub fn reply_of<A: Address, T: Tables<A>>(
    packet: &Packet<A>,
    tables: &T,
) -> Option<(u32, A, Be16)> {
    let client = (packet.destination, packet.destination_port);
    let hash = hash::of_client(tables.seed(), client.0, client.1, packet.protocol);
    let bucket = tables.flows(hash)?;
    let mut slot = 0;
    let meta = flow_table::find_reply(
        &bucket,
        home(hash),
        client,
        packet.protocol,
        |id| reply::is_sender(packet, id, tables),
        &mut slot,
    );
    if meta.0 == 0 || !changes_nothing(meta, Sender::Backend, packet.tcp_flags, tables.now()) {
        return None;
    }
    let frontend = bucket.frontend(slot);
    // The slot may have been given to another flow since it matched: then nothing that was read may be used.
    if !meta.is_same_flow(bucket.meta(slot)) {
        return None;
    }
    Some((meta.backend(), frontend, meta.ports().frontend))
}

/// Whether a packet leaves its flow's slot as it is: neither stage nor age move on.
#[inline(always)]
pub const fn changes_nothing(meta: Meta, sender: Sender, flags: u8, now: u64) -> bool {
    if flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
        return false;
    }
    meta.at(tcp::next(meta.stage(), sender, 0), now).0 == meta.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Ports, Stage};
    use proptest::prelude::*;

    fn meta(stage: Stage, now: u64) -> Meta {
        let ports = Ports {
            client: Be16::new(40_000),
            frontend: Be16::new(80),
        };
        Meta::new(ports, 3, stage, now)
    }

    #[test]
    fn a_segment_of_an_established_connection_changes_nothing_until_the_clock_ticks() {
        let established = meta(Stage::TCP_ESTABLISHED, 0);
        for sender in [Sender::Client, Sender::Backend] {
            assert!(changes_nothing(established, sender, tcp::ACK, 1 << 30));
            assert!(!changes_nothing(established, sender, tcp::ACK, 1 << 36));
        }
        let replied = meta(Stage::TCP_REPLIED, 0);
        assert!(!changes_nothing(replied, Sender::Client, tcp::ACK, 0));
    }

    proptest! {
        #[test]
        fn what_changes_nothing_leaves_the_word_as_it_is(stage in 1..Stage::COUNT, flags: u8, backend: bool, now: u64, later in 0..1_u64 << 38) {
            let sender = if backend { Sender::Backend } else { Sender::Client };
            let (meta, later) = (meta(Stage(stage), now), now.wrapping_add(later));
            if changes_nothing(meta, sender, flags, later) {
                prop_assert_eq!(meta.at(tcp::next(meta.stage(), sender, flags), later), meta);
            }
        }
    }
}
