//! The answer to a client that no backend can serve: a TCP reset, or an ICMP error that says "port unreachable".

use crate::{
    address::{Address, V4, V6},
    bytes::Be32,
    checksum,
    parse::{NETWORK, Packet, field},
    protocol, tcp,
};

/// Room for the longest answer: Ethernet, IPv6, ICMP, and the IPv6 and UDP headers that it answers.
pub const LONGEST: usize = 128;

/// A frame under construction. Its first 14 bytes, Ethernet's, are the sender's business.
pub type Frame = [u8; LONGEST];

/// A length that the frame has room for.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "lengths of headers")]
pub(crate) const fn short(length: usize) -> u16 {
    length as u16
}

const TTL: u8 = 64;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const ICMP_UNREACHABLE: u8 = 3;
const ICMP_PORT: u8 = 3;
const ICMPV6_UNREACHABLE: u8 = 1;
const ICMPV6_PORT: u8 = 4;

/// What a reset answers: the packet and the numbers of its TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The sequence number.
    pub sequence: Be32,
    /// The acknowledgement number.
    pub acknowledgement: Be32,
    /// The length of the TCP header.
    pub header: u16,
}

/// A family whose clients can be refused.
pub trait Refuse: Address {
    /// The length of the frame with a reset.
    const RESET: usize;
    /// The length of the frame with an ICMP error.
    const UNREACHABLE: usize;

    /// Writes the reset that answers a segment; to be sent from the address that the client knocked at.
    fn reset(frame: &mut Frame, packet: &Packet<Self>, segment: Segment);

    /// Writes the ICMP error that answers a datagram.
    fn unreachable(frame: &mut Frame, packet: &Packet<Self>);
}

/// Whether a packet may be answered: a reset never answers a reset.
#[inline(always)]
pub const fn is_answerable<A>(packet: &Packet<A>) -> bool {
    packet.protocol != protocol::TCP || packet.tcp_flags & tcp::RST == 0
}

#[inline(always)]
pub(crate) fn put<const N: usize>(frame: &mut Frame, at: usize, bytes: [u8; N]) {
    let mut index = 0;
    while index < N {
        frame[(at + index) & (LONGEST - 1)] = bytes[index];
        index += 1;
    }
}

// Not inlined, as the compiler would keep in registers, and then on the stack, what it has just written.
#[inline(never)]
pub(crate) fn sum_of(frame: &Frame, from: usize, to: usize) -> u64 {
    let mut total = 0;
    let mut at = from;
    while at < to {
        total += u64::from(u16::from_ne_bytes([
            frame[at & (LONGEST - 1)],
            frame[(at + 1) & (LONGEST - 1)],
        ]));
        at += 2;
    }
    total
}

/// What an IP header says of what follows it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Next(u32);

impl Next {
    /// A protocol, and the length that the header has to say.
    #[inline(always)]
    pub(crate) fn new(protocol: u8, length: u16) -> Self {
        Self(u32::from(protocol) << 16 | u32::from(length))
    }

