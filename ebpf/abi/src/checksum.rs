//! Internet checksums: whole, and by difference (RFC 1624).

use crate::{address::Address, bytes::Be16};

/// Folds a sum of words of any width up to 32 bits to the sixteen bits of a one's complement sum.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "folded to sixteen bits first"
)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// What changes a checksum when words leave and others come in: add these, then [`apply`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// With an address changed.
    #[inline(always)]
    #[must_use]
    pub fn address<A: Address>(self, old: A, new: A) -> Self {
        // Subtraction in one's complement is the addition of the complement, of words of any width.
        Self(self.0 + old.checksum_complement() + new.checksum_sum())
    }

    /// With a port changed.
    #[inline(always)]
    #[must_use]
    pub fn port(self, old: Be16, new: Be16) -> Self {
        Self(self.0 + u64::from(!old.0) + u64::from(new.0))
    }

    /// With a word less by a number.
    #[inline(always)]
    pub const fn less(number: u16) -> Self {
        Self(!number as u64)
    }

    /// Both differences.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// As a 32-bit sum, which the kernel's helpers take.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        fold(self.0) as u32
    }
}

/// A checksum after a difference.
#[inline(always)]
pub const fn apply(checksum: Be16, difference: Difference) -> Be16 {
    Be16(!fold(!checksum.0 as u64 + difference.0))
}

/// The checksum of UDP after a difference: zero says "none" and stays, and a sum of zero is sent as its complement.
#[inline(always)]
pub const fn apply_udp(checksum: Be16, difference: Difference) -> Be16 {
    if checksum.0 == 0 {
        return checksum;
    }
    let Be16(sum) = apply(checksum, difference);
    Be16(if sum == 0 { 0xffff } else { sum })
}

/// What the pseudo-header adds to a sum; `length` is that of the transport's header and data.
#[inline(always)]
pub fn pseudo_header<A: Address>(source: A, destination: A, protocol: u8, length: u16) -> u64 {
    source.checksum_sum()
        + destination.checksum_sum()
        + u64::from(u16::from(protocol).to_be())
        + u64::from(length.to_be())
}

/// Whether a transport checksum is what a sender leaves there for its device to complete: the folded pseudo-header.
///
/// A complete checksum has this value once in 65,536 packets; whoever asks must do right by those as well.
#[inline(always)]
pub fn is_partial<A: Address>(
    checksum: Be16,
    source: A,
    destination: A,
    protocol: u8,
    length: u16,
) -> bool {
    let pseudo = fold(pseudo_header(source, destination, protocol, length));
    // Zero has two forms, and a sum that was changed by difference may have either.
    checksum.0 == pseudo || (checksum.0 ^ pseudo == 0xffff && (pseudo == 0 || pseudo == 0xffff))
}

/// The sum of bytes as 16-bit words, an odd last byte padded with zero.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0_u64;
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        total += u64::from(u16::from_ne_bytes([pair[0], pair[1]]));
    }
    if let [last] = chunks.remainder() {
        total += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{V4, V6};

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), u16::from_ne_bytes([0xdd, 0xf2]));
    }

    #[test]
    fn a_difference_equals_summing_again() {
        let old = V6::from_octets([0xfd, 0, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let new = V6::from_octets([
            0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1,
        ]);
        let before = Be16(!fold(old.checksum_sum() + 0x1234));
        let after = Be16(!fold(new.checksum_sum() + 0x1234));
        assert_eq!(apply(before, Difference::NONE.address(old, new)), after);
    }

    #[test]
    fn a_partial_sum_of_zero_is_known_in_both_forms() {
        let source = V4::from_octets([0, 0, 0, 0]);
        let rest = !fold(u64::from(6_u16.to_be()) + u64::from(20_u16.to_be()));
        let [a, b] = rest.to_ne_bytes();
        let destination = V4::from_octets([0, 0, a, b]);
        for form in [0, 0xffff] {
            assert!(is_partial(Be16(form), source, destination, 6, 20));
        }
        assert!(!is_partial(Be16(1), source, destination, 6, 20));
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let difference = Difference::NONE.address(V4::from_octets([1; 4]), V4::from_octets([2; 4]));
        assert_eq!(apply_udp(Be16(0), difference), Be16(0));
    }
}
