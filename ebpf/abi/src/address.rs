//! Addresses of both families, and what the code that serves both asks of them.

use crate::{assert_layout, bytes::Be32};

/// An address of one family. The decisions are generic over it and compiled once for each.
pub trait Address: Copy + Eq + Default {
    /// Whether this is IPv6.
    const IS_V6: bool;

    /// As it stands in a [`crate::backend::Backend`]; IPv4 in the first four bytes.
    fn words(self) -> [u64; 2];

    /// Back from [`Self::words`].
    fn from_words(words: [u64; 2]) -> Self;

    /// The one's complement sum of its 16-bit words, not yet folded: what it adds to a checksum.
    fn checksum_sum(self) -> u64;

    /// The same of its complement, which takes the address out of a checksum.
    #[inline(always)]
    fn checksum_complement(self) -> u64 {
        Self::from_words(self.words().map(|word| !word)).checksum_sum()
    }

    /// Whether it says "no address".
    #[inline(always)]
    fn is_unspecified(self) -> bool {
        self == Self::default()
    }

    /// Whether it means something on one link only (RFC 3927, RFC 4291).
    fn is_link_local(self) -> bool;

    /// Whether no router passes on what is sent to it: a link-local address or group.
    fn stays_on_link(self) -> bool;

    /// Whether it is never one host beyond this link: a link-local, loopback, group, broadcast or unspecified address.
    fn is_local_scope(self) -> bool;

    /// Whether it means the network namespace itself (RFC 1122, 3.2.1.3; RFC 4291, 2.5.3).
    fn is_loopback(self) -> bool;

    /// Whether node ports belong to it as they do to the node's own address: IPv4's loopback addresses, as kube-proxy has
    /// it.
    #[inline(always)]
    fn has_node_ports(self) -> bool {
        !Self::IS_V6 && self.is_loopback()
    }

    /// As an IPv6 socket sees it: IPv4 addresses as IPv4-mapped ones (RFC 4291, 2.5.5.2).
    fn mapped(self) -> V6;
}

/// An IPv4 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct V4(pub Be32);

/// An IPv6 address: its sixteen bytes as two words in memory order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct V6(pub [u64; 2]);

assert_layout!(V4, size = 4, align = 4, fields = [u32]);
assert_layout!(V6, size = 16, align = 8, fields = [u64, u64]);

impl V4 {
    /// From its bytes as they are written.
    pub const fn from_octets(octets: [u8; 4]) -> Self {
        Self(Be32(u32::from_ne_bytes(octets)))
    }

    /// Its bytes as they are written.
    pub const fn octets(self) -> [u8; 4] {
        self.0.0.to_ne_bytes()
    }
}

impl V6 {
    /// The low half of the second word of an IPv4-mapped address.
    const MAPPED: u64 = u32::from_ne_bytes([0, 0, 0xff, 0xff]) as u64;

    /// The IPv4 address that this one stands for, if it is an IPv4-mapped one.
    #[inline(always)]
    pub const fn unmapped(self) -> Option<V4> {
        let [a, b] = self.0;
        if a == 0 && b & 0xffff_ffff == Self::MAPPED {
            Some(V4(Be32((b >> 32) as u32)))
        } else {
            None
        }
    }

    /// From its bytes as they are written.
    #[expect(clippy::cast_possible_truncation, reason = "each half is kept")]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let number = u128::from_ne_bytes(octets);
        Self([number as u64, (number >> 64) as u64])
    }

    /// Its bytes as they are written.
    pub const fn octets(self) -> [u8; 16] {
        (self.0[0] as u128 | (self.0[1] as u128) << 64).to_ne_bytes()
    }
}

impl Address for V4 {
    const IS_V6: bool = false;

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        [u64::from(self.0.0), 0]
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the address is the half that is kept"
    )]
    fn from_words(words: [u64; 2]) -> Self {
        Self(Be32(words[0] as u32))
    }

    #[inline(always)]
    fn checksum_sum(self) -> u64 {
        u64::from(self.0.0)
    }

    #[inline(always)]
    fn is_link_local(self) -> bool {
        self.0.get() >> 16 == 0xa9fe
    }

    #[inline(always)]
    fn stays_on_link(self) -> bool {
        self.is_link_local() || self.0.get() >> 8 == 0xe0_0000
    }

    #[inline(always)]
    fn is_local_scope(self) -> bool {
        let first = self.0.get() >> 24;
        self.is_link_local() || first == 0 || first == 127 || first >= 224
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0.get() >> 24 == 127
    }

    #[inline(always)]
    fn mapped(self) -> V6 {
        V6([0, V6::MAPPED | u64::from(self.0.0) << 32])
    }
}

impl Address for V6 {
    const IS_V6: bool = true;

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        self.0
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    #[inline(always)]
    fn checksum_sum(self) -> u64 {
        let [a, b] = self.0;
        (a >> 32) + (a & 0xffff_ffff) + (b >> 32) + (b & 0xffff_ffff)
    }

    #[inline(always)]
    fn is_link_local(self) -> bool {
        self.0[0].to_be() >> 54 == 0xfe80 >> 6
    }

    #[inline(always)]
    fn stays_on_link(self) -> bool {
        self.is_link_local() || self.0[0].to_be() >> 48 == 0xff02
    }

    #[inline(always)]
    fn is_local_scope(self) -> bool {
        let loopback_or_none = self.0[0] == 0 && self.0[1].to_be() <= 1;
        self.is_link_local() || loopback_or_none || self.0[0].to_be() >> 56 == 0xff
    }

    #[inline(always)]
    fn is_loopback(self) -> bool {
        self.0[0] == 0 && self.0[1] == 1_u64.to_be()
    }

    #[inline(always)]
    fn mapped(self) -> V6 {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_lead_back() {
        let address = V4::from_octets([10, 96, 0, 1]);
        let mapped = V6::from_octets([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
        assert_eq!(address.mapped(), mapped);
        assert_eq!(mapped.unmapped(), Some(address));
        for plain in [V6::default(), V6([1, mapped.0[1]]), V6([0, 1])] {
            assert_eq!(plain.unmapped(), None);
            assert_eq!(plain.mapped(), plain);
        }
        assert!(V4::from_octets([127, 3, 2, 1]).is_loopback());
        assert!(!address.is_loopback() && !address.has_node_ports());
        let loopback = V6([0, 1 << 56]);
        assert!(loopback.is_loopback() && !loopback.has_node_ports());
        assert!(!V6::default().is_loopback() && !V6([1, 1 << 56]).is_loopback());
        assert!(V4::from_octets([127, 0, 0, 1]).has_node_ports());
    }
}