    #[inline(always)]
    const fn bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

/// Where an IP header goes: as the packet's own, or back to where the packet came from.
pub(crate) const FORTH: u32 = 0;
pub(crate) const BACK: u32 = 1;

// Not inlined: two headers with the same addresses would keep each of their bytes on the stack in between.
#[inline(never)]
pub(crate) fn put_v4(frame: &mut Frame, at: usize, packet: &Packet<V4>, way: u32, next: Next) {
    let (source, destination) = ends(packet, way);
    let [_, protocol, high, low] = next.bytes();
    put(
        frame,
        at,
        [0x45, 0, high, low, 0, 0, 0x40, 0, TTL, protocol, 0, 0],
    );
    put(frame, at + 12, source.octets());
    put(frame, at + 16, destination.octets());
    let checksum = !checksum::fold(sum_of(frame, at, at + V4_HEADER));
    put(frame, at + 10, checksum.to_ne_bytes());
}

#[inline(never)]
pub(crate) fn put_v6(frame: &mut Frame, at: usize, packet: &Packet<V6>, way: u32, next: Next) {
    let (source, destination) = ends(packet, way);
    let [_, protocol, high, low] = next.bytes();
    put(frame, at, [0x60, 0, 0, 0, high, low, protocol, TTL]);
    put(frame, at + 8, source.octets());
    put(frame, at + 24, destination.octets());
}

#[inline(always)]
fn ends<A: Address>(packet: &Packet<A>, way: u32) -> (A, A) {
    if way == FORTH {
        (packet.source, packet.destination)
    } else {
        (packet.destination, packet.source)
    }
}

/// RFC 9293, 3.10.7.1: the answer to a segment for a connection that does not exist.
#[inline(always)]
fn put_reset<A: Address>(frame: &mut Frame, at: usize, packet: &Packet<A>, segment: Segment) {
    let flags = packet.tcp_flags;
    let data = packet.transport_length.wrapping_sub(segment.header);
    let occupied =
        u32::from(data) + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
    let (sequence, acknowledgement, answer) = if flags & tcp::ACK != 0 {
        (segment.acknowledgement.get(), 0, tcp::RST)
    } else {
        (
            0,
            segment.sequence.get().wrapping_add(occupied),
            tcp::RST | tcp::ACK,
        )
    };
    put(frame, at, packet.destination_port.0.to_ne_bytes());
    put(frame, at + 2, packet.source_port.0.to_ne_bytes());
    put(frame, at + field::TCP_SEQUENCE, sequence.to_be_bytes());
    put(
        frame,
        at + field::TCP_ACKNOWLEDGEMENT,
        acknowledgement.to_be_bytes(),
    );
    put(
        frame,
        at + field::TCP_OFFSET,
        [0x50, answer, 0, 0, 0, 0, 0, 0],
    );
    let length = short(TCP_HEADER);
    let pseudo = checksum::pseudo_header(packet.destination, packet.source, protocol::TCP, length);
    let checksum = if is_partial(packet) {
        // The device that completes the client's checksum will complete this one too.
        checksum::fold(pseudo)
    } else {
        !checksum::fold(pseudo + sum_of(frame, at, at + TCP_HEADER))
    };
    put(frame, at + field::TCP_CHECKSUM, checksum.to_ne_bytes());
}

/// Whether the packet's checksum was left to a device.
#[inline(always)]
pub fn is_partial<A: Address>(packet: &Packet<A>) -> bool {
    checksum::is_partial(
        packet.checksum,
        packet.source,
        packet.destination,
        packet.protocol,
        packet.transport_length,
    )
}

/// The header that an ICMP error must quote: the client's own, UDP's.
#[inline(always)]
fn put_udp<A>(frame: &mut Frame, at: usize, packet: &Packet<A>) {
    put(frame, at, packet.source_port.0.to_ne_bytes());
    put(frame, at + 2, packet.destination_port.0.to_ne_bytes());
    put(frame, at + 4, packet.transport_length.to_be_bytes());
    put(frame, at + 6, packet.checksum.0.to_ne_bytes());
}

impl Refuse for V4 {
    const RESET: usize = NETWORK + V4_HEADER + TCP_HEADER;
    const UNREACHABLE: usize = NETWORK + V4_HEADER + ICMP_HEADER + V4_HEADER + UDP_HEADER;

    #[inline(always)]
    fn reset(frame: &mut Frame, packet: &Packet<Self>, segment: Segment) {
        let next = Next::new(protocol::TCP, short(V4_HEADER + TCP_HEADER));
        put_v4(frame, NETWORK, packet, BACK, next);
        put_reset(frame, NETWORK + V4_HEADER, packet, segment);
    }

