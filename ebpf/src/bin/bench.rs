//! What the microbenchmarks run beside the dataplane's own programs, in an object of its own.
//!
//! A generator restores the packet, gives it the next flow's client and service with valid checksums, and goes on to
//! the program under test by a tail call. What a test run takes is then the generator's time and the program's; the
//! same with the empty program behind the generator says what to subtract.
//!
//! `floor` is what no flow table can beat: hash, one line of an array, rewrite. `lru_hash` does the same over the
//! kernel's own LRU map.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(missing_docs, reason = "the macros make functions of their own")]
#![allow(
    clippy::inline_always,
    reason = "the verifier follows calls one by one: what is not inlined is either refused or slower"
)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    macros::{classifier, map, xdp},
    maps::{Array, LruHashMap, ProgramArray},
    programs::{TcContext, XdpContext},
};
use portolan_abi::{
    address::{Address, V4, V6},
    bytes::{Be16, Be32},
    checksum::{self, Difference, fold},
    drive::{CLIENT_V4, Drive, FRAME_BYTES, SERVICE_V4, client_of, service_of},
    flow::BucketV4,
    hash,
    parse::field,
    protocol,
};

/// The program under test; the kernel wants an array for each type of program.
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The floor's table; the loader makes it as long as the dataplane's.
#[map]
static LINES: Array<BucketV4> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The kernel's own flow table, by addresses and ports.
#[map]
static LRU: LruHashMap<[u32; 3], u64> = LruHashMap::with_max_entries(1, 0);

/// The backend that `floor` and `lru_hash` rewrite to.
const BACKEND: V4 = V4::from_octets([10, 0, 0, 2]);
const BACKEND_PORT: Be16 = Be16::new(8_080);
const MACS: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
/// Where the transport header begins in a packet of the generator's.
const V4_TRANSPORT: usize = field::V4_VERSION + 20;

/// The flow that is next.
#[inline(always)]
fn next_flow(drive: &mut Drive) -> u32 {
    drive.made += 1;
    if drive.in_order != 0 {
        let flow = drive.next;
        drive.next = flow.wrapping_add(1);
        return flow & drive.flow_mask;
    }
    let mut random = drive.random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    drive.random = random;
    (random >> 32) as u32 & drive.flow_mask
}

/// Writes the next packet over the last one.
#[inline(always)]
fn generate<A: Address>(start: usize, end: usize) -> Option<()> {
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: one CPU runs the generator, and the process looks at the value only between runs.
    let drive = unsafe { &mut *drive };
    if start + FRAME_BYTES > end {
        return None;
    }
    let flow = next_flow(drive);
    let (client, port) = client_of(flow, drive.address_bits);
    let service = service_of(flow, drive.services);
    let port = Be16::new(port);
    // SAFETY: the packet has that many bytes, as was just checked; BPF's stores need no alignment there.
    unsafe {
        *(start as *mut [u64; FRAME_BYTES / 8]) = drive.frame;
        let sum = if A::IS_V6 {
            let client = Be32::new(client).0;
            let service = Be32::new(service).0;
            *((start + field::V6_SOURCE + 12) as *mut u32) = client;
            *((start + field::V6_DESTINATION + 12) as *mut u32) = service;
            *((start + field::V6_TRANSPORT) as *mut u16) = port.0;
            u64::from(client) + u64::from(service)
        } else {
            let client = Be32::new(CLIENT_V4 | client).0;
            let service = Be32::new(SERVICE_V4 | service).0;
            *((start + field::V4_SOURCE) as *mut u32) = client;
            *((start + field::V4_DESTINATION) as *mut u32) = service;
            *((start + V4_TRANSPORT) as *mut u16) = port.0;
            let sum = u64::from(client) + u64::from(service);
            *((start + field::V4_CHECKSUM) as *mut u16) = !fold(u64::from(drive.header_sum) + sum);
            sum
        };
        let sum = !fold(u64::from(drive.transport_sum) + sum + u64::from(port.0));
        let (transport, next) = if A::IS_V6 {
            (field::V6_TRANSPORT, field::V6_NEXT)
        } else {
            (V4_TRANSPORT, field::V4_PROTOCOL)
        };
        if *((start + next) as *const u8) == protocol::TCP {
            *((start + transport + field::TCP_CHECKSUM) as *mut u16) = sum;
        } else {
            *((start + transport + field::UDP_CHECKSUM) as *mut u16) = sum;
        }
    }
    Some(())
}

