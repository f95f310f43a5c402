//! Telling whoever watches what became of a packet. Nobody watches: one test of a flag.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_SHOT},
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, RingBuf},
};
use portolan_abi::{
    address::{Address, V4, V6},
    bytes::Be16,
    config::{NodeConfig, flags},
    drop_reason::{DropReason, Event},
    outcome::{Action, Outcome},
    parse::Packet,
    report::{Report, Watch, program},
    rewrite::Rewrite,
    socket::Wish,
};

use crate::{
    count,
    handed::{Handed, hand, take},
    maps::{self, Family, Maps},
};

#[map]
static WATCH: Array<Watch> = Array::pinned(1, BPF_F_MMAPABLE);
#[map]
static REPORTS: RingBuf = RingBuf::pinned(256 << 10, 0);

/// Which program saw a packet, and where it came in.
#[derive(Clone, Copy)]
pub struct Place {
    /// [`portolan_abi::report::program`].
    pub program: u8,
    /// The interface.
    pub interface: u32,
}

/// A family with its global function, which the verifier looks at once.
pub trait Watched: Address {
    /// Reports what became of a packet.
    fn report(
        packet: &Packet<Self>,
        rewrite: &Rewrite<Self>,
        outcome: u64,
        place: u64,
        verdict: i32,
    );
}

/// Reports a packet of tcx, if somebody watches.
#[inline(always)]
pub fn tc<A: Watched>(
    config: &NodeConfig,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    outcome: Outcome,
    place: Place,
    verdict: Result<i32, DropReason>,
) {
    if config.flags & flags::WATCHED == 0 {
        return;
    }
    let (outcome, verdict) = match verdict {
        Ok(verdict) => (outcome, verdict),
        Err(reason) => (Outcome::drop(reason), TC_ACT_SHOT),
    };
    A::report(packet, rewrite, outcome.0, word(place), verdict);
}

/// Reports a packet of XDP, if somebody watches.
#[inline(always)]
pub fn xdp<A: Watched>(
    config: &NodeConfig,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    outcome: Outcome,
    place: Place,
    verdict: u32,
) {
    if config.flags & flags::WATCHED != 0 {
        A::report(packet, rewrite, outcome.0, word(place), verdict as i32);
    }
}

/// Reports what became of a socket's call, if somebody watches. Its port is not known yet.
#[inline(always)]
pub fn socket<A: Family + Watched>(
    config: &NodeConfig,
    wish: &Wish<A>,
    maps: &Maps,
    outcome: Outcome,
    verdict: i32,
) {
    if config.flags & flags::WATCHED == 0 || outcome.0 == Outcome::PASS.0 {
        return;
    }
    let packet = Packet {
        source: wish.client(maps),
        destination: wish.address,
        destination_port: wish.port,
        protocol: wish.protocol,
        source_port: Be16(0),
        checksum: Be16(0),
        transport_length: 0,
        transport: 0,
        length: 0,
        hops: 64,
        tcp_flags: 0,
    };
    let mut rewrite = Rewrite::unchanged(&packet);
    if outcome.action() as u8 == Action::Forward as u8
        && let Some(backend) = maps::backend(outcome.number())
    {
        rewrite.destination = A::from_words(backend.address);
        rewrite.destination_port = backend.port;
    }
    let place = Place {
        program: program::SOCKET,
        interface: 0,
    };
    A::report(&packet, &rewrite, outcome.0, word(place), verdict);
}

#[inline(always)]
const fn word(place: Place) -> u64 {
    place.interface as u64 | (place.program as u64) << 32
}

macro_rules! watched {
    ($family:ty: $name:ident) => {
        #[unsafe(no_mangle)]
        extern "C" fn $name(
            packet: Handed<Packet<$family>>,
            rewrite: Handed<Rewrite<$family>>,
            outcome: u64,
            place: u64,
            verdict: i32,
        ) -> u64 {
            if let (Some(packet), Some(rewrite)) = (
                take::<Packet<$family>>(packet),
                take::<Rewrite<$family>>(rewrite),
            ) {
                write(packet, rewrite, Outcome(outcome), place, verdict);
            }
            0
        }

        impl Watched for $family {
            #[inline(always)]
            fn report(
                packet: &Packet<Self>,
                rewrite: &Rewrite<Self>,
                outcome: u64,
                place: u64,
                verdict: i32,
            ) {
                $name(hand(packet), hand(rewrite), outcome, place, verdict);
            }
        }
    };
}

watched!(V4: report_v4);
watched!(V6: report_v6);

#[inline(always)]
fn write<A: Address>(
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    outcome: Outcome,
    place: u64,
    verdict: i32,
) {
    let Some(watch) = WATCH.get(0) else {
        return;
    };
    let Some(mut entry) = REPORTS.reserve::<Report>(0) else {
        count::event(Event::ReportLost.index());
        return;
    };
    // SAFETY: the memory is reserved for a report, every field of which is written before any is read.
    let report = unsafe { &mut *entry.as_mut_ptr() };
    // SAFETY: the helper takes nothing and returns a number.
    report.time = unsafe { bpf_ktime_get_ns() };
    report.outcome = outcome.0;
    report.before.set_before(packet);
    if matches!(outcome.action(), Action::Forward | Action::Reply) {
        report.after.set_after(rewrite);
    } else {
        report.after.set_before(packet);
    }
    report.verdict = verdict;
    report.interface = place as u32;
    report.length = packet.length;
    report.program = (place >> 32) as u8;
    report.family = if A::IS_V6 { 6 } else { 4 };
    report.protocol = packet.protocol;
    report.tcp_flags = packet.tcp_flags;
    report.reserved = [0; 4];
    report.about = watch.reasons(report);
    if report.about == 0 {
        entry.discard(0);
    } else {
        entry.submit(0);
    }
}
