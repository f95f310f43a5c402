//! Packets that no wire may carry: a loopback address means a host itself, and only what its processes send by its loopback
//! interface has one (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3).
//!
//! The flow table has no flow of a loopback address ([`crate::open::choose_for`] sees to it). So a packet whose flow it knows
//! needs no look at this.

use crate::{address::Address, tables::Hook};

/// Whether a packet from a source to a destination may be where a hook has seen it. What processes of the node send may be
/// theirs alone yet: see [`may_leave`].
#[inline(always)]
pub fn may_arrive<A: Address>(ends: (A, A), hook: Hook) -> bool {
    hook.is_node() || may_leave(ends)
}

/// Whether a packet may go out of the node, or into a pod, as it is.
#[inline(always)]
pub fn may_leave<A: Address>((source, destination): (A, A)) -> bool {
    !source.is_loopback() && !destination.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};

    fn is_on_no_wire<A: Address>(host: A, loopback: A) {
        for ends in [(host, loopback), (loopback, host), (loopback, loopback)] {
            for hook in [Hook::POD, Hook::UPLINK, Hook::TRANSIT, Hook::TUNNEL] {
                assert!(!may_arrive(ends, hook));
            }
            assert!(may_arrive(ends, Hook::NODE) && !may_leave(ends));
        }
        assert!(may_arrive((host, host), Hook::UPLINK) && may_leave((host, host)));
    }

    #[test]
    fn a_loopback_address_at_either_end_is_on_no_wire() {
        for loopback in [[127, 0, 0, 1], [127, 255, 255, 254]] {
            is_on_no_wire(V4::from_octets([192, 0, 2, 1]), V4::from_octets(loopback));
        }
        is_on_no_wire(V6([0xfd, 1 << 56]), V6([0, 1 << 56]));
    }
}
