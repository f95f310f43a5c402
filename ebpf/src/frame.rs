//! The one way to a packet's bytes: every access is checked against the packet's end.

use core::arch::asm;

use portolan_abi::{address::Address, parse::Bytes};

/// Every header that is ever looked at begins before this.
const HEADERS: usize = 256;

/// Writes the two addresses of a packet word by word: copied as a whole, they crash the compiler's back end.
///
/// # Safety
/// `to` must point into a packet, as [`Frame::at`] checks it.
#[inline(always)]
pub unsafe fn write_addresses<A: Address>(to: *mut [A; 2], source: A, destination: A) {
    let [a, b] = source.words();
    let [c, d] = destination.words();
    // SAFETY: the caller's pointer is to both addresses, and BPF's stores need no alignment in packets.
    unsafe {
        if A::IS_V6 {
            let to = to.cast::<u64>();
            *to = a;
            *to.add(1) = b;
            *to.add(2) = c;
            *to.add(3) = d;
        } else {
            let to = to.cast::<u32>();
            *to = a as u32;
            *to.add(1) = c as u32;
        }
    }
}

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

/// The first bytes of a packet, all of which lie in the frame: one check for all of them. Offsets must be constants.
#[derive(Clone, Copy)]
pub struct Head<const BYTES: usize> {
    start: usize,
    length: u32,
}

impl Frame {
    /// The first bytes, if the frame has that many.
    #[inline(always)]
    pub fn head<const BYTES: usize>(self) -> Option<Head<BYTES>> {
        if self.start + BYTES > self.end {
            return None;
        }
        Some(Head {
            start: self.start,
            length: self.length,
        })
    }
}

impl<const BYTES: usize> Head<BYTES> {
    /// A pointer to `T` at an offset.
    #[inline(always)]
    pub fn at<T>(self, offset: usize) -> Option<*mut T> {
        (offset + size_of::<T>() <= BYTES).then_some((self.start + offset) as *mut T)
    }

    #[inline(always)]
    fn read<T: Copy>(self, offset: usize) -> Option<T> {
        let pointer = self.at::<T>(offset)?;
        // SAFETY: as for a frame.
        Some(unsafe { *pointer })
    }
}

impl<const BYTES: usize> Bytes for Head<BYTES> {
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