macro_rules! generators {
    ($($kind:ident $name:ident $context:ty, $family:ty, $failed:expr;)*) => {
        $(generators!(@ $kind $name $context, $family, $failed);)*
    };
    (@ xdp $name:ident $context:ty, $family:ty, $failed:expr) => {
        #[xdp(frags)]
        pub fn $name(context: $context) -> u32 {
            generators!(= context, $family, XDP_TARGET);
            $failed
        }
    };
    (@ tc $name:ident $context:ty, $family:ty, $failed:expr) => {
        #[classifier]
        pub fn $name(context: $context) -> i32 {
            generators!(= context, $family, TC_TARGET);
            $failed
        }
    };
    (= $context:ident, $family:ty, $target:ident) => {
        if generate::<$family>($context.data(), $context.data_end()).is_some() {
            // SAFETY: nothing here has to be dropped.
            unsafe { $target.tail_call(&$context, 0) };
        }
    };
}

generators! {
    xdp xdp_v4 XdpContext, V4, xdp_action::XDP_ABORTED;
    xdp xdp_v6 XdpContext, V6, xdp_action::XDP_ABORTED;
    tc tc_v4 TcContext, V4, TC_ACT_SHOT;
    tc tc_v6 TcContext, V6, TC_ACT_SHOT;
}

#[xdp(frags)]
pub fn xdp_empty(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[classifier]
pub fn tc_empty(_context: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The addresses and ports of a TCP packet of IPv4 that the generator made.
#[derive(Clone, Copy)]
struct Tuple {
    source: V4,
    destination: V4,
    ports: u32,
}

#[inline(always)]
fn tuple(context: &XdpContext) -> Option<Tuple> {
    let start = context.data();
    if start + V4_TRANSPORT + 20 > context.data_end() {
        return None;
    }
    // SAFETY: all of it lies in the packet, as was just checked; BPF's loads need no alignment there.
    unsafe {
        Some(Tuple {
            source: V4(Be32(*((start + field::V4_SOURCE) as *const u32))),
            destination: V4(Be32(*((start + field::V4_DESTINATION) as *const u32))),
            ports: *((start + V4_TRANSPORT) as *const u32),
        })
    }
}

/// The least that a rewrite can be.
#[inline(always)]
fn rewrite(context: &XdpContext, old: Tuple, destination: V4) -> Option<()> {
    let start = context.data();
    if start + V4_TRANSPORT + 20 > context.data_end() {
        return None;
    }
    let addresses = Difference::NONE.address(old.destination, destination);
    let ports = Difference::NONE.port(Be16((old.ports >> 16) as u16), BACKEND_PORT);
    // SAFETY: all of it lies in the packet, as was just checked; BPF's accesses need no alignment there.
    unsafe {
        *(start as *mut [u8; 12]) = MACS;
        let header = (start + field::V4_CHECKSUM) as *mut Be16;
        *header = checksum::apply(*header, addresses);
        *((start + field::V4_DESTINATION) as *mut V4) = destination;
        *((start + V4_TRANSPORT + 2) as *mut Be16) = BACKEND_PORT;
        let transport = (start + V4_TRANSPORT + field::TCP_CHECKSUM) as *mut Be16;
        *transport = checksum::apply(*transport, addresses.and(ports));
    }
    Some(())
}

/// Hash, one random line, rewrite; no comparison, no counter.
#[xdp(frags)]
pub fn floor(context: XdpContext) -> u32 {
    let Some(old) = tuple(&context) else {
        return xdp_action::XDP_ABORTED;
    };
    let hash = hash::of_client(1, old.source, Be16(old.ports as u16), protocol::TCP);
    // The generator's mask says how long the table is, four slots a flow as for the dataplane.
    let Some(drive) = DRIVE.get(0) else {
        return xdp_action::XDP_ABORTED;
    };
    let Some(line) = LINES.get_ptr((hash >> 32) as u32 & (drive.flow_mask >> 1)) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: the mask keeps the word within the line.
    let word = unsafe { line.cast::<u64>().add(hash as usize & 15).read_volatile() };
    // The table is all zeroes, but that is not known here.
    if rewrite(&context, old, V4(Be32(BACKEND.0.0 ^ word as u32))).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    xdp_action::XDP_TX
}

/// The same over the kernel's LRU map, which new flows enter.
#[xdp(frags)]
pub fn lru_hash(context: XdpContext) -> u32 {
    let Some(old) = tuple(&context) else {
        return xdp_action::XDP_ABORTED;
    };
    let key = [old.source.0.0, old.destination.0.0, old.ports];
    // SAFETY: entries are written once, when they are made.
    let word = if let Some(word) = unsafe { LRU.get(&key) } {
        *word
    } else {
        if LRU.insert(&key, &0, 0).is_err() {
            return xdp_action::XDP_ABORTED;
        }
        0
    };
    if rewrite(&context, old, V4(Be32(BACKEND.0.0 ^ word as u32))).is_none() {
        return xdp_action::XDP_ABORTED;
    }
    xdp_action::XDP_TX
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
