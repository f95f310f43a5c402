//! How stages are handed what they work on.
//!
//! Kernels before 5.12 take no pointers as arguments of global functions. For those, the object is built with the feature
//! `old-kernels`: what a stage works on lies in memory of this CPU's own meanwhile, and a stage is handed zero.

use portolan_abi::{
    address::{V4, V6},
    parse::Packet,
    rewrite::Rewrite,
};

pub use way::{Handed, Lent, hand, lend, take, take_mut};

/// What can be handed to a stage.
pub trait Hand: Copy {
    /// This CPU's room for it. Stages are called one after the other, none by another: one room is enough.
    #[cfg(feature = "old-kernels")]
    fn room() -> Option<*mut Self>;
    /// Puts a copy of it somewhere.
    ///
    /// # Safety
    /// `room` must be valid for it to be written.
    #[cfg(feature = "old-kernels")]
    unsafe fn put(&self, room: *mut Self);
    /// What is handed over in its place: zero.
    #[cfg(feature = "old-kernels")]
    type Nothing: Default;
    /// Looks at that zero: the compiler leaves out arguments that nobody looks at, and the verifier does not.
    #[cfg(feature = "old-kernels")]
    fn see(nothing: Self::Nothing);
}

#[cfg(not(feature = "old-kernels"))]
mod way {
    use super::Hand;

    /// Something to look at, as a stage is handed it.
    pub type Handed<T> = *const T;
    /// Something to change, as a stage is handed it.
    pub type Lent<T> = *mut T;

    /// Hands something to a stage.
    #[inline(always)]
    pub fn hand<T: Hand>(what: &T) -> Handed<T> {
        what
    }

    /// Lends something to a stage, which may change it.
    #[inline(always)]
    pub fn lend<T: Hand>(what: &mut T, stage: impl FnOnce(Lent<T>) -> u64) -> u64 {
        stage(what)
    }

    /// What a stage was handed. A global function must expect null, though no caller passes it.
    #[inline(always)]
    pub fn take<T: Hand>(handed: Handed<T>) -> Option<&'static T> {
        // SAFETY: the verifier insists that callers pass memory of the type's size, or null.
        unsafe { handed.as_ref() }
    }

    /// What a stage was lent.
    #[inline(always)]
    pub fn take_mut<T: Hand>(lent: Lent<T>) -> Option<&'static mut T> {
        // SAFETY: as for `take`.
        unsafe { lent.as_mut() }
    }
}

#[cfg(feature = "old-kernels")]
mod way {
    use super::Hand;

    /// Something to look at: a number that says nothing.
    pub type Handed<T> = <T as Hand>::Nothing;
    /// Something to change.
    pub type Lent<T> = <T as Hand>::Nothing;

    /// Puts something where a stage will look for it.
    #[inline(always)]
    pub fn hand<T: Hand>(what: &T) -> Handed<T> {
        if let Some(room) = T::room() {
            // SAFETY: the memory is this CPU's own, and no program that uses it interrupts another.
            unsafe { what.put(room) };
        }
        T::Nothing::default()
    }

    /// Puts something where a stage will change it, and takes it back.
    #[inline(always)]
    pub fn lend<T: Hand>(what: &mut T, stage: impl FnOnce(Lent<T>) -> u64) -> u64 {
        let outcome = stage(hand(what));
        if let Some(room) = T::room() {
            // SAFETY: as in `hand`.
            unsafe { (*room).put(what) };
        }
        outcome
    }

    /// What a stage was handed.
    #[inline(always)]
    pub fn take<T: Hand>(handed: Handed<T>) -> Option<&'static T> {
        T::see(handed);
        // SAFETY: as in `hand`.
        T::room().map(|room| unsafe { &*room })
    }

    /// What a stage was lent.
    #[inline(always)]
    pub fn take_mut<T: Hand>(lent: Lent<T>) -> Option<&'static mut T> {
        T::see(lent);
        // SAFETY: as in `hand`.
        T::room().map(|room| unsafe { &mut *room })
    }
}

macro_rules! rooms {
    ($($map:ident: $type:ty { $($field:ident),* }),*) => {$(
        #[cfg(feature = "old-kernels")]
        #[aya_ebpf::macros::map]
        static $map: aya_ebpf::maps::PerCpuArray<$type> = aya_ebpf::maps::PerCpuArray::with_max_entries(1, 0);

        impl Hand for $type {
            // Field by field: what is between them was never written, and these kernels' verifiers refuse to see it read.
            #[cfg(feature = "old-kernels")]
            #[inline(always)]
            unsafe fn put(&self, room: *mut Self) {
                // SAFETY: the caller's promise.
                unsafe {
                    $((*room).$field = self.$field;)*
                }
            }

            #[cfg(feature = "old-kernels")]
            type Nothing = u32;

            #[cfg(feature = "old-kernels")]
            #[inline(always)]
            fn see(nothing: u32) {
                // SAFETY: the instruction touches the register alone.
                unsafe { core::arch::asm!("{0} = {0}", inout(reg) nothing => _) };
            }

            #[cfg(feature = "old-kernels")]
            #[inline(always)]
            fn room() -> Option<*mut Self> {
                $map.get_ptr_mut(0)
            }
        }
    )*};
}

macro_rules! families {
    ($packet_v4:ident, $packet_v6:ident, $rewrite_v4:ident, $rewrite_v6:ident) => {
        families!(@packet $packet_v4: V4, $packet_v6: V6);
        families!(@rewrite $rewrite_v4: V4, $rewrite_v6: V6);
    };
    (@packet $($map:ident: $family:ty),*) => {
        rooms!($($map: Packet<$family> {
            source, destination, source_port, destination_port, checksum, transport_length, transport, length,
            protocol, tcp_flags, hops
        }),*);
    };
    (@rewrite $($map:ident: $family:ty),*) => {
        rooms!($($map: Rewrite<$family> { source, destination, source_port, destination_port }),*);
    };
}

families!(PACKET_V4, PACKET_V6, REWRITE_V4, REWRITE_V6);
