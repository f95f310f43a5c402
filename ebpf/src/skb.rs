//! What tcx programs do to socket buffers: rewrite by the kernel's helpers, which keep GSO and offloaded checksums.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_redir_neigh as NextHop},
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use portolan_abi::{
    address::Address,
    bytes::Be16,
    checksum,
    drop_reason::DropReason,
    echo,
    parse::{Bytes, ETHER_V4, ETHER_V6, NETWORK, Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
    tables::Hook,
};

use crate::{
    edit,
    frame::Frame,
    hops::{self, AF_INET, AF_INET6, Hop, halves},
};

/// The loopback interface: the first of every network namespace.
const LOOPBACK: u32 = 1;

/// The directly readable part of a packet. It must not be used after a helper has changed the packet.
#[inline(always)]
pub fn frame(context: &TcContext) -> Frame {
    Frame::new(context.data(), context.data_end(), context.len())
}

/// The interface that the packet was seen at.
#[inline(always)]
pub fn interface(context: &TcContext) -> u32 {
    // SAFETY: the context is the program's own.
    unsafe { (*context.skb.skb).ifindex }
}

/// Whether the packet came in by an interface, rather than from a process of the node.
#[inline(always)]
pub fn came_in(context: &TcContext) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { (*context.skb.skb).ingress_ifindex != 0 }
}

/// Whether the packet was seen at the loopback interface.
#[inline(always)]
pub fn is_at_loopback(context: &TcContext) -> bool {
    interface(context) == LOOPBACK
}

/// The size of the segments that the kernel will cut the packet into; 0 if it will not.
#[inline(always)]
pub fn segment_size(context: &TcContext) -> u32 {
    // SAFETY: the context is the program's own.
    unsafe { (*context.skb.skb).gso_size }
}

/// Whether the packet belongs to another interface than it was seen at: one for the VLAN of its tag. A tag without a
/// VLAN says only how urgent it is.
#[inline(always)]
pub fn is_of_vlan(context: &TcContext) -> bool {
    // SAFETY: the context is the program's own.
    unsafe { (*context.skb.skb).vlan_tci & 0xfff != 0 }
}

/// Leaves word for the program that goes on with the packet.
#[inline(always)]
pub fn leave_hook(context: &TcContext, hook: Hook) {
    // SAFETY: the context is the program's own, and these words are the programs' at this hook.
    unsafe { (*context.skb.skb).cb[0] = hook.0 };
}

/// What [`leave_hook`] left, read anew each time: the verifier then looks once at what follows, and not once for each hook
/// that it has told apart before.
#[inline(always)]
pub fn left_hook(context: &TcContext) -> Hook {
    // SAFETY: the context is the program's own.
    Hook(unsafe { (&raw const (*context.skb.skb).cb[0]).read_volatile() })
}

/// Makes so many bytes readable, or all that there are; false if that cannot be.
#[inline(always)]
pub fn pull(context: &TcContext, bytes: u32) -> bool {
    let length = if context.len() < bytes {
        context.len()
    } else {
        bytes
    };
    // SAFETY: the context is the program's own.
    unsafe { bpf_skb_pull_data(context.as_ptr().cast(), length) == 0 }
}

/// Gives a packet that begins with its IP header a link header again, and says what kind it is; `None` if it is no such
/// packet. XDP in the stack (generic XDP) of Linux 6.9 and newer copies packets, and forgets how long the copies' link
/// headers are: what comes in behind it is shown to tc without them.
#[inline(always)]
pub fn restore_link_header(context: &TcContext) -> Option<Be16> {
    // SAFETY: the context is the program's own.
    let kind = Be16(unsafe { (*context.skb.skb).protocol } as u16);
    let version = match kind {
        ETHER_V4 => 4,
        ETHER_V6 => 6,
        _ => return None,
    };
    if frame(context).u8(0)? >> 4 != version {
        return None;
    }
    // SAFETY: the context is the program's own. The kernel looks anew where the headers are.
    if unsafe { bpf_skb_change_head(context.as_ptr().cast(), NETWORK as u32, 0) } != 0 {
        return None;
    }
    store(context, field::ETHER_TYPE, &kind).ok()?;
    Some(kind)
}

