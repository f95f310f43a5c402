//! IP headers of every kind: options, extension headers, fragments. What [`crate::parse`] reads at once is the part of
//! them that most packets have.

use crate::{
    address::{Address, V4, V6},
    bytes::{Be16, Be32},
    fragment::Fragment,
    parse::{Bytes, NETWORK, Packet, TCP_HEADER, UDP_HEADER, field},
    protocol, sctp,
};

/// How much of a frame must be readable: Ethernet, two IPv6 headers with their extensions, ICMP, TCP up to its checksum.
#[expect(clippy::cast_possible_truncation, reason = "it is 64")]
pub const HEADERS: u32 = 14 + 2 * (40 + MOST_BYTES as u32) + 8 + 18;

/// How many extension headers a packet may have, and how long they may be in all.
const MOST_HEADERS: u32 = 4;
const MOST_BYTES: usize = 64;

const HOP_BY_HOP: u8 = 0;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// More fragments follow, in the low bit; of eight bytes each is the offset, in the high thirteen.
const OFFSET: u16 = 0xfff8;

/// What an IP header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ip<A> {
    /// Who sent it.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// Where in the frame what it carries begins.
    pub carries: usize,
    /// The length from the header on.
    pub length: u32,
    /// What all fragments of a datagram have in common.
    pub id: u32,
    /// As IPv6 has it: the offset in eights of bytes, shifted by three, and whether more follow.
    pub fragment: u16,
    /// IPv4's header checksum.
    pub checksum: Be16,
    /// The IANA number of what it carries.
    pub protocol: u8,
    /// How many routers it may still go over, this one included.
    pub hops: u8,
}

impl<A> Ip<A> {
    /// Whether this is a fragment behind the first, which has no transport header.
    #[inline(always)]
    pub const fn follows(&self) -> bool {
        self.fragment & OFFSET != 0
    }
}

/// A family's IP headers.
pub trait ReadIp: Address {
    /// ICMP's protocol number.
    const ICMP: u8;

    /// Reads the header that begins at an offset; nothing if it is none, or none that can be read.
    // Not as a value: what would be undefined in it without a header, the verifier refuses to see copied.
    fn read_ip<B: Bytes>(bytes: B, at: usize, ip: &mut Ip<Self>) -> Option<()>;
}

impl ReadIp for V4 {
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn read_ip<B: Bytes>(bytes: B, at: usize, ip: &mut Ip<Self>) -> Option<()> {
        let version = bytes.u8(at)?;
        let header = usize::from(version & 0xf) * 4;
        let bits = Be16(bytes.u16(at + 6)?).get();
        let length = u32::from(Be16(bytes.u16(at + 2)?).get());
        if version >> 4 != 4 || header < 20 || bits & 0x8000 != 0 {
            return None;
        }
        ip.source = V4(Be32(bytes.u32(at + 12)?));
        ip.destination = V4(Be32(bytes.u32(at + 16)?));
        ip.carries = at + header;
        ip.length = length;
        ip.id = u32::from(bytes.u16(at + 4)?);
        ip.fragment = bits << 3 | bits >> 13 & 1;
        ip.checksum = Be16(bytes.u16(at + 10)?);
        ip.protocol = bytes.u8(at + 9)?;
        ip.hops = bytes.u8(at + 8)?;
        Some(())
    }
}

impl ReadIp for V6 {
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn read_ip<B: Bytes>(bytes: B, at: usize, ip: &mut Ip<Self>) -> Option<()> {
        if bytes.u8(at)? >> 4 != 6 {
            return None;
        }
        ip.length = 40 + u32::from(Be16(bytes.u16(at + 4)?).get());
        ip.hops = bytes.u8(at + 7)?;
        ip.source = V6([bytes.u64(at + 8)?, bytes.u64(at + 16)?]);
        ip.destination = V6([bytes.u64(at + 24)?, bytes.u64(at + 32)?]);
        ip.fragment = 0;
        ip.id = 0;
        let mut next = bytes.u8(at + 6)?;
        let mut length = 0;
        let mut count = 0;
        while count < MOST_HEADERS {
            let header = at + 40 + (length & (MOST_BYTES - 1));
            match next {
                HOP_BY_HOP | DESTINATION_OPTIONS => {
                    length += (usize::from(bytes.u8(header + 1)?) + 1) * 8;
                }
                FRAGMENT if ip.fragment == 0 => {
                    let bits = Be16(bytes.u16(header + 2)?).get();
                    ip.fragment = bits & (OFFSET | 1);
                    ip.id = bytes.u32(header + 4)?;
                    length += 8;
                }
                _ => break,
            }
            next = bytes.u8(header)?;
            if length >= MOST_BYTES {
                return None;
            }
            // What follows the first fragment has no more headers, whatever the number says.
            if ip.follows() {
                break;
            }
            count += 1;
        }
        ip.carries = at + 40 + (length & (MOST_BYTES - 1));
        ip.protocol = next;
        Some(())
    }
}

/// What a packet is, by its headers.
pub mod kind {
    /// Nothing that a service or a flow can be concerned with.
    pub const FOREIGN: u32 = 0;
    /// A packet of a transport that services have.
    pub const PACKET: u32 = 1;
    /// The same, but a fragment without ports: they are to be recalled.
    pub const FOLLOWS: u32 = 2;
    /// An ICMP message. The packet has no ports yet.
    pub const MESSAGE: u32 = 3;
    /// The same, but an error about a packet that may be a flow's.
    pub const ERROR: u32 = 4;
}

