//! Buckets of the map of sockets as the kernel programs reach them.

use core::ptr::addr_of_mut;

use portolan_abi::socket_table::{End, SocketBucket, Sockets, Translation, WAYS};

use crate::lock;

/// A bucket of the map of sockets.
#[derive(Clone, Copy)]
pub struct MapSockets(pub *mut SocketBucket);

impl MapSockets {
    #[inline(always)]
    fn word(self, way: u32) -> *mut u64 {
        // SAFETY: the mask keeps the way within the bucket.
        unsafe {
            addr_of_mut!((*self.0).owners)
                .cast::<u64>()
                .add((way & (WAYS - 1)) as usize)
        }
    }

    #[inline(always)]
    fn translation(self, way: u32) -> *mut Translation {
        // SAFETY: the mask keeps the way within the bucket.
        unsafe {
            addr_of_mut!((*self.0).translations)
                .cast::<Translation>()
                .add((way & (WAYS - 1)) as usize)
        }
    }
}

impl Sockets for MapSockets {
    #[inline(always)]
    fn owner(&self, way: u32) -> u64 {
        // SAFETY: the word lies in the map's value, which lives as long as the program runs.
        unsafe { self.word(way).read_volatile() }
    }

    #[inline(always)]
    fn exchange(&self, way: u32, expected: u64, owner: u64) -> bool {
        // SAFETY: as in `owner`.
        unsafe { lock::exchange(self.word(way), expected, owner) }
    }

    #[inline(always)]
    fn set_owner(&self, way: u32, owner: u64) {
        // SAFETY: as in `owner`.
        unsafe { self.word(way).write_volatile(owner) };
    }

    #[inline(always)]
    fn frontend(&self, way: u32) -> End {
        let translation = self.translation(way);
        // SAFETY: the fields lie in the map's value.
        unsafe {
            End {
                address: addr_of_mut!((*translation).frontend).read_volatile(),
                port: addr_of_mut!((*translation).frontend_port).read_volatile(),
            }
        }
    }

    #[inline(always)]
    fn backend(&self, way: u32) -> End {
        let translation = self.translation(way);
        // SAFETY: the fields lie in the map's value.
        unsafe {
            End {
                address: addr_of_mut!((*translation).backend).read_volatile(),
                port: addr_of_mut!((*translation).backend_port).read_volatile(),
            }
        }
    }

    #[inline(always)]
    fn id(&self, way: u32) -> u32 {
        // SAFETY: the field lies in the map's value.
        unsafe { addr_of_mut!((*self.translation(way)).id).read_volatile() }
    }

    #[inline(always)]
    fn kind(&self, way: u32) -> u32 {
        // SAFETY: the field lies in the map's value.
        unsafe { addr_of_mut!((*self.translation(way)).kind).read_volatile() }
    }

    #[inline(always)]
    fn write(&self, way: u32, translation: &Translation) {
        // SAFETY: the value lies in the map, and the way is the caller's.
        unsafe { self.translation(way).write_volatile(*translation) };
    }
}
