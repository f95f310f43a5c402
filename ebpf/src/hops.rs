//! Next hops by destination, each CPU's own, so that the routing table is asked once in a while and not once a packet.
//!
//! What is remembered is good until the tick ends, a second at most: as long a change of a route or a neighbour takes to
//! be noticed.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_fib_lookup as FibLookup,
    helpers::generated::{bpf_fib_lookup, bpf_jiffies64},
    macros::map,
    maps::PerCpuArray,
    programs::XdpContext,
};
use portolan_abi::{address::Address, hash::mix, rewrite::Rewrite};

/// How many destinations are remembered; one that falls on another's place takes it.
const HOPS: u32 = 1_024;
/// The kernel's numbers for the families.
pub const AF_INET: u8 = 2;
/// The same for IPv6.
pub const AF_INET6: u8 = 10;

/// The MAC addresses of the way to an address, the destination's, then ours, as words: copying bytes would be a call.
pub type Hop = [u32; 3];

/// Two MAC addresses as they stand at the head of a frame.
#[inline(always)]
pub fn hop([a, b]: [[u8; 6]; 2]) -> Hop {
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], b[0], b[1]]),
        u32::from_ne_bytes([b[2], b[3], b[4], b[5]]),
    ]
}

/// A remembered next hop.
#[derive(Clone, Copy)]
#[repr(C)]
struct Known {
    destination: [u64; 2],
    interface: u32,
    tick: u32,
    mtu: u32,
    macs: Hop,
}

#[map]
static KNOWN: PerCpuArray<Known> = PerCpuArray::with_max_entries(HOPS, 0);

/// Jiffies come 100 to 1,000 times a second; a tick is 256 of them, or 64 where they are slow. Never zero.
#[inline(always)]
fn tick() -> u32 {
    // SAFETY: the helper takes nothing and returns a number.
    (unsafe { bpf_jiffies64() } >> 8) as u32 | 1 << 31
}

/// The next hop to where a packet is going, if it leaves by the interface that it came in by and is known by now.
#[inline(always)]
pub fn next_hop<A: Address>(
    context: &XdpContext,
    rewrite: &Rewrite<A>,
    length: u32,
) -> Option<Hop> {
    let interface = context.ingress_ifindex() as u32;
    let destination = rewrite.destination.words();
    let index = (mix(destination[0], destination[1]) >> 32) as u32 & (HOPS - 1);
    let known = KNOWN.get_ptr_mut(index)?;
    // SAFETY: the entry is this CPU's own, and nothing interrupts a program that reads or writes it.
    let known = unsafe { &mut *known };
    let tick = tick();
    let is_it = known.destination == destination
        && known.interface == interface
        && known.tick == tick
        && length <= known.mtu;
    if !is_it {
        ask(context, rewrite, length, known)?;
        known.destination = destination;
        known.interface = interface;
        known.tick = tick;
    }
    Some(known.macs)
}

/// Asks the routing table and the table of neighbours.
#[inline(always)]
fn ask<A: Address>(
    context: &XdpContext,
    rewrite: &Rewrite<A>,
    length: u32,
    known: &mut Known,
) -> Option<()> {
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
    if result != 0 || lookup.ifindex != interface {
        return None;
    }
    known.macs = hop([lookup.dmac, lookup.smac]);
    // SAFETY: the helper has written the route's MTU where it read the packet's length.
    known.mtu = u32::from(unsafe { lookup.__bindgen_anon_1.mtu_result });
    Some(())
}

/// An address as the kernel's structures for helpers have it.
#[inline(always)]
pub fn halves([a, b]: [u64; 2]) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}
