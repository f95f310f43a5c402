//! The way to a backend's node with the client's packet as it is: IP in IP (RFC 2003), IPv6 in IPv6 (RFC 2473).

use crate::{
    address::{V4, V6},
    bytes::Be16,
    checksum,
    parse::{Bytes, ETHER_V4, ETHER_V6, ParseAddress, field},
};

/// A family whose packets can be encapsulated in packets of the same family.
pub trait Encapsulate: ParseAddress {
    /// The outer header.
    type Header: Copy;
    /// Its length.
    const OVERHEAD: u32;
    /// Ethernet's number for the family.
    const ETHER: Be16;

    /// The header for a packet of a length.
    fn outer(from: Self, to: Self, inner_length: u32) -> Self::Header;

    /// Whether a frame's packet is an encapsulated one, whole and without options.
    fn is_outer<B: Bytes>(bytes: B) -> bool;
}

const TTL: u8 = 64;
const IP_IN_IP: u8 = 4;
const IPV6_IN_IPV6: u8 = 41;
const DONT_FRAGMENT: u16 = 0x4000;

/// What the length field says; a packet that the kernel is still to cut has its length said anew by the kernel.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most sixteen bits")]
const fn length(bytes: u32) -> [u8; 2] {
    let bytes = if bytes > 0xffff { 0xffff } else { bytes };
    (bytes as u16).to_be_bytes()
}

impl Encapsulate for V4 {
    type Header = [u8; 20];
    const OVERHEAD: u32 = 20;
    const ETHER: Be16 = ETHER_V4;

    #[inline(always)]
    fn outer(from: Self, to: Self, inner_length: u32) -> [u8; 20] {
        let [high, low] = length(inner_length + Self::OVERHEAD);
        let sum = checksum::pseudo_header(from, to, 0, 0)
            + u64::from(u16::from_ne_bytes([0x45, 0]))
            + u64::from(u16::from_ne_bytes([high, low]))
            + u64::from(DONT_FRAGMENT.to_be())
            + u64::from(u16::from_ne_bytes([TTL, IP_IN_IP]));
        let [c, d] = (!checksum::fold(sum)).to_ne_bytes();
        let ([s0, s1, s2, s3], [t0, t1, t2, t3]) = (from.octets(), to.octets());
        [
            0x45, 0, high, low, 0, 0, 0x40, 0, TTL, IP_IN_IP, c, d, s0, s1, s2, s3, t0, t1, t2, t3,
        ]
    }

    #[inline(always)]
    fn is_outer<B: Bytes>(bytes: B) -> bool {
        let fragment = bytes.u16(field::V4_FRAGMENT).map(|bits| Be16(bits).get());
        bytes.u8(field::V4_PROTOCOL) == Some(IP_IN_IP)
            && bytes.u8(field::V4_VERSION) == Some(0x45)
            && matches!(fragment, Some(bits) if bits & 0xbfff == 0)
    }
}

impl Encapsulate for V6 {
    /// Words in memory order.
    type Header = [u64; 5];
    const OVERHEAD: u32 = 40;
    const ETHER: Be16 = ETHER_V6;

    #[inline(always)]
    fn outer(from: Self, to: Self, inner_length: u32) -> [u64; 5] {
        let [high, low] = length(inner_length);
        let first = u64::from_ne_bytes([0x60, 0, 0, 0, high, low, IPV6_IN_IPV6, TTL]);
        [first, from.0[0], from.0[1], to.0[0], to.0[1]]
    }

    #[inline(always)]
    fn is_outer<B: Bytes>(bytes: B) -> bool {
        bytes.u8(field::V6_NEXT) == Some(IPV6_IN_IPV6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::NETWORK;

    #[test]
    fn an_outer_header_is_valid_and_known_again() {
        let (from, to) = (
            V4::from_octets([10, 89, 0, 11]),
            V4::from_octets([10, 89, 0, 12]),
        );
        let header = V4::outer(from, to, 1_480);
        assert_eq!(checksum::fold(checksum::sum(&header)), 0xffff);
        assert_eq!(header[2..4], 1_500_u16.to_be_bytes());
        let mut frame = std::vec![0; NETWORK];
        frame.extend(header);
        assert!(V4::is_outer(&*frame));
        assert_eq!(V4::ends(&*frame), Some((from, to)));
        for cut in 0..frame.len() {
            let _ = V4::is_outer(&frame[..cut]);
        }
        frame[NETWORK + 6] = 0x20;
        assert!(!V4::is_outer(&*frame), "a fragment");
    }

    #[test]
    fn the_same_for_ipv6() {
        let (from, to) = (V6::from_octets([1; 16]), V6::from_octets([2; 16]));
        let header = V6::outer(from, to, 1_460);
        let mut frame = std::vec![0; NETWORK];
        frame.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
        assert_eq!(frame[NETWORK + 4..NETWORK + 6], 1_460_u16.to_be_bytes());
        assert!(V6::is_outer(&*frame));
        assert_eq!(V6::ends(&*frame), Some((from, to)));
    }
}
