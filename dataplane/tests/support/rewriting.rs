//! How the model changes the bytes of a packet.

use portolan_abi::{
    checksum, crc32c, echo,
    icmp::{Edits, IcmpError, place},
    parse::{Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
    sctp,
};

use super::{family::Family, model::TC_REDIRECT};

/// Writes bytes into a frame.
pub fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Where a transport's checksum stands in its header.
pub fn sum_offset(number: u8) -> usize {
    if number == protocol::TCP {
        field::TCP_CHECKSUM
    } else {
        field::UDP_CHECKSUM
    }
}

/// Rewrites a packet that goes over so many routers; the transport's checksum by one difference after the other.
pub fn change<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
    sums: [checksum::Difference; 2],
) {
    put_head(frame, packet, rewrite, routers);
    let first = if A::IS_V6 {
        field::V6_SOURCE
    } else {
        field::V4_SOURCE
    };
    put_ends(frame, first, [rewrite.source, rewrite.destination]);
    if packet.transport == 0 {
        return;
    }
    let ports = [
        rewrite.source_port.0.to_ne_bytes(),
        rewrite.destination_port.0.to_ne_bytes(),
    ];
    if packet.protocol == protocol::ICMP {
        // ICMP's checksum covers no addresses, ICMPv6's does.
        let addresses = if A::IS_V6 {
            sums[0]
        } else {
            checksum::Difference::NONE
        };
        let sum = checksum::apply(checksum::apply(packet.checksum, addresses), sums[1]);
        let identifier = echo::identifier(rewrite);
        put(
            frame,
            packet.transport + echo::CHECKSUM,
            &sum.0.to_ne_bytes(),
        );
        let at = packet.transport + echo::IDENTIFIER;
        return put(frame, at, &identifier.0.to_ne_bytes());
    }
    put(frame, packet.transport, &ports.concat());
    if packet.protocol == protocol::SCTP {
        let at = packet.transport + sctp::CHECKSUM;
        let sum = u32::from_ne_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let sum = sctp::apply(sum, sctp::difference(packet, rewrite));
        return put(frame, at, &sum.to_ne_bytes());
    }
    let at = packet.transport + sum_offset(packet.protocol);
    let mut sum = packet.checksum;
    for difference in sums {
        sum = if packet.protocol == protocol::TCP {
            checksum::apply(sum, difference)
        } else {
            checksum::apply_udp(sum, difference)
        };
    }
    put(frame, at, &sum.0.to_ne_bytes());
}

/// Lets a packet go over so many routers.
pub fn put_head<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
) {
    if A::IS_V6 {
        put(frame, field::V6_HOP_LIMIT, &[packet.hops - routers]);
    } else {
        let at = field::V4_TTL;
        let word = u32::from_ne_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        put(
            frame,
            at,
            &rewrite.head(packet, word, routers).to_ne_bytes(),
        );
    }
}

/// Makes a frame one for the node's own stack.
pub fn to_node(frame: &mut [u8]) -> i32 {
    put(frame, 0, &[0; 12]);
    TC_REDIRECT
}

/// Addresses a frame to a pod's end of its veth.
pub fn to_pod(frame: &mut [u8], macs: [[u8; 6]; 2]) -> i32 {
    put(frame, 0, &macs.concat());
    TC_REDIRECT
}

/// Makes the frame the answer to a client that nobody serves; whether there is one.
pub fn answer<A: Family>(frame: &mut Vec<u8>, packet: &Packet<A>) -> bool {
    let mut answer = [0; refusal::LONGEST];
    let written = if packet.protocol == protocol::SCTP {
        let crc = crc32c::of_first_word;
        refusal::abort(frame.as_slice(), packet, &mut answer, crc)
    } else {
        refusal::answer(frame.as_slice(), packet, &mut answer)
    };
    if written.is_none() {
        return false;
    }
    let length = match packet.protocol {
        protocol::TCP => A::RESET,
        protocol::SCTP => A::ABORT,
        _ => A::UNREACHABLE,
    };
    *frame = answer[..length].to_vec();
    true
}

/// Rewrites an ICMP error and what it quotes.
pub fn change_error<A: Family>(frame: &mut [u8], error: &IcmpError<A>, edits: &Edits<A>) {
    if !A::IS_V6 {
        put(
            frame,
            field::V4_CHECKSUM,
            &edits.header_checksum.0.to_ne_bytes(),
        );
        let at = place::quoted_checksum(error);
        put(frame, at, &edits.quoted_checksum.0.to_ne_bytes());
    }
    put_ends(frame, place::ends::<A>(), edits.ends);
    put(
        frame,
        place::checksum(error),
        &edits.checksum.0.to_ne_bytes(),
    );
    put_ends(frame, place::quoted_ends(error), edits.quoted_ends);
    let ports = edits.quoted_ports.map(|port| port.0.to_ne_bytes());
    put(frame, error.about.transport, &ports.concat());
    if error.has_checksum {
        let at = place::transport_checksum(error);
        put(frame, at, &edits.transport_checksum.0.to_ne_bytes());
    }
}

fn put_ends<A: Family>(frame: &mut [u8], at: usize, ends: [A; 2]) {
    let size = if A::IS_V6 { 16 } else { 4 };
    for (which, address) in ends.into_iter().enumerate() {
        let words = address.words().map(u64::to_ne_bytes).concat();
        put(frame, at + which * size, &words[..size]);
    }
}
