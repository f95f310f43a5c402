//! Buckets of flow tables as the kernel programs reach them: in map memory that other CPUs write at the same time.

use core::{arch::asm, ptr::addr_of_mut};

use portolan_abi::{
    address::{V4, V6},
    bytes::Be32,
    flow::{Bucket, BucketV4, BucketV6, Meta, SLOTS, SlotV4},
};

use crate::{lock::Lock, maps};

/// A bucket of the IPv4 tables, and what locks it.
#[derive(Clone, Copy)]
pub struct MapBucketV4(pub *mut BucketV4, pub Lock);

/// A bucket of the IPv6 tables, and what locks it.
#[derive(Clone, Copy)]
pub struct MapBucketV6(pub *mut BucketV6, pub Lock);

/// Adds to a number.
///
/// # Safety
/// `number` must point to four aligned bytes of a map's value.
#[inline(always)]
pub unsafe fn add(number: *mut u32, more: u32) {
    // SAFETY: the instruction touches the number alone.
    unsafe {
        asm!("lock *(u32 *)({number} + 0) += {more}", number = in(reg) number, more = in(reg) more);
    }
}

/// A slot's number as an index that every kernel's verifier sees to be within the bucket.
///
/// The compiler knows that the number is small and would drop a plain mask; verifiers before 6.6 lose that at an XOR.
#[inline(always)]
fn within(slot: u32) -> usize {
    let mut index = u64::from(slot);
    // SAFETY: the instruction touches the register alone.
    unsafe {
        asm!("{index} &= {last}", index = inout(reg) index, last = const SLOTS - 1, options(pure, nomem));
    }
    index as usize
}

macro_rules! atomic_meta {
    () => {
        #[inline(always)]
        fn meta(&self, slot: u32) -> Meta {
            // SAFETY: `word` points into the map's value, which lives as long as the program runs.
            Meta(unsafe { self.word(slot).read_volatile() })
        }

        #[inline(always)]
        fn exchange(&self, slot: u32, old: Meta, new: Meta) -> bool {
            // SAFETY: as in `meta`.
            unsafe { self.1.exchange(self.word(slot), old.0, new.0) }
        }

        #[inline(always)]
        fn try_lock(&self) -> bool {
            // SAFETY: as in `meta`.
            unsafe { self.1.try_lock(self.word(0)) }
        }

        #[inline(always)]
        fn unlock(&self) {
            // SAFETY: as in `meta`.
            unsafe { self.1.unlock(self.word(0)) };
        }

        #[inline(always)]
        fn forget(&self, number: u32) -> u32 {
            maps::forget(number)
        }

        #[inline(always)]
        fn publish(&self, slot: u32, meta: Meta) {
            // SAFETY: as in `meta`.
            unsafe { self.word(slot).write_volatile(meta.0 & Lock::KEPT) };
        }
    };
}

impl MapBucketV4 {
    #[inline(always)]
    fn slot(self, slot: u32) -> *mut SlotV4 {
        // SAFETY: the mask keeps the slot within the bucket.
        unsafe {
            addr_of_mut!((*self.0).slots)
                .cast::<SlotV4>()
                .add(within(slot))
        }
    }

    #[inline(always)]
    fn word(self, slot: u32) -> *mut u64 {
        // SAFETY: the field lies in the slot.
        unsafe { addr_of_mut!((*self.slot(slot)).meta) }
    }

    #[inline(always)]
    fn addresses(self, slot: u32) -> u64 {
        // SAFETY: the field lies in the slot.
        unsafe { addr_of_mut!((*self.slot(slot)).addresses).read_volatile() }
    }
}

impl Bucket<V4> for MapBucketV4 {
    atomic_meta!();

    #[inline(always)]
    fn client(&self, slot: u32) -> V4 {
        V4(Be32(self.addresses(slot) as u32))
    }

    #[inline(always)]
    fn frontend(&self, slot: u32) -> V4 {
        V4(Be32((self.addresses(slot) >> 32) as u32))
    }

    #[inline(always)]
    fn is_between(&self, slot: u32, client: V4, frontend: V4) -> bool {
        self.addresses(slot) == SlotV4::addresses(client, frontend)
    }

    #[inline(always)]
    fn write(&self, slot: u32, client: V4, frontend: V4) {
        // SAFETY: the field lies in the slot, and the lock keeps other writers out.
        unsafe {
            addr_of_mut!((*self.slot(slot)).addresses)
                .write_volatile(SlotV4::addresses(client, frontend));
        }
    }
}

impl MapBucketV6 {
    #[inline(always)]
    fn word_at(self, slot: u32, word: usize) -> *mut u64 {
        // SAFETY: a slot is eight words, the mask keeps the slot within the bucket, and `word` is below eight.
        unsafe { self.0.cast::<u64>().add(within(slot) * 8 + word) }
    }

    #[inline(always)]
    fn word(self, slot: u32) -> *mut u64 {
        self.word_at(slot, 0)
    }

    #[inline(always)]
    fn address(self, slot: u32, word: usize) -> V6 {
        // SAFETY: words 1 to 4 of a slot are its two addresses.
        unsafe {
            V6([
                self.word_at(slot, word).read_volatile(),
                self.word_at(slot, word + 1).read_volatile(),
            ])
        }
    }
}

impl Bucket<V6> for MapBucketV6 {
    atomic_meta!();

    #[inline(always)]
    fn client(&self, slot: u32) -> V6 {
        self.address(slot, 1)
    }

    #[inline(always)]
    fn frontend(&self, slot: u32) -> V6 {
        self.address(slot, 3)
    }

    #[inline(always)]
    fn write(&self, slot: u32, client: V6, frontend: V6) {
        // SAFETY: words 1 to 4 of a slot are its two addresses, and the lock keeps other writers out.
        unsafe {
            self.word_at(slot, 1).write_volatile(client.0[0]);
            self.word_at(slot, 2).write_volatile(client.0[1]);
            self.word_at(slot, 3).write_volatile(frontend.0[0]);
            self.word_at(slot, 4).write_volatile(frontend.0[1]);
        }
    }
}
