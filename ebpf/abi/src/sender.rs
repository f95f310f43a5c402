//! Whether a pod may send a packet with the source address that the packet has: none may speak for another.

use crate::{
    address::{Address, V4, V6},
    assert_layout,
};

/// How many senders the map holds; a power of two.
pub const SENDERS: u32 = 4_096;

/// One value of the map of senders: an array, indexed by the low bits of an interface's number, so that the check of
/// an ordinary packet is one look at one line. A pod that shares its place with another, or has several addresses of a
/// family, is looked up among the pods' addresses instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SenderEntry {
    /// The node's end of the veth; 0 for none.
    pub interface: u32,
    /// The pod's IPv4 address; zero for none.
    pub v4: V4,
    /// The pod's IPv6 address; zero for none.
    pub v6: V6,
    /// Zero.
    pub reserved: u64,
}

assert_layout!(
    SenderEntry,
    size = 32,
    align = 8,
    fields = [u32, V4, V6, u64]
);

/// A family's address of a sender.
pub trait OfSender: Address {
    /// It.
    fn of(entry: &SenderEntry) -> Self;
}

impl OfSender for V4 {
    #[inline(always)]
    fn of(entry: &SenderEntry) -> Self {
        entry.v4
    }
}

impl OfSender for V6 {
    #[inline(always)]
    fn of(entry: &SenderEntry) -> Self {
        entry.v6
    }
}

/// The place of an interface in the map of senders.
#[inline(always)]
pub const fn place(interface: u32) -> u32 {
    interface & (SENDERS - 1)
}

/// Whether what came out of a pod's interface may go on. `entry` stands at the interface's [`place`]; `behind` says
/// behind which interface a pod with an address is, 0 for none.
#[inline(always)]
pub fn may_send<A: OfSender>(
    entry: Option<&SenderEntry>,
    interface: u32,
    source: A,
    destination: A,
    behind: impl FnOnce(A) -> u32,
) -> bool {
    if let Some(entry) = entry
        && entry.interface == interface
        && A::of(entry) == source
    {
        return true;
    }
    // Neighbour discovery and its like: such packets reach the node's end and nothing beyond.
    if (source.is_unspecified() || source.is_link_local()) && destination.stays_on_link() {
        return true;
    }
    behind(source) == interface
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(text: &str) -> V4 {
        V4::from_octets(
            text.parse::<std::net::Ipv4Addr>()
                .expect("an address")
                .octets(),
        )
    }

    fn v6(text: &str) -> V6 {
        V6::from_octets(
            text.parse::<std::net::Ipv6Addr>()
                .expect("an address")
                .octets(),
        )
    }

    fn entry() -> SenderEntry {
        SenderEntry {
            interface: 7,
            v4: v4("10.244.1.10"),
            v6: v6("fd00::10"),
            reserved: 0,
        }
    }

    #[test]
    fn a_pod_sends_with_its_own_addresses_only() {
        let world = v4("192.0.2.1");
        let entry = entry();
        assert!(may_send(Some(&entry), 7, entry.v4, world, |_| 0));
        assert!(!may_send(Some(&entry), 7, v4("10.244.1.11"), world, |_| 8));
        assert!(!may_send(Some(&entry), 7, v4("198.51.100.1"), world, |_| 0));
        assert!(may_send(
            Some(&entry),
            7,
            entry.v6,
            v6("2001:db8::1"),
            |_| 0
        ));
        assert!(!may_send(
            Some(&entry),
            7,
            v6("fd00::11"),
            v6("2001:db8::1"),
            |_| 8
        ));
    }

    #[test]
    fn a_pod_whose_place_is_anothers_is_found_by_its_address() {
        let entry = entry();
        let (own, world) = (v4("10.244.1.77"), v4("192.0.2.1"));
        let other = 7 + SENDERS;
        assert_eq!(place(other), place(7));
        assert!(may_send(Some(&entry), other, own, world, |_| other));
        assert!(!may_send(Some(&entry), other, entry.v4, world, |_| 7));
        assert!(may_send(None, other, own, world, |_| other));
    }

    #[test]
    fn link_local_senders_reach_the_link_alone() {
        let entry = entry();
        let local = v6("fe80::1234");
        for to in ["fe80::1", "ff02::1", "ff02::1:ff00:1"] {
            assert!(may_send(Some(&entry), 7, local, v6(to), |_| 0), "{to}");
            assert!(may_send(Some(&entry), 7, v6("::"), v6(to), |_| 0), "{to}");
        }
        for to in ["fd00::11", "2001:db8::1", "ff05::1"] {
            assert!(!may_send(Some(&entry), 7, local, v6(to), |_| 0), "{to}");
            assert!(!may_send(Some(&entry), 7, v6("::"), v6(to), |_| 0), "{to}");
        }
        assert!(may_send(
            Some(&entry),
            7,
            v4("0.0.0.0"),
            v4("224.0.0.22"),
            |_| 0
        ));
        assert!(!may_send(
            Some(&entry),
            7,
            v4("169.254.9.9"),
            v4("10.244.1.11"),
            |_| 0
        ));
    }
}
