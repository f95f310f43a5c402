//! From the bytes of a frame to a [`Packet`], without a copy and without trusting any of them.

use crate::{
    address::{Address, V4, V6},
    bytes::{Be16, Be32},
    protocol,
};

/// Where the network header begins: after Ethernet.
pub const NETWORK: usize = 14;

/// Offsets in a frame without VLAN tags.
pub mod field {
    use super::NETWORK;

    /// The frame's type.
    pub const ETHER_TYPE: usize = 12;
    /// IPv4: version and header length.
    pub const V4_VERSION: usize = NETWORK;
    /// IPv4: length of header and data.
    pub const V4_LENGTH: usize = NETWORK + 2;
    /// IPv4: flags and fragment offset.
    pub const V4_FRAGMENT: usize = NETWORK + 6;
    /// IPv4: time to live.
    pub const V4_TTL: usize = NETWORK + 8;
    /// IPv4: protocol.
    pub const V4_PROTOCOL: usize = NETWORK + 9;
    /// IPv4: header checksum.
    pub const V4_CHECKSUM: usize = NETWORK + 10;
    /// IPv4: source address.
    pub const V4_SOURCE: usize = NETWORK + 12;
    /// IPv4: destination address.
    pub const V4_DESTINATION: usize = NETWORK + 16;
    /// IPv6: version, traffic class and flow label.
    pub const V6_VERSION: usize = NETWORK;
    /// IPv6: length of the data.
    pub const V6_LENGTH: usize = NETWORK + 4;
    /// IPv6: what comes next.
    pub const V6_NEXT: usize = NETWORK + 6;
    /// IPv6: hop limit.
    pub const V6_HOP_LIMIT: usize = NETWORK + 7;
    /// IPv6: source address.
    pub const V6_SOURCE: usize = NETWORK + 8;
    /// IPv6: destination address.
    pub const V6_DESTINATION: usize = NETWORK + 24;
    /// IPv6: what comes after the header.
    pub const V6_TRANSPORT: usize = NETWORK + 40;
    /// Transport: source port, from the transport header on.
    pub const SOURCE_PORT: usize = 0;
    /// Transport: destination port.
    pub const DESTINATION_PORT: usize = 2;
    /// TCP: sequence number.
    pub const TCP_SEQUENCE: usize = 4;
    /// TCP: acknowledgement number.
    pub const TCP_ACKNOWLEDGEMENT: usize = 8;
    /// TCP: header length, in the high half of the byte.
    pub const TCP_OFFSET: usize = 12;
    /// TCP: flags.
    pub const TCP_FLAGS: usize = 13;
    /// TCP: checksum.
    pub const TCP_CHECKSUM: usize = 16;
    /// UDP: length of header and data.
    pub const UDP_LENGTH: usize = 4;
    /// UDP: checksum.
    pub const UDP_CHECKSUM: usize = 6;
}

/// Ethernet's number for IPv4.
pub const ETHER_V4: Be16 = Be16::new(0x0800);
/// Ethernet's number for IPv6.
pub const ETHER_V6: Be16 = Be16::new(0x86dd);

pub(crate) const TCP_HEADER: u32 = 20;
pub(crate) const UDP_HEADER: u32 = 8;

/// The bytes of a frame, each access checked against its end; numbers come as they lie there.
pub trait Bytes: Copy {
    /// The length of the frame, whether or not all of it can be read here.
    fn length(self) -> u32;
    /// One byte.
    fn u8(self, offset: usize) -> Option<u8>;
    /// Two bytes.
    fn u16(self, offset: usize) -> Option<u16>;
    /// Four bytes.
    fn u32(self, offset: usize) -> Option<u32>;
    /// Eight bytes.
    fn u64(self, offset: usize) -> Option<u64>;
}

/// Why bytes are no [`Packet`]. Such packets are none of the dataplane's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotParsed {
    /// Another protocol, a fragment, or a header that contradicts itself.
    Foreign,
    /// The headers end beyond what can be read.
    Truncated,
}

/// What the decisions need to know of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet<A> {
    /// Who sent it.
    pub source: A,
    /// To whom.
    pub destination: A,
    /// From which port.
    pub source_port: Be16,
    /// To which port.
    pub destination_port: Be16,
    /// The transport's checksum.
    pub checksum: Be16,
    /// The length of the transport's header and data.
    pub transport_length: u16,
    /// Where the transport header begins in the frame; 0 if it has none, as fragments behind the first.
    pub transport: usize,
    /// The length from the IP header on.
    pub length: u32,
    /// The IANA number.
    pub protocol: u8,
    /// TCP's flags, or those that it would have set in place of SCTP's chunk; 0 for UDP.
    pub tcp_flags: u8,
    /// IPv4's time to live, IPv6's hop limit.
    pub hops: u8,
}

impl<A> Packet<A> {
    /// Whether a router must not pass it on any more.
    #[inline(always)]
    pub const fn is_expired(&self) -> bool {
        self.hops <= 1
    }
}

/// An address of a family, from the bytes of a packet.
pub trait ParseAddress: Address {
    /// The packet in a frame whose type says that it is of this family.
    fn parse<B: Bytes>(bytes: B) -> Result<Packet<Self>, NotParsed>;

