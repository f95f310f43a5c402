//! Writing into packets that can be written directly: what tcx and XDP have in common. All pointers are checked before
//! the first byte is written.

use portolan_abi::{
    address::Address,
    bytes::Be16,
    icmp::{Edits, IcmpError, place},
    parse::{Packet, field},
    rewrite::Rewrite,
    sctp,
};

use crate::{
    frame::{Frame, write_addresses},
    stages,
};

/// Writes the IP header of a packet that goes over so many routers, 0 or 1.
#[inline(always)]
pub fn head<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
) -> Option<()> {
    let at = if A::IS_V6 {
        field::V6_SOURCE
    } else {
        field::V4_SOURCE
    };
    let network = frame.at::<[A; 2]>(at)?;
    hops(frame, packet, rewrite, routers)?;
    // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
    unsafe { write_addresses(network, rewrite.source, rewrite.destination) };
    Some(())
}

/// Writes how many routers a packet may still go over, and IPv4's checksum.
#[inline(always)]
pub fn hops<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
) -> Option<()> {
    if A::IS_V6 {
        let limit = frame.at::<u8>(field::V6_HOP_LIMIT)?;
        // SAFETY: `at` checked the pointer.
        unsafe { *limit = packet.hops.wrapping_sub(routers) };
    } else {
        let word = frame.at::<u32>(field::V4_TTL)?;
        // SAFETY: `at` checked the pointer, and BPF's accesses need no alignment in packets.
        unsafe { *word = rewrite.head(packet, *word, routers) };
    }
    Some(())
}

/// Writes what changes of a packet of SCTP.
#[inline(always)]
pub fn sctp<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
) -> Option<()> {
    let difference = stages::crc(
        sctp::ports(packet, rewrite),
        u32::from(packet.transport_length),
    );
    let checksum = frame.at::<u32>(packet.transport + sctp::CHECKSUM)?;
    let ports = frame.at::<[Be16; 2]>(packet.transport)?;
    head(frame, packet, rewrite, routers)?;
    // SAFETY: `at` checked both pointers, and BPF's accesses need no alignment in packets.
    unsafe {
        *checksum = sctp::apply(*checksum, difference);
        *ports = [rewrite.source_port, rewrite.destination_port];
    }
    Some(())
}

/// Writes what changes of an ICMP error and of the packet that it quotes.
///
/// All of it together leaves the sum of the packet as it was, which a device may have summed up already.
#[inline(always)]
pub fn error<A: Address>(frame: Frame, error: &IcmpError<A>, edits: &Edits<A>) -> Option<()> {
    let header = frame.at::<Be16>(field::V4_CHECKSUM)?;
    let quoted_header = frame.at::<Be16>(place::quoted_checksum(error))?;
    let ends = frame.at::<[A; 2]>(place::ends::<A>())?;
    let checksum = frame.at::<Be16>(place::checksum(error))?;
    let quoted_ends = frame.at::<[A; 2]>(place::quoted_ends(error))?;
    let ports = frame.at::<[Be16; 2]>(error.about.transport)?;
    if error.has_checksum {
        let transport = frame.at::<Be16>(place::transport_checksum(error))?;
        // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
        unsafe { *transport = edits.transport_checksum };
    }
    // SAFETY: `at` checked every pointer, and BPF's stores need no alignment in packets.
    unsafe {
        if !A::IS_V6 {
            *header = edits.header_checksum;
            *quoted_header = edits.quoted_checksum;
        }
        write_addresses(ends, edits.ends[0], edits.ends[1]);
        *checksum = edits.checksum;
        write_addresses(quoted_ends, edits.quoted_ends[0], edits.quoted_ends[1]);
        *ports = edits.quoted_ports;
    }
    Some(())
}