    #[inline(always)]
    fn unreachable(frame: &mut Frame, packet: &Packet<Self>) {
        let icmp = NETWORK + V4_HEADER;
        let quoted = icmp + ICMP_HEADER;
        let length = packet.transport_length.wrapping_add(short(V4_HEADER));
        put_v4(
            frame,
            quoted,
            packet,
            FORTH,
            Next::new(protocol::UDP, length),
        );
        put_udp(frame, quoted + V4_HEADER, packet);
        put(frame, icmp, [ICMP_UNREACHABLE, ICMP_PORT, 0, 0, 0, 0, 0, 0]);
        let checksum = !checksum::fold(sum_of(frame, icmp, Self::UNREACHABLE));
        put(frame, icmp + 2, checksum.to_ne_bytes());
        let next = Next::new(protocol::ICMP, short(Self::UNREACHABLE - NETWORK));
        put_v4(frame, NETWORK, packet, BACK, next);
    }
}

impl Refuse for V6 {
    const RESET: usize = NETWORK + V6_HEADER + TCP_HEADER;
    const UNREACHABLE: usize = NETWORK + V6_HEADER + ICMP_HEADER + V6_HEADER + UDP_HEADER;

    #[inline(always)]
    fn reset(frame: &mut Frame, packet: &Packet<Self>, segment: Segment) {
        put_v6(
            frame,
            NETWORK,
            packet,
            BACK,
            Next::new(protocol::TCP, short(TCP_HEADER)),
        );
        put_reset(frame, NETWORK + V6_HEADER, packet, segment);
    }

    #[inline(always)]
    fn unreachable(frame: &mut Frame, packet: &Packet<Self>) {
        let icmp = NETWORK + V6_HEADER;
        let quoted = icmp + ICMP_HEADER;
        let next = Next::new(protocol::UDP, packet.transport_length);
        put_v6(frame, quoted, packet, FORTH, next);
        put_udp(frame, quoted + V6_HEADER, packet);
        put(
            frame,
            icmp,
            [ICMPV6_UNREACHABLE, ICMPV6_PORT, 0, 0, 0, 0, 0, 0],
        );
        let length = short(Self::UNREACHABLE - icmp);
        let (from, to) = (packet.destination, packet.source);
        let pseudo = checksum::pseudo_header(from, to, protocol::ICMPV6, length);
        let checksum = !checksum::fold(pseudo + sum_of(frame, icmp, Self::UNREACHABLE));
        put(frame, icmp + 2, checksum.to_ne_bytes());
        put_v6(
            frame,
            NETWORK,
            packet,
            BACK,
            Next::new(protocol::ICMPV6, length),
        );
    }
}

/// The segment's numbers, read from where the packet's transport header lies.
#[inline(always)]
pub fn segment<B: crate::parse::Bytes>(bytes: B, transport: usize) -> Option<Segment> {
    Some(Segment {
        sequence: Be32(bytes.u32(transport + field::TCP_SEQUENCE)?),
        acknowledgement: Be32(bytes.u32(transport + field::TCP_ACKNOWLEDGEMENT)?),
        header: u16::from(bytes.u8(transport + field::TCP_OFFSET)? >> 4) * 4,
    })
}

/// Writes the answer to a packet into a frame, Ethernet header included; the frame's length is [`Refuse::RESET`] or
/// [`Refuse::UNREACHABLE`], by the packet's protocol.
#[inline(always)]
pub fn answer<A: Refuse, B: crate::parse::Bytes>(
    bytes: B,
    packet: &Packet<A>,
    frame: &mut Frame,
) -> Option<()> {
    if packet.protocol == protocol::TCP {
        A::reset(frame, packet, segment(bytes, packet.transport)?);
    } else {
        A::unreachable(frame, packet);
    }
    let mut at = 0;
    while at < 6 {
        frame[at] = bytes.u8(at + 6)?;
        frame[at + 6] = bytes.u8(at)?;
        at += 1;
    }
    frame[12] = bytes.u8(12)?;
    frame[13] = bytes.u8(13)?;
    Some(())
}
