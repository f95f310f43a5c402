//! Counting, each CPU for itself.

use aya_ebpf::maps::PerCpuArray;
use portolan_abi::{
    backend::Backend,
    counters::{ClassCount, ServiceCount},
    outcome::Outcome,
    parse::Packet,
    tcp,
};

use crate::maps::{COUNTS, DROPS, EVENTS};

#[inline(always)]
fn increment(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the counter is this CPU's own, and nothing interrupts a program that counts.
        unsafe { *counter += 1 };
    }
}

/// Counts a drop, by the index of its reason.
#[inline(always)]
pub fn dropped(reason: u32) {
    increment(&DROPS, reason);
}

/// Counts an event, by its index.
#[inline(always)]
pub fn event(event: u32) {
    increment(&EVENTS, event);
}

#[inline(always)]
fn of_service(service: u32, change: impl FnOnce(&mut ServiceCount)) {
    if let Some(count) = COUNTS.get_ptr_mut(service) {
        // SAFETY: the counters are this CPU's own, and nothing interrupts a program that counts.
        change(unsafe { &mut *count });
    }
}

#[inline(always)]
fn of_class(backend: &Backend, change: impl FnOnce(&mut ClassCount)) {
    let class = backend.class;
    of_service(backend.service, |count| match class {
        0 => change(&mut count.classes[0]),
        1 => change(&mut count.classes[1]),
        _ => change(&mut count.classes[2]),
    });
}

/// Counts a new flow, by how far away its backend is.
#[inline(always)]
fn opened(backend: &Backend) {
    of_class(backend, |count| count.flows += 1);
}

/// Counts a forwarded packet, by how far away its backend is.
#[inline(always)]
pub fn forwarded<A>(backend: &Backend, packet: &Packet<A>) {
    of_class(backend, |count| {
        count.packets += 1;
        count.bytes += u64::from(packet.length);
        count.resets += u64::from(packet.tcp_flags & tcp::RST != 0);
    });
}

/// Counts a client that was refused.
#[inline(always)]
pub fn refused(service: u32) {
    of_service(service, |count| count.refused += 1);
}

/// Counts what an outcome says of the flow that it forwards.
#[inline(always)]
pub fn outcome(outcome: Outcome, backend: &Backend) {
    if outcome.is_opened() {
        opened(backend);
    }
    if outcome.event() != 0 {
        event(outcome.event() - 1);
    }
}

/// Counting by programs that run for a process: unlike those that see packets, they may be interrupted by others.
pub mod shared {
    use super::{Backend, COUNTS, ClassCount, DROPS, EVENTS, PerCpuArray, ServiceCount};
    use core::{arch::asm, mem::offset_of};

    /// # Safety
    /// `counter` must point to eight aligned bytes of a map's value.
    #[inline(always)]
    unsafe fn add_one(counter: *mut u64) {
        // SAFETY: the instruction touches the word alone.
        unsafe {
            asm!("lock *(u64 *)({word} + 0) += {one}", word = in(reg) counter, one = in(reg) 1_u64);
        }
    }

    #[inline(always)]
    fn increment(counters: &PerCpuArray<u64>, index: u32) {
        if let Some(counter) = counters.get_ptr_mut(index) {
            // SAFETY: the counter is a map's value.
            unsafe { add_one(counter) };
        }
    }

    #[inline(always)]
    fn of_service(service: u32, offset: usize) {
        if let Some(count) = COUNTS.get_ptr_mut(service) {
            // SAFETY: callers pass the offset of a counter.
            unsafe { add_one(count.cast::<u8>().add(offset).cast()) };
        }
    }

    /// Counts a new flow, by how far away its backend is.
    #[inline(always)]
    pub fn opened(backend: &Backend) {
        let class = match backend.class {
            class @ 0..=1 => usize::from(class),
            _ => 2,
        };
        let flows = offset_of!(ServiceCount, classes) + offset_of!(ClassCount, flows);
        of_service(backend.service, flows + class * size_of::<ClassCount>());
    }

    /// Counts a client that was refused.
    #[inline(always)]
    pub fn refused(service: u32) {
        of_service(service, offset_of!(ServiceCount, refused));
    }

    /// Counts a drop, by the index of its reason.
    #[inline(always)]
    pub fn dropped(reason: u32) {
        increment(&DROPS, reason);
    }

    /// Counts an event, by its index.
    #[inline(always)]
    pub fn event(event: u32) {
        increment(&EVENTS, event);
    }
}
