//! ICMP echoes (RFC 792, RFC 4443) as flows: a request's identifier is its source port, a reply's its destination port.

use crate::{
    address::{V4, V6},
    bytes::Be16,
    parse::{Bytes, NETWORK, Packet, ParseAddress, field},
    protocol,
    rewrite::Rewrite,
};

/// From the ICMP header on: type and code.
const TYPE: usize = 0;
/// The checksum.
pub const CHECKSUM: usize = 2;
/// The identifier.
pub const IDENTIFIER: usize = 4;
const HEADER: usize = 8;

/// The numbers of a family's echoes.
pub trait Echo: ParseAddress {
    /// ICMP's protocol number.
    const PROTOCOL: u8;
    /// Type of a request, code 0.
    const REQUEST: u8;
    /// Type of a reply, code 0.
    const REPLY: u8;
    /// Length of an IP header without options.
    const IP_HEADER: usize;

    /// Protocol and length from the IP header on, of a packet that is whole and has neither options nor extensions.
    fn header<B: Bytes>(bytes: B) -> Option<(u8, u32)>;

    /// The echo in a frame whose type says that it is of this family.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "lengths of headers, and of a packet whose length has sixteen bits, or the check refuses it"
    )]
    fn echo<B: Bytes>(bytes: B) -> Option<Packet<Self>> {
        let (protocol, length) = Self::header(bytes)?;
        let least = (Self::IP_HEADER + HEADER) as u32;
        if protocol != Self::PROTOCOL || length < least || NETWORK as u32 + length > bytes.length()
        {
            return None;
        }
        let (source, destination) = Self::ends(bytes)?;
        let transport = NETWORK + Self::IP_HEADER;
        let kind = Be16(bytes.u16(transport + TYPE)?).get();
        let identifier = Be16(bytes.u16(transport + IDENTIFIER)?);
        let (source_port, destination_port) = if kind == u16::from(Self::REQUEST) << 8 {
            (identifier, Be16(0))
        } else if kind == u16::from(Self::REPLY) << 8 {
            (Be16(0), identifier)
        } else {
            return None;
        };
        Some(Packet {
            source,
            destination,
            source_port,
            destination_port,
            checksum: Be16(bytes.u16(transport + CHECKSUM)?),
            transport_length: length as u16 - Self::IP_HEADER as u16,
            transport,
            length,
            protocol: protocol::ICMP,
            tcp_flags: 0,
        })
    }
}

impl Echo for V4 {
    const PROTOCOL: u8 = protocol::ICMP;
    const REQUEST: u8 = 8;
    const REPLY: u8 = 0;
    const IP_HEADER: usize = 20;

    #[inline(always)]
    fn header<B: Bytes>(bytes: B) -> Option<(u8, u32)> {
        let fragment = Be16(bytes.u16(field::V4_FRAGMENT)?).get();
        if bytes.u8(field::V4_VERSION)? != 0x45 || fragment & 0xbfff != 0 {
            return None;
        }
        let length = Be16(bytes.u16(field::V4_LENGTH)?).get();
        Some((bytes.u8(field::V4_PROTOCOL)?, u32::from(length)))
    }
}

impl Echo for V6 {
    const PROTOCOL: u8 = protocol::ICMPV6;
    const REQUEST: u8 = 128;
    const REPLY: u8 = 129;
    const IP_HEADER: usize = 40;

    #[inline(always)]
    fn header<B: Bytes>(bytes: B) -> Option<(u8, u32)> {
        if bytes.u8(field::V6_VERSION)? >> 4 != 6 {
            return None;
        }
        let length = Be16(bytes.u16(field::V6_LENGTH)?).get();
        Some((bytes.u8(field::V6_NEXT)?, 40 + u32::from(length)))
    }
}

/// The identifier that an echo leaves with.
#[inline(always)]
pub fn identifier<A>(rewrite: &Rewrite<A>) -> Be16 {
    // One of the two is zero.
    Be16(rewrite.source_port.0 | rewrite.destination_port.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn v6(kind: u8) -> Vec<u8> {
        let mut frame = std::vec![0; NETWORK + 40 + 8 + 3];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        frame[NETWORK] = 0x60;
        frame[field::V6_LENGTH + 1] = 11;
        frame[field::V6_NEXT] = protocol::ICMPV6;
        frame[field::V6_SOURCE..field::V6_SOURCE + 16].fill(0x11);
        frame[field::V6_DESTINATION..field::V6_DESTINATION + 16].fill(0x22);
        let transport = NETWORK + 40;
        frame[transport] = kind;
        frame[transport + IDENTIFIER..transport + IDENTIFIER + 2].copy_from_slice(&[0x12, 0x34]);
        frame[transport + 8..].copy_from_slice(b"abc");
        frame
    }

    #[test]
    fn a_request_comes_from_its_identifier() {
        let packet = V6::echo(&*v6(128)).expect("an echo request");
        assert_eq!(packet.source_port, Be16::new(0x1234));
        assert_eq!(
            (packet.destination_port, packet.transport_length),
            (Be16(0), 11)
        );
        let rewrite = Rewrite {
            source: packet.source,
            destination: packet.destination,
            source_port: Be16::new(0xabcd),
            destination_port: packet.destination_port,
        };
        assert_eq!(identifier(&rewrite), Be16::new(0xabcd));
    }

    #[test]
    fn a_reply_goes_to_its_identifier_and_nothing_else_is_an_echo() {
        let packet = V6::echo(&*v6(129)).expect("an echo reply");
        assert_eq!(packet.destination_port, Be16::new(0x1234));
        assert_eq!(V6::echo(&*v6(1)), None);
        assert_eq!(V6::echo(&*v6(135)), None);
        let frame = v6(128);
        for length in 0..NETWORK + 48 {
            assert_eq!(V6::echo(&frame[..length]), None);
        }
    }
}
