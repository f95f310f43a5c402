//! What the XDP program does to frames: rewrite in place, and find the next hop.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_fib_lookup as FibLookup,
    helpers::generated::{bpf_fib_lookup, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
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

use crate::frame::Frame;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

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

/// The MAC addresses of the way to an address: the destination's, then ours.
pub type Hop = [[u8; 6]; 2];

/// The next hop to where a packet is going, if it leaves by the interface that it came in by and is known by now.
#[inline(always)]
pub fn next_hop<A: Address>(
    context: &XdpContext,
    rewrite: &Rewrite<A>,
    length: u32,
) -> Option<Hop> {
    // SAFETY: all zeroes are a valid value of this plain structure of integers.
    let mut lookup: FibLookup = unsafe { core::mem::transmute([0_u64; 8]) };
    let interface = context.ingress_ifindex() as u32;
    lookup.ifindex = interface;
    lookup.__bindgen_anon_1.tot_len = length as u16;
    if A::IS_V6 {
        lookup.family = AF_INET6;
        lookup.__bindgen_anon_3.ipv6_src = halves(rewrite.source.words());
        lookup.__bindgen_anon_4.ipv6_dst = halves(rewrite.destination.words());
    } else {
        lookup.family = AF_INET;
        lookup.__bindgen_anon_3.ipv4_src = rewrite.source.words()[0] as u32;
        lookup.__bindgen_anon_4.ipv4_dst = rewrite.destination.words()[0] as u32;
    }
    // SAFETY: the structure is as long as it says.
    let result = unsafe {
        bpf_fib_lookup(
            context.as_ptr(),
            &raw mut lookup,
            size_of::<FibLookup>() as i32,
            0,
        )
    };
    (result == 0 && lookup.ifindex == interface).then_some([lookup.dmac, lookup.smac])
}

#[inline(always)]
fn halves([a, b]: [u64; 2]) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// Changes a packet's addresses, ports and next hop with the checksums over them; nothing if not all of it is there.
#[inline(always)]
pub fn rewrite<A: Address>(
    frame: Frame,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    hop: Hop,
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
    let at = if A::IS_V6 {
        field::V6_SOURCE
    } else {
        field::V4_SOURCE
    };
    let macs = frame.at::<Hop>(0)?;
    let network = frame.at::<[A; 2]>(at)?;
    let header = frame.at::<Be16>(field::V4_CHECKSUM)?;
    let ports = frame.at::<[Be16; 2]>(packet.transport)?;
    let transport = frame.at::<Be16>(packet.transport + offset)?;
    // SAFETY: `at` checked every pointer, and BPF's stores need no alignment in packets.
    unsafe {
        *macs = hop;
        if !A::IS_V6 {
            *header = checksum::apply(*header, addresses);
        }
        *network = [rewrite.source, rewrite.destination];
        *ports = [rewrite.source_port, rewrite.destination_port];
        *transport = sum;
    }
    Some(())
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
