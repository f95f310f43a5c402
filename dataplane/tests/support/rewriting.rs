//! How the model changes the bytes of a packet.

use portolan_abi::{
    bytes::Be16,
    checksum,
    parse::{Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
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

/// Rewrites a packet; the transport's checksum by one difference after the other.
pub fn change<A: Family>(
    frame: &mut [u8],
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    sums: [checksum::Difference; 2],
) {
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
    if !A::IS_V6 {
        let header = frame.u16_at(field::V4_CHECKSUM);
        let header = checksum::apply(Be16(header), rewrite.addresses(packet));
        put(frame, field::V4_CHECKSUM, &header.0.to_ne_bytes());
    }
    let (first, size) = if A::IS_V6 {
        (field::V6_SOURCE, 16)
    } else {
        (field::V4_SOURCE, 4)
    };
    for (at, address) in [(first, rewrite.source), (first + size, rewrite.destination)] {
        let words = address.words().map(u64::to_ne_bytes).concat();
        put(frame, at, &words[..size]);
    }
    let ports = [
        rewrite.source_port.0.to_ne_bytes(),
        rewrite.destination_port.0.to_ne_bytes(),
    ];
    put(frame, packet.transport, &ports.concat());
}

trait At {
    fn u16_at(&self, at: usize) -> u16;
}

impl At for [u8] {
    fn u16_at(&self, at: usize) -> u16 {
        u16::from_ne_bytes([self[at], self[at + 1]])
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

/// Makes the frame the answer to a client that nobody serves.
pub fn answer<A: Family>(frame: &mut Vec<u8>, packet: &Packet<A>) {
    let mut answer = [0; refusal::LONGEST];
    refusal::answer(frame.as_slice(), packet, &mut answer).expect("the packet has been parsed");
    let length = if packet.protocol == protocol::TCP {
        A::RESET
    } else {
        A::UNREACHABLE
    };
    *frame = answer[..length].to_vec();
}
