//! ICMP echoes (RFC 792, RFC 4443) as flows: a request's identifier is its source port, a reply's its destination port.

use crate::{
    bytes::Be16,
    ip::ReadIp,
    parse::{Bytes, Packet},
    protocol,
    rewrite::Rewrite,
};

/// From the ICMP header on: type and code.
const TYPE: usize = 0;
/// The checksum.
pub const CHECKSUM: usize = 2;
/// The identifier.
pub const IDENTIFIER: usize = 4;
const HEADER: u16 = 8;

/// Type and code of a request and of a reply.
const V4_ECHO: [u16; 2] = [8 << 8, 0];
const V6_ECHO: [u16; 2] = [128 << 8, 129 << 8];

/// Gives an ICMP message what an echo has in place of ports, and the protocol of echoes; nothing if it is none.
#[inline(always)]
pub fn read<A: ReadIp, B: Bytes>(bytes: B, packet: &mut Packet<A>) -> Option<()> {
    let at = packet.transport;
    let [request, reply] = if A::IS_V6 { V6_ECHO } else { V4_ECHO };
    let kind = Be16(bytes.u16(at + TYPE)?).get();
    if packet.transport_length < HEADER || (kind != request && kind != reply) {
        return None;
    }
    let identifier = Be16(bytes.u16(at + IDENTIFIER)?);
    if kind == request {
        packet.source_port = identifier;
    } else {
        packet.destination_port = identifier;
    }
    packet.checksum = Be16(bytes.u16(at + CHECKSUM)?);
    packet.protocol = protocol::ICMP;
    Some(())
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
    use crate::{
        address::V6,
        fragment::Fragment,
        ip::{self, Ip},
        parse::{NETWORK, field},
    };
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

    fn echo(frame: &[u8]) -> Option<Packet<V6>> {
        let (mut ip, mut packet, mut fragment) =
            (Ip::default(), Packet::default(), Fragment::default());
        let kind = ip::read(frame, 1, &mut ip, &mut packet, &mut fragment);
        if kind != ip::kind::MESSAGE {
            return None;
        }
        read(frame, &mut packet).map(|()| packet)
    }

    #[test]
    fn a_request_comes_from_its_identifier() {
        let packet = echo(&v6(128)).expect("an echo request");
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
        let packet = echo(&v6(129)).expect("an echo reply");
        assert_eq!(packet.destination_port, Be16::new(0x1234));
        assert_eq!(echo(&v6(1)), None);
        assert_eq!(echo(&v6(135)), None);
        let frame = v6(128);
        for length in 0..NETWORK + 48 {
            assert_eq!(echo(&frame[..length]), None);
        }
    }
}