/// Writes a value into a packet.
#[inline(always)]
pub fn store<T>(context: &TcContext, offset: usize, value: &T) -> Result<(), DropReason> {
    // SAFETY: the value is readable for its size; the helper checks the offset.
    let result = unsafe {
        bpf_skb_store_bytes(
            context.as_ptr().cast(),
            offset as u32,
            core::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(DropReason::RewriteFailed)
    }
}

/// Where a packet's checksum and ports lie, and how its checksum is to be changed: for addresses, then for ports.
#[inline(always)]
fn transport<A>(packet: &Packet<A>) -> (usize, usize, [u64; 2]) {
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    let mangled = u64::from(BPF_F_MARK_MANGLED_0);
    match packet.protocol {
        protocol::TCP => (field::TCP_CHECKSUM, field::SOURCE_PORT, [pseudo, 0]),
        protocol::UDP => (
            field::UDP_CHECKSUM,
            field::SOURCE_PORT,
            [pseudo | mangled, mangled],
        ),
        _ => (echo::CHECKSUM, echo::IDENTIFIER, [pseudo, 0]),
    }
}

/// Lets a packet go over a router that changes nothing else of it.
#[inline(always)]
pub fn pass_router<A: Address>(context: &TcContext, packet: &Packet<A>) -> Result<(), DropReason> {
    edit::hops(frame(context), packet, &Rewrite::unchanged(packet), 1)
        .ok_or(DropReason::RewriteFailed)
}

/// Changes a packet's addresses and ports with the checksums over them, as it goes over so many routers. Without `SLOW`
/// it is one of TCP or UDP, and whole.
///
/// What pods send mostly leaves its checksum to a device; what comes in at the uplink mostly has it already.
#[inline(always)]
pub fn rewrite<A: Address, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    (hook, routers): (Hook, u8),
) -> Result<(), DropReason> {
    if SLOW && packet.transport == 0 {
        // The first fragment holds the checksum, also over this one's addresses.
        return edit::head(frame(context), packet, rewrite, routers)
            .ok_or(DropReason::RewriteFailed);
    }
    if SLOW && packet.protocol == protocol::SCTP {
        return edit::sctp(frame(context), packet, rewrite, routers)
            .ok_or(DropReason::RewriteFailed);
    }
    let is_echo = SLOW && packet.protocol == protocol::ICMP;
    if hook.is_uplink() && !is_echo && !refusal::is_partial(packet) {
        rewrite_complete(context, packet, rewrite, routers).ok_or(DropReason::RewriteFailed)
    } else {
        rewrite_any(context, packet, rewrite, (routers, is_echo))
    }
}

/// The same for a packet whose checksum is complete: it is written directly.
#[inline(always)]
fn rewrite_complete<A: Address>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    routers: u8,
) -> Option<()> {
    let addresses = rewrite.addresses(packet);
    let whole = addresses.and(rewrite.ports(packet));
    let (offset, sum) = if packet.protocol == protocol::TCP {
        (field::TCP_CHECKSUM, checksum::apply(packet.checksum, whole))
    } else {
        (
            field::UDP_CHECKSUM,
            checksum::apply_udp(packet.checksum, whole),
        )
    };
    let frame = frame(context);
    let transport = frame.at::<Be16>(packet.transport + offset)?;
    // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
    unsafe { *transport = sum };
    write(frame, packet, rewrite, (routers, packet.transport, false))?;
    if !A::IS_V6 {
        // The sum that a device made over all of the packet: IPv4's own checksum balances the addresses, so that only the
        // transport's tells. Where there is no such sum the helper refuses. In IPv6 everything is balanced.
        // SAFETY: the context is the program's own.
        unsafe {
            bpf_csum_update(
                context.as_ptr().cast(),
                u32::from(!(addresses.sum() as u16)),
            )
        };
    }
    Some(())
}

/// The same for every packet.
#[inline(always)]
fn rewrite_any<A: Address>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    (routers, is_echo): (u8, bool),
) -> Result<(), DropReason> {
    let skb = context.as_ptr().cast();
    let addresses = u64::from(rewrite.addresses(packet).sum());
    let ports = u64::from(rewrite.ports(packet).sum());
    let (sum_at, ports_at, flags) = transport(packet);
    let sum_at = (packet.transport + sum_at) as u32;
    // ICMP's checksum covers no addresses, ICMPv6's does.
    let covers_addresses = A::IS_V6 || !is_echo;
    let moves = rewrite.source_port != packet.source_port
        || rewrite.destination_port != packet.destination_port;
    // Only helpers know whether a device is still to complete the checksum. The rest is written directly.
    // SAFETY: the context is the program's own; the helpers check their offsets.
    let failed = unsafe {
        (covers_addresses && bpf_l4_csum_replace(skb, sum_at, 0, addresses, flags[0]) != 0)
            || (moves && bpf_l4_csum_replace(skb, sum_at, 0, ports, flags[1]) != 0)
    };
    if failed {
        return Err(DropReason::RewriteFailed);
    }
    let at = packet.transport + ports_at;
    write(frame(context), packet, rewrite, (routers, at, is_echo)).ok_or(DropReason::RewriteFailed)
}

