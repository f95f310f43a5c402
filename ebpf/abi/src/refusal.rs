//! The answer to a client that no backend can serve: a TCP reset, an ABORT of SCTP, or an ICMP error that says "port unreachable".

use crate::{
    address::{Address, V4, V6},
    bytes::Be32,
    checksum,
    parse::{NETWORK, Packet, field},
    protocol, sctp, tcp,
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
const ABORT_LENGTH: usize = sctp::LEAST as usize;

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
    /// The length of the frame with an ABORT of SCTP.
    const ABORT: usize;

    /// Writes the reset that answers a segment; to be sent from the address that the client knocked at.
    fn reset(frame: &mut Frame, packet: &Packet<Self>, segment: Segment);

    /// Writes the ABORT that answers a packet, with a verification tag and flags.
    fn abort(
        frame: &mut Frame,
        packet: &Packet<Self>,
        tag: (Be32, u8),
        crc: impl Fn(u32, u32) -> u32,
    );

    /// Type and code of the ICMP error that says "port unreachable".
    const PORT_UNREACHABLE: [u8; 2];
    /// Type and code of the ICMP error that says "hop limit exceeded".
    const HOPS_EXHAUSTED: [u8; 2];

    /// Writes an ICMP error about a packet, as if from an address. `second` is the second word of its transport.
    fn error(frame: &mut Frame, packet: &Packet<Self>, from: Self, kind: [u8; 2], second: Be32);
}

/// Whether a packet may be answered: a reset never answers a reset, and of fragments only the first is.
#[inline(always)]
pub const fn is_answerable<A>(packet: &Packet<A>) -> bool {
    packet.transport != 0 && is_first_answer(packet)
}

/// Whether an ICMP error may be about the packet: not about fragments behind the first (RFC 1122, 3.2.2), nor about what
/// may be an error itself.
#[inline(always)]
pub const fn is_quotable<A>(packet: &Packet<A>) -> bool {
    packet.transport != 0
        && matches!(
            packet.protocol,
            protocol::TCP | protocol::UDP | protocol::SCTP
        )
}

