//! The table of flows whose source is rewritten to the node's address. A slot's place in the table is its port, so
//! that one slot is found from both sides: from the client by hash, from the backend's reply by the port itself.
//!
//! The table has a plane for each protocol; a plane has a slot for each of the [`PORTS`] ports from [`FIRST_PORT`] on.
//! A port has at most one flow at a time, so that two flows never meet on one tuple.

use crate::{bytes::Be16, flow::SLOTS, protocol};

/// The first port that belongs to source NAT; all above do too.
pub const FIRST_PORT: u16 = 32_768;

/// How many ports there are.
pub const PORTS: u32 = 32_768;

/// Buckets of a plane.
pub const PLANE_BUCKETS: u32 = PORTS / SLOTS;

/// Buckets of the table: TCP's plane, then UDP's, then that of ICMP echoes, whose ports are their identifiers,
/// then SCTP's.
pub const BUCKETS: u32 = 4 * PLANE_BUCKETS;

/// The first bucket of a protocol's plane.
#[inline(always)]
const fn plane(protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => 0,
        protocol::UDP => PLANE_BUCKETS,
        protocol::SCTP => 3 * PLANE_BUCKETS,
        _ => 2 * PLANE_BUCKETS,
    }
}

/// The two buckets that a client's flow may stand in, by its hash.
#[inline(always)]
pub const fn bucket_of_client(hash: u64, protocol: u8, second: bool) -> u32 {
    let bits = if second {
        (hash >> 44) as u32 ^ 0x555
    } else {
        (hash >> 32) as u32
    };
    plane(protocol) + (bits & (PLANE_BUCKETS - 1))
}

/// Where the flow that a port belongs to stands, if the port is one of the table's: bucket and slot.
#[inline(always)]
pub const fn place_of_port(port: Be16, protocol: u8) -> Option<(u32, u32)> {
    let port = port.get();
    if port < FIRST_PORT {
        return None;
    }
    let index = (port - FIRST_PORT) as u32;
    Some((plane(protocol) + index / SLOTS, index & (SLOTS - 1)))
}

/// The port that belongs to a slot.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a plane has 32,768 slots")]
pub const fn port_of_place(bucket: u32, slot: u32) -> Be16 {
    let index = (bucket & (PLANE_BUCKETS - 1)) * SLOTS + (slot & (SLOTS - 1));
    Be16::new(FIRST_PORT | index as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_its_own_slot_and_back() {
        let mut seen = std::collections::HashSet::new();
        for protocol in [protocol::TCP, protocol::UDP, protocol::ICMP, protocol::SCTP] {
            for port in FIRST_PORT..=u16::MAX {
                let (bucket, slot) =
                    place_of_port(Be16::new(port), protocol).expect("the port is in range");
                assert!(bucket < BUCKETS && seen.insert((bucket, slot)));
                assert_eq!(port_of_place(bucket, slot).get(), port);
            }
        }
        assert_eq!(
            place_of_port(Be16::new(FIRST_PORT - 1), protocol::TCP),
            None
        );
    }
}