/// Reads the packet of a frame of this family, by its [`kind`]. `fragment` is empty unless it is one.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an IP packet's length has sixteen bits, or it is a fragment that nobody asks for its length"
)]
pub fn read<A: ReadIp, B: Bytes>(
    bytes: B,
    seed: u64,
    ip: &mut Ip<A>,
    packet: &mut Packet<A>,
    fragment: &mut Fragment,
) -> u32 {
    *fragment = Fragment::default();
    if A::read_ip(bytes, NETWORK, ip).is_none() {
        return kind::FOREIGN;
    }
    let header = (ip.carries - NETWORK) as u32;
    // A packet that claims more than the frame holds was cut on its way; the stack counts and drops it.
    if ip.length < header || NETWORK as u32 + ip.length > bytes.length() {
        return kind::FOREIGN;
    }
    packet.source = ip.source;
    packet.destination = ip.destination;
    packet.source_port = Be16(0);
    packet.destination_port = Be16(0);
    packet.checksum = Be16(0);
    packet.length = ip.length;
    packet.protocol = ip.protocol;
    packet.hops = ip.hops;
    packet.tcp_flags = 0;
    packet.transport_length = (ip.length - header) as u16;
    packet.transport = ip.carries;
    if ip.fragment != 0 {
        // An SCTP checksum depends on how long the whole packet is, which no fragment says; errors come in none.
        if !matches!(ip.protocol, protocol::TCP | protocol::UDP) {
            return kind::FOREIGN;
        }
        *fragment = Fragment::new(seed, ip);
        if ip.follows() {
            packet.transport = 0;
            packet.transport_length = 0;
            return kind::FOLLOWS;
        }
    }
    if ip.protocol == A::ICMP {
        return kind::MESSAGE;
    }
    match transport(bytes, packet) {
        Some(()) => kind::PACKET,
        None => kind::FOREIGN,
    }
}

/// Reads the transport header.
#[inline(always)]
fn transport<A, B: Bytes>(bytes: B, packet: &mut Packet<A>) -> Option<()> {
    let at = packet.transport;
    let length = u32::from(packet.transport_length);
    match packet.protocol {
        protocol::TCP => {
            if length < TCP_HEADER
                || u32::from(bytes.u8(at + field::TCP_OFFSET)? >> 4) * 4 < TCP_HEADER
            {
                return None;
            }
            packet.tcp_flags = bytes.u8(at + field::TCP_FLAGS)?;
            packet.checksum = Be16(bytes.u16(at + field::TCP_CHECKSUM)?);
        }
        protocol::UDP if length >= UDP_HEADER => {
            packet.checksum = Be16(bytes.u16(at + field::UDP_CHECKSUM)?);
        }
        protocol::SCTP if length >= sctp::LEAST => {
            packet.tcp_flags = sctp::flags(bytes.u8(at + sctp::CHUNK)?);
        }
        _ => return None,
    }
    packet.source_port = Be16(bytes.u16(at + field::SOURCE_PORT)?);
    packet.destination_port = Be16(bytes.u16(at + field::DESTINATION_PORT)?);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{NotParsed, ParseAddress};
    use proptest::prelude::*;

    fn packet<A: ReadIp>(bytes: &[u8]) -> (u32, Packet<A>) {
        let (mut ip, mut packet, mut fragment) =
            (Ip::default(), Packet::default(), Fragment::default());
        let kind = read(bytes, 1, &mut ip, &mut packet, &mut fragment);
        (kind, packet)
    }

    proptest! {
        #[test]
        fn what_is_parsed_at_once_is_read_the_same_here(mut bytes in proptest::collection::vec(any::<u8>(), 0..160), v4: bool, tcp: bool, words in 5_u8..16) {
            if bytes.len() > 40 {
                // Else hardly any would be a packet.
                let length = u8::try_from(bytes.len() - if v4 { 14 } else { 54.min(bytes.len()) }).expect("short");
                bytes[NETWORK] = if v4 { 0x40 | words } else { 0x60 };
                let (at, next) = if v4 { (NETWORK + 2, field::V4_PROTOCOL) } else { (NETWORK + 4, field::V6_NEXT) };
                bytes[at..at + 2].copy_from_slice(&[0, length]);
                bytes[next] = if tcp { protocol::TCP } else { protocol::UDP };
                if v4 {
                    bytes[NETWORK + 6..NETWORK + 8].fill(0);
                }
            }
            if v4 {
                let (kind, read) = packet::<V4>(&bytes);
                match V4::parse(&*bytes) {
                    Ok(parsed) => prop_assert_eq!((kind, read), (kind::PACKET, parsed)),
                    Err(NotParsed::Foreign | NotParsed::Truncated) => prop_assert_ne!(kind, kind::PACKET),
                }
            } else {
                let (kind, read) = packet::<V6>(&bytes);
                match V6::parse(&*bytes) {
                    Ok(parsed) => prop_assert_eq!((kind, read), (kind::PACKET, parsed)),
                    Err(NotParsed::Foreign | NotParsed::Truncated) => prop_assert_ne!(kind, kind::PACKET),
                }
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            packet::<V4>(&bytes);
            packet::<V6>(&bytes);
        }
    }
}