#[inline(always)]
const fn is_first_answer<A>(packet: &Packet<A>) -> bool {
    packet.tcp_flags & tcp::RST == 0
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

/// RFC 9260, 8.4: the answer to a packet for an association that does not exist.
#[inline(always)]
fn put_abort<A>(
    frame: &mut Frame,
    at: usize,
    packet: &Packet<A>,
    (tag, flags): (Be32, u8),
    crc: impl Fn(u32, u32) -> u32,
) {
    put(frame, at, packet.destination_port.0.to_ne_bytes());
    put(frame, at + 2, packet.source_port.0.to_ne_bytes());
    put(frame, at + sctp::TAG, tag.0.to_ne_bytes());
    put(frame, at + sctp::CHECKSUM, [0; 4]);
    let chunk = [sctp::ABORT, flags, 0, 4];
    put(frame, at + sctp::CHUNK, chunk);
    // Word by word, each carried over what follows it: the checksum itself counts as zero.
    let ports = u32::from(packet.destination_port.0) | u32::from(packet.source_port.0) << 16;
    let checksum = !(crc(!ports, 16) ^ crc(tag.0, 12) ^ crc(u32::from_ne_bytes(chunk), 4));
    put(frame, at + sctp::CHECKSUM, checksum.to_le_bytes());
}

/// What an ICMP error must quote of a transport: its first eight bytes.
#[inline(always)]
fn put_quoted<A>(frame: &mut Frame, at: usize, packet: &Packet<A>, second: Be32) {
    put(frame, at, packet.source_port.0.to_ne_bytes());
    put(frame, at + 2, packet.destination_port.0.to_ne_bytes());
    put(frame, at + 4, second.0.to_ne_bytes());
}

impl Refuse for V4 {
    const RESET: usize = NETWORK + V4_HEADER + TCP_HEADER;
    const UNREACHABLE: usize = NETWORK + V4_HEADER + ICMP_HEADER + V4_HEADER + UDP_HEADER;
    const ABORT: usize = NETWORK + V4_HEADER + ABORT_LENGTH;

    #[inline(always)]
    fn abort(
        frame: &mut Frame,
        packet: &Packet<Self>,
        tag: (Be32, u8),
        crc: impl Fn(u32, u32) -> u32,
    ) {
        let length = short(ABORT_LENGTH + V4_HEADER);
        let next = Next::new(protocol::SCTP, length);
        put_v4(frame, NETWORK, packet, BACK, next);
        put_abort(frame, NETWORK + V4_HEADER, packet, tag, crc);
    }

    #[inline(always)]
    fn reset(frame: &mut Frame, packet: &Packet<Self>, segment: Segment) {
        let next = Next::new(protocol::TCP, short(V4_HEADER + TCP_HEADER));
        put_v4(frame, NETWORK, packet, BACK, next);
        put_reset(frame, NETWORK + V4_HEADER, packet, segment);
    }

    const PORT_UNREACHABLE: [u8; 2] = [3, 3];
    const HOPS_EXHAUSTED: [u8; 2] = [11, 0];

    #[inline(always)]
    fn error(frame: &mut Frame, packet: &Packet<Self>, from: Self, kind: [u8; 2], second: Be32) {
        let icmp = NETWORK + V4_HEADER;
        let quoted = icmp + ICMP_HEADER;
        let length = packet.transport_length.wrapping_add(short(V4_HEADER));
        let next = Next::new(packet.protocol, length);
        put_v4(frame, quoted, packet, FORTH, next);
        put_quoted(frame, quoted + V4_HEADER, packet, second);
        put(frame, icmp, [kind[0], kind[1], 0, 0, 0, 0, 0, 0]);
        let checksum = !checksum::fold(sum_of(frame, icmp, Self::UNREACHABLE));
        put(frame, icmp + 2, checksum.to_ne_bytes());
        let next = Next::new(protocol::ICMP, short(Self::UNREACHABLE - NETWORK));
        put_v4(frame, NETWORK, packet, BACK, next);
        put(frame, field::V4_SOURCE, from.octets());
        put(frame, field::V4_CHECKSUM, [0, 0]);
        let checksum = !checksum::fold(sum_of(frame, NETWORK, icmp));
        put(frame, field::V4_CHECKSUM, checksum.to_ne_bytes());
    }
}

impl Refuse for V6 {
    const RESET: usize = NETWORK + V6_HEADER + TCP_HEADER;
    const UNREACHABLE: usize = NETWORK + V6_HEADER + ICMP_HEADER + V6_HEADER + UDP_HEADER;
    const ABORT: usize = NETWORK + V6_HEADER + ABORT_LENGTH;

    #[inline(always)]
    fn abort(
        frame: &mut Frame,
        packet: &Packet<Self>,
        tag: (Be32, u8),
        crc: impl Fn(u32, u32) -> u32,
    ) {
        let length = short(ABORT_LENGTH);
        let next = Next::new(protocol::SCTP, length);
        put_v6(frame, NETWORK, packet, BACK, next);
        put_abort(frame, NETWORK + V6_HEADER, packet, tag, crc);
    }

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

    const PORT_UNREACHABLE: [u8; 2] = [1, 4];
    const HOPS_EXHAUSTED: [u8; 2] = [3, 0];

    #[inline(always)]
    fn error(frame: &mut Frame, packet: &Packet<Self>, from: Self, kind: [u8; 2], second: Be32) {
        let icmp = NETWORK + V6_HEADER;
        let quoted = icmp + ICMP_HEADER;
        let next = Next::new(packet.protocol, packet.transport_length);
        put_v6(frame, quoted, packet, FORTH, next);
        put_quoted(frame, quoted + V6_HEADER, packet, second);
        put(frame, icmp, [kind[0], kind[1], 0, 0, 0, 0, 0, 0]);
        let length = short(Self::UNREACHABLE - icmp);
        let pseudo = checksum::pseudo_header(from, packet.source, protocol::ICMPV6, length);
        let checksum = !checksum::fold(pseudo + sum_of(frame, icmp, Self::UNREACHABLE));
        put(frame, icmp + 2, checksum.to_ne_bytes());
        let next = Next::new(protocol::ICMPV6, length);
        put_v6(frame, NETWORK, packet, BACK, next);
        put(frame, field::V6_SOURCE, from.octets());
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

/// Writes the answer to a packet of TCP or UDP into a frame, Ethernet header included; the frame's length is
/// [`Refuse::RESET`] or [`Refuse::UNREACHABLE`], by the packet's protocol.
#[inline(always)]
pub fn answer<A: Refuse, B: crate::parse::Bytes>(
    bytes: B,
    packet: &Packet<A>,
    frame: &mut Frame,
) -> Option<()> {
    if packet.protocol == protocol::TCP {
        A::reset(frame, packet, segment(bytes, packet.transport)?);
    } else {
        let second = Be32(bytes.u32(packet.transport + 4)?);
        A::error(
            frame,
            packet,
            packet.destination,
            A::PORT_UNREACHABLE,
            second,
        );
    }
    put_ethernet(bytes, frame)
}

/// The same for SCTP, in a frame of [`Refuse::ABORT`] bytes. `crc` is [`crate::crc32c::of_first_word`].
#[inline(always)]
pub fn abort<A: Refuse, B: crate::parse::Bytes>(
    bytes: B,
    packet: &Packet<A>,
    frame: &mut Frame,
    crc: impl Fn(u32, u32) -> u32,
) -> Option<()> {
    // An INIT says which tag it wants; to anything else its own is given back.
    let tag = if packet.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        (bytes.u32(packet.transport + sctp::INITIATE_TAG)?, 0)
    } else {
        (bytes.u32(packet.transport + sctp::TAG)?, sctp::REFLECTED)
    };
    A::abort(frame, packet, (Be32(tag.0), tag.1), crc);
    put_ethernet(bytes, frame)
}

/// Writes what the sender of a packet gets that has been over as many routers as it may, in a frame of
/// [`Refuse::UNREACHABLE`] bytes. `node` is who says so.
#[inline(always)]
pub fn expired<A: Refuse, B: crate::parse::Bytes>(
    bytes: B,
    packet: &Packet<A>,
    node: A,
    frame: &mut Frame,
) -> Option<()> {
    if !is_quotable(packet) {
        return None;
    }
    let from = if node.is_unspecified() {
        packet.destination
    } else {
        node
    };
    let second = Be32(bytes.u32(packet.transport + 4)?);
    A::error(frame, packet, from, A::HOPS_EXHAUSTED, second);
    put_ethernet(bytes, frame)
}

/// The way back of a frame.
#[inline(always)]
fn put_ethernet<B: crate::parse::Bytes>(bytes: B, frame: &mut Frame) -> Option<()> {
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
