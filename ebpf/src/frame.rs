//! The one way to a packet's bytes: every access is checked against the packet's end.

use core::arch::asm;

use portolan_abi::parse::Bytes;

/// Every header that is ever looked at ends before this.
const HEADERS: usize = 128;

/// The part of a packet that can be read directly.
#[derive(Clone, Copy)]
pub struct Frame {
    start: usize,
    end: usize,
    length: u32,
}

/// Keeps the compiler from adding up a pointer in another order than the one that is checked: to the verifier, two sums
/// with a number that it does not know are two pointers.
#[inline(always)]
fn opaque(pointer: usize) -> usize {
    let same: usize;
    // SAFETY: the instruction moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) pointer => same, options(pure, nomem, nostack)) };
    same
}

impl Frame {
    /// The frame between the context's `data` and `data_end`, part of a packet of `length` bytes.
    #[inline(always)]
    pub const fn new(start: usize, end: usize, length: u32) -> Self {
        Self { start, end, length }
    }

    /// A pointer to `T` at an offset, if all of it lies in the frame.
    #[inline(always)]
    pub fn at<T>(self, offset: usize) -> Option<*mut T> {
        // The verifier wants to see a bound of offsets that have been through memory.
        let start = opaque(self.start + (offset & (HEADERS - 1)));
        if start + size_of::<T>() > self.end {
            return None;
        }
        Some(start as *mut T)
    }

    /// A pointer to so many bytes at an offset, if all of them lie in the frame.
    #[inline(always)]
    pub fn span(self, offset: usize, length: usize) -> Option<*mut u8> {
        if self.start + offset + length > self.end {
            return None;
        }
        Some((self.start + offset) as *mut u8)
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: usize) -> Option<T> {
        let pointer = self.at::<T>(offset)?;
        // SAFETY: `at` checked that the value lies in the packet; packet bytes are valid for the integers that
        // `Bytes` reads, and BPF's loads need no alignment there.
        Some(unsafe { *pointer })
    }
}

impl Bytes for Frame {
    #[inline(always)]
    fn length(self) -> u32 {
        self.length
    }

    #[inline(always)]
    fn u8(self, offset: usize) -> Option<u8> {
        self.read(offset)
    }

    #[inline(always)]
    fn u16(self, offset: usize) -> Option<u16> {
        self.read(offset)
    }

    #[inline(always)]
    fn u32(self, offset: usize) -> Option<u32> {
        self.read(offset)
    }

    #[inline(always)]
    fn u64(self, offset: usize) -> Option<u64> {
        self.read(offset)
    }
}
