//! The answer to a packet that does not fit into the next link: "fragmentation needed" (RFC 1191), "packet too big"
//! (RFC 4443).

use crate::{
    address::{Address, V4, V6},
    checksum,
    parse::{Bytes, NETWORK, Packet},
    protocol,
    refusal::{BACK, FORTH, Frame, Next, put, put_v4, put_v6, short, sum_of},
};

/// A family whose senders can be told.
pub trait TooBig: Address {
    /// The length of the frame with the answer.
    const TOO_BIG: usize;

    /// Writes the answer without its Ethernet header; `quoted` is how the packet's transport header begins.
    fn too_big(frame: &mut Frame, packet: &Packet<Self>, quoted: u64, mtu: u16);
}

const ICMP_HEADER: usize = 8;
const QUOTED: usize = 8;

impl TooBig for V4 {
    const TOO_BIG: usize = NETWORK + 20 + ICMP_HEADER + 20 + QUOTED;

    #[inline(always)]
    fn too_big(frame: &mut Frame, packet: &Packet<Self>, quoted: u64, mtu: u16) {
        let icmp = NETWORK + 20;
        let header = icmp + ICMP_HEADER;
        let length = packet.transport_length.wrapping_add(20);
        put_v4(
            frame,
            header,
            packet,
            FORTH,
            Next::new(packet.protocol, length),
        );
        put(frame, header + 20, quoted.to_ne_bytes());
        let [high, low] = mtu.to_be_bytes();
        put(frame, icmp, [3, 4, 0, 0, 0, 0, high, low]);
        let checksum = !checksum::fold(sum_of(frame, icmp, Self::TOO_BIG));
        put(frame, icmp + 2, checksum.to_ne_bytes());
        let next = Next::new(protocol::ICMP, short(Self::TOO_BIG - NETWORK));
        put_v4(frame, NETWORK, packet, BACK, next);
    }
}

impl TooBig for V6 {
    const TOO_BIG: usize = NETWORK + 40 + ICMP_HEADER + 40 + QUOTED;

    #[inline(always)]
    fn too_big(frame: &mut Frame, packet: &Packet<Self>, quoted: u64, mtu: u16) {
        let icmp = NETWORK + 40;
        let header = icmp + ICMP_HEADER;
        let next = Next::new(packet.protocol, packet.transport_length);
        put_v6(frame, header, packet, FORTH, next);
        put(frame, header + 40, quoted.to_ne_bytes());
        let [high, low] = mtu.to_be_bytes();
        put(frame, icmp, [2, 0, 0, 0, 0, 0, high, low]);
        let length = short(Self::TOO_BIG - icmp);
        let (from, to) = (packet.destination, packet.source);
        let pseudo = checksum::pseudo_header(from, to, protocol::ICMPV6, length);
        let checksum = !checksum::fold(pseudo + sum_of(frame, icmp, Self::TOO_BIG));
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

/// Writes the answer to a packet into a frame, Ethernet header included; the frame's length is [`TooBig::TOO_BIG`].
#[inline(always)]
pub fn answer<A: TooBig, B: Bytes>(
    bytes: B,
    packet: &Packet<A>,
    mtu: u16,
    frame: &mut Frame,
) -> Option<()> {
    A::too_big(frame, packet, bytes.u64(packet.transport)?, mtu);
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
