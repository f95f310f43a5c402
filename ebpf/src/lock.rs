//! What keeps writers of a bucket from each other.
//!
//! A bucket's lock is a bit of its first word, and a word changes hands by compare-and-exchange. Kernels before 5.12 have
//! neither: their programs (feature `old-kernels`) take a lock by adding one to a number and finding that nobody else has,
//! and change words under it. That lock is beside the bucket: [`Meta::LOCK`] stays clear there.

#[cfg(not(feature = "old-kernels"))]
pub use atomic::{Lock, exchange};
#[cfg(feature = "old-kernels")]
pub use plain::{Lock, exchange};

#[cfg(not(feature = "old-kernels"))]
mod atomic {
    use core::arch::asm;

    use portolan_abi::flow::Meta;

    /// The lock of a bucket.
    #[derive(Clone, Copy)]
    pub struct Lock;

    /// Puts `new` into a word if it is `old`; whether it was.
    ///
    /// # Safety
    /// `word` must point to eight aligned bytes of a map's value.
    #[inline(always)]
    pub unsafe fn exchange(word: *mut u64, old: u64, new: u64) -> bool {
        let was: u64;
        // SAFETY: the instruction touches the word alone; the target has no compare-and-swap in `core::sync::atomic`.
        unsafe {
            asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") old => was);
        }
        was == old
    }

    impl Lock {
        /// The bits of a meta word that are kept in the table.
        pub const KEPT: u64 = u64::MAX;

        /// The lock of a table's bucket.
        #[inline(always)]
        pub fn of(_bucket: u32) -> Self {
            Self
        }

        /// Puts `new` into a meta word if it is `old`; whether it was.
        ///
        /// # Safety
        /// `word` must point to eight aligned bytes of a map's value.
        #[inline(always)]
        pub unsafe fn exchange(self, word: *mut u64, old: u64, new: u64) -> bool {
            // SAFETY: the caller's promise.
            unsafe { exchange(word, old, new) }
        }

        /// Takes the lock if it is free; whether it was.
        ///
        /// # Safety
        /// `word` must point to the first meta word of the bucket.
        #[inline(always)]
        pub unsafe fn try_lock(self, word: *mut u64) -> bool {
            let was: u64;
            // SAFETY: the instruction touches the word alone.
            unsafe {
                asm!("{bits} = atomic_fetch_or((u64 *)({word} + 0), {bits})", word = in(reg) word, bits = inout(reg) Meta::LOCK => was);
            }
            was & Meta::LOCK == 0
        }

        /// Gives the lock back.
        ///
        /// # Safety
        /// As for [`Self::try_lock`], which must have said yes.
        #[inline(always)]
        pub unsafe fn unlock(self, word: *mut u64) {
            // SAFETY: the instruction touches the word alone.
            unsafe {
                asm!("{bits} = atomic_fetch_and((u64 *)({word} + 0), {bits})", word = in(reg) word, bits = inout(reg) !Meta::LOCK => _);
            }
        }
    }
}

#[cfg(feature = "old-kernels")]
mod plain {
    use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
    use portolan_abi::flow::Meta;

    use crate::bucket::add;

    /// How many locks there are; buckets share them.
    const COUNT: u32 = 4_096;

    /// How many programs hold each lock or are trying to. Pinned: programs that replace others must see theirs.
    #[map]
    static LOCKS: Array<u32> = Array::pinned(COUNT, BPF_F_MMAPABLE);

    /// The lock of a bucket, by its place among all.
    #[derive(Clone, Copy)]
    pub struct Lock(u32);

    /// Only programs for newer kernels change words of the map of sockets: there are no socket hooks before 5.18.
    ///
    /// # Safety
    /// None is needed: nothing is touched.
    #[inline(always)]
    pub unsafe fn exchange(_word: *mut u64, _old: u64, _new: u64) -> bool {
        false
    }

    impl Lock {
        /// The bits of a meta word that are kept in the table.
        pub const KEPT: u64 = !Meta::LOCK;

        /// The lock of a table's bucket.
        #[inline(always)]
        pub fn of(bucket: u32) -> Self {
            Self(bucket & (COUNT - 1))
        }

        /// Puts `new` into a meta word if it is `old`; whether it was and the lock could be had.
        ///
        /// # Safety
        /// `word` must point to eight aligned bytes of a map's value.
        #[inline(always)]
        pub unsafe fn exchange(self, word: *mut u64, old: u64, new: u64) -> bool {
            // SAFETY: the caller's promise.
            unsafe {
                if !self.try_lock(word) {
                    return false;
                }
                let is_old = word.read_volatile() == old;
                if is_old {
                    word.write_volatile(new & Self::KEPT);
                }
                self.unlock(word);
                is_old
            }
        }

        /// Takes the lock if it is free; whether it was. Of two that try at once, perhaps neither has it.
        ///
        /// # Safety
        /// None is needed: the bucket is not touched.
        #[inline(always)]
        pub unsafe fn try_lock(self, _word: *mut u64) -> bool {
            let Some(holders) = LOCKS.get_ptr_mut(self.0) else {
                return false;
            };
            // SAFETY: the pointer is into the map's value. Addition orders what is around it.
            unsafe {
                add(holders, 1);
                if holders.read_volatile() == 1 {
                    return true;
                }
                add(holders, u32::MAX);
            }
            false
        }

        /// Gives the lock back.
        ///
        /// # Safety
        /// [`Self::try_lock`] must have said yes.
        #[inline(always)]
        pub unsafe fn unlock(self, _word: *mut u64) {
            if let Some(holders) = LOCKS.get_ptr_mut(self.0) {
                // SAFETY: as in `try_lock`.
                unsafe { add(holders, u32::MAX) };
            }
        }
    }
}
