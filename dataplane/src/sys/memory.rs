//! The memory of array maps, shared with the kernel: reading and writing it needs no system call.

use std::{
    io,
    marker::PhantomData,
    mem,
    os::fd::AsRawFd,
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64},
};

use super::{Map, Plain};

const PAGE: usize = 4_096;

/// An array map's values in this process's memory.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<u8>,
    bytes: usize,
    length: u32,
    values: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway; every access is volatile or atomic.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for Mapped<T> {}

impl<T: Plain> Mapped<T> {
    /// Maps the values of a pinned array.
    pub fn open(path: &Path) -> io::Result<Self> {
        let map = Map::open(path)?;
        if map.value_size() as usize != mem::size_of::<T>()
            || !mem::size_of::<T>().is_multiple_of(8)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "values of another size",
            ));
        }
        let bytes = (map.max_entries() as usize * mem::size_of::<T>()).next_multiple_of(PAGE);
        // SAFETY: a new mapping of the kernel's choosing; the kernel keeps the map alive for as long as it lasts.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self {
            start,
            bytes,
            length: map.max_entries(),
            values: PhantomData,
        })
    }

    /// How many values there are.
    pub fn len(&self) -> u32 {
        self.length
    }

    fn at(&self, index: u32) -> *mut T {
        assert!(index < self.length, "an index within the map");
        // SAFETY: the index is within the mapping.
        unsafe { self.start.as_ptr().cast::<T>().add(index as usize) }
    }

    /// A copy of a value. A program may write it meanwhile: single words are whole, the value need not be.
    pub fn get(&self, index: u32) -> T {
        // SAFETY: the pointer is within the mapping, whose bytes are always a valid plain value.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes a value that no program reads yet.
    pub fn set(&self, index: u32, value: T) {
        // SAFETY: the pointer is within the mapping.
        unsafe { self.at(index).write_volatile(value) }
    }

    fn field(&self, index: u32, offset: usize, size: usize) -> *mut u8 {
        assert!(
            offset + size <= mem::size_of::<T>() && offset.is_multiple_of(size),
            "an aligned field"
        );
        // SAFETY: the field is within the value.
        unsafe { self.at(index).cast::<u8>().add(offset) }
    }

    /// A word of a value, `offset` bytes into it.
    pub fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        // SAFETY: the word is within the mapping, aligned, and only ever accessed atomically by words.
        unsafe { AtomicU64::from_ptr(self.field(index, offset, 8).cast()) }
    }

    /// Four bytes of a value, `offset` bytes into it.
    pub fn half(&self, index: u32, offset: usize) -> &AtomicU32 {
        // SAFETY: as for `word`.
        unsafe { AtomicU32::from_ptr(self.field(index, offset, 4).cast()) }
    }

    /// One byte of a value, `offset` bytes into it.
    pub fn byte(&self, index: u32, offset: usize) -> &AtomicU8 {
        // SAFETY: as for `word`.
        unsafe { AtomicU8::from_ptr(self.field(index, offset, 1)) }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrowed from it outlives it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
