//! SCTP (RFC 9260) as far as routing needs it: what a packet does to its association, in TCP's terms, and its checksum.

use crate::{crc32c, parse::Packet, rewrite::Rewrite, tcp};

/// The verification tag, from the transport header on.
pub const TAG: usize = 4;
/// The checksum, least significant byte first.
pub const CHECKSUM: usize = 8;
/// The first chunk's type; its flags and length follow.
pub const CHUNK: usize = 12;
/// The tag that an INIT chunk asks to be answered with.
pub const INITIATE_TAG: usize = 16;
/// The common header and the header of one chunk.
pub const LEAST: u32 = 16;

/// The chunk that ends an association.
pub const ABORT: u8 = 6;
/// Of an ABORT: its tag is the one of the packet that it answers.
pub const REFLECTED: u8 = 1;

const INIT: u32 = 1 << 1;
const INIT_ACK: u32 = 1 << 2;
const ENDS: u32 = 1 << ABORT | 1 << 14;
const SHUTDOWN: u32 = 1 << 7 | 1 << 8;

/// The flags that TCP would have set in place of a packet that begins with a chunk.
#[inline(always)]
pub const fn flags(chunk: u8) -> u8 {
    let kind = if chunk < 32 { 1_u32 << chunk } else { 0 };
    let mut flags = 0;
    if kind & (INIT | INIT_ACK) != 0 {
        flags |= tcp::SYN;
    }
    if kind & INIT == 0 {
        flags |= tcp::ACK;
    }
    if kind & ENDS != 0 {
        flags |= tcp::RST;
    }
    if kind & SHUTDOWN != 0 {
        flags |= tcp::FIN;
    }
    flags
}

/// By how much the first word, the ports, differs after a rewrite.
#[inline(always)]
pub fn ports<A>(packet: &Packet<A>, rewrite: &Rewrite<A>) -> u32 {
    let source = packet.source_port.0 ^ rewrite.source_port.0;
    let destination = packet.destination_port.0 ^ rewrite.destination_port.0;
    u32::from(source) | u32::from(destination) << 16
}

/// A checksum as it lies in the packet, after a rewrite whose [`crc32c::of_first_word`] this is.
#[inline(always)]
pub const fn apply(checksum: u32, difference: u32) -> u32 {
    checksum ^ difference.to_le()
}

/// What a rewrite does to the checksum. Addresses are no part of it.
#[inline(always)]
pub fn difference<A>(packet: &Packet<A>, rewrite: &Rewrite<A>) -> u32 {
    crc32c::of_first_word(ports(packet, rewrite), u32::from(packet.transport_length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_told_apart() {
        assert_eq!(flags(1), tcp::SYN);
        assert_eq!(flags(2), tcp::SYN | tcp::ACK);
        assert_eq!(flags(0), tcp::ACK);
        assert_eq!(flags(10), tcp::ACK);
        assert_eq!(flags(ABORT), tcp::RST | tcp::ACK);
        assert_eq!(flags(14), tcp::RST | tcp::ACK);
        assert_eq!(flags(7), tcp::FIN | tcp::ACK);
        assert_eq!(flags(0xc1), tcp::ACK);
    }
}