/// Writes the IP header, and ports or an echo's identifier.
#[inline(always)]
fn write<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    (routers, ports_at, is_echo): (u8, usize, bool),
) -> Option<()> {
    let ports = frame.at::<[Be16; 2]>(ports_at)?;
    edit::head(frame, packet, rewrite, routers)?;
    // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
    unsafe {
        if is_echo {
            (*ports)[0] = echo::identifier(rewrite);
        } else {
            *ports = [rewrite.source_port, rewrite.destination_port];
        }
    }
    Some(())
}

/// Writes the MAC addresses of the next hop, the destination's first.
#[inline(always)]
fn set_macs(context: &TcContext, macs: [[u8; 6]; 2]) -> Result<(), DropReason> {
    let header = frame(context)
        .at::<Hop>(0)
        .ok_or(DropReason::RewriteFailed)?;
    let hop = hops::hop(macs);
    // SAFETY: `at` checked the pointer, and BPF's stores need no alignment in packets.
    unsafe {
        (*header)[0] = hop[0];
        (*header)[1] = hop[1];
        (*header)[2] = hop[2];
    }
    Ok(())
}

/// Puts a packet into the pod behind a veth; the MAC addresses are the pod's and the node's ends'. The kernel moves what
/// comes in straight into the pod's namespace; what is on its way out goes out of the veth's end.
#[inline(always)]
pub fn to_pod(
    context: &TcContext,
    interface: u32,
    macs: [[u8; 6]; 2],
    hook: Hook,
) -> Result<i32, DropReason> {
    set_macs(context, macs)?;
    // SAFETY: the helpers note where to; the verdict does it.
    Ok(unsafe {
        if hook.is_node() {
            bpf_redirect(interface, 0)
        } else {
            bpf_redirect_peer(interface, 0)
        }
    } as i32)
}

/// Hands a packet to the node's own stack, as one that has come in by the loopback interface: there, a source that is
/// the node's own address is not taken for a forged one.
#[inline(always)]
pub fn to_node(context: &TcContext) -> Result<i32, DropReason> {
    set_macs(context, [[0; 6]; 2])?;
    // SAFETY: the helper notes where to; the verdict does it.
    Ok(unsafe { bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) } as i32)
}

/// Sends a packet out of an interface, to the neighbour that the routing table says.
#[inline(always)]
pub fn to_neighbour(interface: u32) -> i32 {
    // SAFETY: no parameters means the packet's own destination.
    unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends a packet out of an interface, to a neighbour there, whatever the routing table says.
#[inline(always)]
pub fn to_next_hop<A: Address>(interface: u32, neighbour: A) -> i32 {
    // SAFETY: all zeroes are a valid value of this plain structure of integers.
    let mut hop: NextHop = unsafe { core::mem::transmute([0_u32; 5]) };
    hop.nh_family = u32::from(if A::IS_V6 { AF_INET6 } else { AF_INET });
    hop.__bindgen_anon_1.ipv6_nh = halves(neighbour.words());
    // SAFETY: the structure is as long as the call says, and the helper copies it.
    unsafe { bpf_redirect_neigh(interface, &raw mut hop, size_of::<NextHop>() as i32, 0) as i32 }
}

/// Makes the packet an answer and sends it back where it came from: to the node's own stack, or out again.
#[inline(always)]
pub fn answer(
    context: &TcContext,
    frame: &refusal::Frame,
    length: u32,
    is_nodes: bool,
) -> Result<i32, DropReason> {
    let skb = context.as_ptr().cast();
    // SAFETY: the context is the program's own; `length` is within the frame, as its callers pass constants.
    let failed = unsafe {
        bpf_skb_change_tail(skb, length, 0) != 0
            || bpf_skb_store_bytes(skb, 0, frame.as_ptr().cast(), length, 0) != 0
    };
    if failed {
        return Err(DropReason::RefusalFailed);
    }
    if is_nodes {
        return to_node(context);
    }
    // SAFETY: the helper notes where to; the verdict does it.
    Ok(unsafe { bpf_redirect(interface(context), 0) } as i32)
}