    /// Source and destination alone, whatever else the packet is.
    fn ends<B: Bytes>(bytes: B) -> Option<(Self, Self)>;
}

#[inline(always)]
fn need<T>(value: Option<T>) -> Result<T, NotParsed> {
    value.ok_or(NotParsed::Truncated)
}

impl ParseAddress for V4 {
    #[inline(always)]
    fn parse<B: Bytes>(bytes: B) -> Result<Packet<Self>, NotParsed> {
        let version = need(bytes.u8(field::V4_VERSION))?;
        let header = u32::from(version & 0xf) * 4;
        let fragment = Be16(need(bytes.u16(field::V4_FRAGMENT))?).get();
        let length = u32::from(Be16(need(bytes.u16(field::V4_LENGTH))?).get());
        // The fragment bits but for "don't fragment".
        if version >> 4 != 4 || header < 20 || fragment & 0xbfff != 0 || length < header {
            return Err(NotParsed::Foreign);
        }
        let source = V4(Be32(need(bytes.u32(field::V4_SOURCE))?));
        let destination = V4(Be32(need(bytes.u32(field::V4_DESTINATION))?));
        let protocol = need(bytes.u8(field::V4_PROTOCOL))?;
        let hops = need(bytes.u8(field::V4_TTL))?;
        let ends = (source, destination);
        transport(bytes, ends, (protocol, hops), length, header)
    }

    #[inline(always)]
    fn ends<B: Bytes>(bytes: B) -> Option<(Self, Self)> {
        let source = V4(Be32(bytes.u32(field::V4_SOURCE)?));
        Some((source, V4(Be32(bytes.u32(field::V4_DESTINATION)?))))
    }
}

impl ParseAddress for V6 {
    #[inline(always)]
    fn parse<B: Bytes>(bytes: B) -> Result<Packet<Self>, NotParsed> {
        let version = need(bytes.u8(field::V6_VERSION))?;
        if version >> 4 != 6 {
            return Err(NotParsed::Foreign);
        }
        let data = u32::from(Be16(need(bytes.u16(field::V6_LENGTH))?).get());
        let next = need(bytes.u8(field::V6_NEXT))?;
        let hops = need(bytes.u8(field::V6_HOP_LIMIT))?;
        let source = V6([
            need(bytes.u64(field::V6_SOURCE))?,
            need(bytes.u64(field::V6_SOURCE + 8))?,
        ]);
        let destination = V6([
            need(bytes.u64(field::V6_DESTINATION))?,
            need(bytes.u64(field::V6_DESTINATION + 8))?,
        ]);
        let ends = (source, destination);
        transport(bytes, ends, (next, hops), 40 + data, 40)
    }

    #[inline(always)]
    fn ends<B: Bytes>(bytes: B) -> Option<(Self, Self)> {
        let at = field::V6_SOURCE;
        let source = V6([bytes.u64(at)?, bytes.u64(at + 8)?]);
        let at = field::V6_DESTINATION;
        Some((source, V6([bytes.u64(at)?, bytes.u64(at + 8)?])))
    }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an IP packet's length has sixteen bits, or the check refuses it"
)]
fn transport<A: Address, B: Bytes>(
    bytes: B,
    (source, destination): (A, A),
    (protocol, hops): (u8, u8),
    length: u32,
    header: u32,
) -> Result<Packet<A>, NotParsed> {
    let least = match protocol {
        protocol::TCP => TCP_HEADER,
        protocol::UDP => UDP_HEADER,
        _ => return Err(NotParsed::Foreign),
    };
    // A packet that claims more than the frame holds was cut on its way; the stack counts and drops it.
    if length < header + least || NETWORK as u32 + length > bytes.length() {
        return Err(NotParsed::Foreign);
    }
    let at = NETWORK + header as usize;
    let (tcp_flags, checksum) = if protocol == protocol::TCP {
        let offset = need(bytes.u8(at + field::TCP_OFFSET))?;
        if u32::from(offset >> 4) * 4 < TCP_HEADER {
            return Err(NotParsed::Foreign);
        }
        (
            need(bytes.u8(at + field::TCP_FLAGS))?,
            need(bytes.u16(at + field::TCP_CHECKSUM))?,
        )
    } else {
        (0, need(bytes.u16(at + field::UDP_CHECKSUM))?)
    };
    Ok(Packet {
        source,
        destination,
        source_port: Be16(need(bytes.u16(at + field::SOURCE_PORT))?),
        destination_port: Be16(need(bytes.u16(at + field::DESTINATION_PORT))?),
        checksum: Be16(checksum),
        transport_length: (length - header) as u16,
        transport: at,
        length,
        protocol,
        tcp_flags,
        hops,
    })
}

impl Bytes for &[u8] {
    fn length(self) -> u32 {
        u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    fn u8(self, offset: usize) -> Option<u8> {
        self.get(offset).copied()
    }

    fn u16(self, offset: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn u32(self, offset: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }

    fn u64(self, offset: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.get(offset..)?.first_chunk()?))
    }
}
