//! What the XDP program does to frames: rewrite in place.

use aya_ebpf::{
    helpers::generated::{bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use portolan_abi::{
    address::Address,
    bytes::Be16,
    checksum,
    parse::{Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
};

use crate::{edit, frame::Frame, hops::Hop};

/// The same without asking for the packet's length, for what does not look at it.
#[inline(always)]
pub fn headers(context: &XdpContext) -> Frame {
    Frame::new(context.data(), context.data_end(), 0)
}

/// The first buffer, taken for the whole packet.
#[inline(always)]
pub fn linear(context: &XdpContext) -> Frame {
    let length = context.data_end() - context.data();
    Frame::new(context.data(), context.data_end(), length as u32)
}

/// Whether a packet may lie in several buffers. The loader says no where the kernel cannot, and the verifier then drops
/// what asks for more.
#[unsafe(no_mangle)]
static XDP_FRAGMENTS: u32 = 1;

/// The first buffer of a packet. It must not be used after the packet has been resized.
#[inline(always)]
pub fn frame(context: &XdpContext) -> Frame {
    // SAFETY: a number that the loader has written before the program was loaded.
    let length = if unsafe { (&raw const XDP_FRAGMENTS).read_volatile() } == 0 {
        context.data_end() - context.data()
    } else {
        // SAFETY: the context is the program's own.
        unsafe { bpf_xdp_get_buff_len(context.ctx) as usize }
    };
    Frame::new(context.data(), context.data_end(), length as u32)
}

/// The interface that a packet came in by.
#[inline(always)]
pub fn interface(context: &XdpContext) -> u32 {
    context.ingress_ifindex() as u32
}

/// Changes the next hop.
#[inline(always)]
pub fn leave_by(frame: Frame, hop: Hop) -> Option<()> {
    let macs = frame.at::<Hop>(0)?;
    // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
    unsafe {
        (*macs)[0] = hop[0];
        (*macs)[1] = hop[1];
        (*macs)[2] = hop[2];
    }
    Some(())
}

/// Changes addresses, ports and next hop of a packet of TCP or UDP with the checksums over them, as it goes over a
/// router; nothing if not all of it is there.
#[inline(always)]
pub fn rewrite<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    hop: Hop,
) -> Option<()> {
    let whole = rewrite.addresses(packet).and(rewrite.ports(packet));
    let (offset, sum) = if packet.protocol == protocol::TCP {
        (field::TCP_CHECKSUM, checksum::apply(packet.checksum, whole))
    } else {
        (
            field::UDP_CHECKSUM,
            checksum::apply_udp(packet.checksum, whole),
        )
    };
    let ports = frame.at::<[Be16; 2]>(packet.transport)?;
    let transport = frame.at::<Be16>(packet.transport + offset)?;
    leave_by(frame, hop)?;
    edit::head(frame, packet, rewrite, 1)?;
    // SAFETY: `at` checked every pointer, and BPF's stores need no alignment in packets.
    unsafe {
        *ports = [rewrite.source_port, rewrite.destination_port];
        *transport = sum;
    }
    Some(())
}

/// The same for any packet.
#[inline(always)]
pub fn rewrite_slow<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    changes: &Rewrite<A>,
    hop: Hop,
) -> Option<()> {
    if packet.transport == 0 {
        // The first fragment holds the checksum, also over this one's addresses.
        leave_by(frame, hop)?;
        edit::head(frame, packet, changes, 1)
    } else if packet.protocol == protocol::SCTP {
        leave_by(frame, hop)?;
        edit::sctp(frame, packet, changes, 1)
    } else {
        rewrite(frame, packet, changes, hop)
    }
}

/// Makes the packet an answer of a length; unchanged if that cannot be.
#[inline(always)]
pub fn answer(context: &XdpContext, answer: &refusal::Frame, length: usize) -> Option<()> {
    let now = context.data_end() - context.data();
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_tail(context.ctx, length as i32 - now as i32) } != 0 {
        return None;
    }
    let bytes = Frame::new(context.data(), context.data_end(), length as u32).span(0, length)?;
    let mut at = 0;
    while at < length {
        // SAFETY: the pointer was checked for all of the answer.
        unsafe { *bytes.add(at) = answer[at] };
        at += 1;
    }
    Some(())
}
