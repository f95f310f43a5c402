//! What sockets were promised: the map in which a socket's cookie leads to the backend that it was given, so that the
//! socket is told of the frontend that it knows and not of the backend.
//!
//! A socket's bucket follows from its cookie. The cookies of a bucket's ways are one cache line, what belongs to them
//! follows; a way belongs to its socket until the socket is closed. Cookies are never used twice, so that what
//! a lost socket leaves behind can be in nobody's way but its own.
//!
//! Both families stand in one map, IPv4 as the IPv4-mapped addresses that IPv6 sockets see anyway (RFC 4291, 2.5.5.2).

use crate::{address::V6, assert_layout, bytes::Be16};

/// Ways in a bucket: so many translations one socket can have, if no other shares its bucket.
pub const WAYS: u32 = 8;

/// What one socket was given for one frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// Where it knocked.
    pub frontend: V6,
    /// Where that led.
    pub backend: V6,
    /// The address that the socket speaks from.
    pub client: V6,
    /// The port that it knocked at.
    pub frontend_port: Be16,
    /// The port that the backend listens on.
    pub backend_port: Be16,
    /// The backend's id.
    pub id: u32,
    /// [`kind`].
    pub kind: u32,
    /// The IANA number of the transport.
    pub protocol: u32,
}

/// A value of the map of sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct SocketBucket {
    /// By way: the socket's cookie, with [`WRITING`] while the translation is written; zero for a free way.
    pub owners: [u64; WAYS as usize],
    /// By way.
    pub translations: [Translation; WAYS as usize],
}

assert_layout!(
    Translation,
    size = 64,
    align = 8,
    fields = [V6, V6, V6, Be16, Be16, u32, u32, u32]
);
assert_layout!(
    SocketBucket,
    size = 576,
    align = 64,
    fields = [[u64; 8], [Translation; 8]]
);

/// Set in a way's owner while its translation is written. Cookies never have it.
pub const WRITING: u64 = 1 << 63;

/// What a socket uses a translation for.
pub mod kind {
    /// For datagrams that name their receiver.
    pub const NAMED: u32 = 0;
    /// It is connected.
    pub const CONNECTED: u32 = 1;
    /// The same, and its transport has no connections of its own: nothing tells it when its backend is gone.
    pub const CONNECTED_DATAGRAM: u32 = 2;
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// IPv4 as IPv4-mapped.
    pub address: V6,
    /// The port.
    pub port: Be16,
}

/// A bucket as the code that runs on it reaches it.
pub trait Sockets: Copy {
    /// The owner of a way; ordered before every read of the way's translation that follows.
    fn owner(&self, way: u32) -> u64;
    /// Changes the owner of a way if it is the one expected; whether it was. Ordered before every write to the way's
    /// translation that follows.
    fn exchange(&self, way: u32, expected: u64, owner: u64) -> bool;
    /// Changes the owner of a way, ordered after every write to its translation. The way must be the caller's.
    fn set_owner(&self, way: u32, owner: u64);
    /// What a way's frontend is.
    fn frontend(&self, way: u32) -> End;
    /// What a way's backend is.
    fn backend(&self, way: u32) -> End;
    /// The id of a way's backend.
    fn id(&self, way: u32) -> u32;
    /// A way's [`kind`].
    fn kind(&self, way: u32) -> u32;
    /// Writes a way's translation. The way must be the caller's.
    fn write(&self, way: u32, translation: &Translation);
}

/// No way.
pub const NONE: u32 = WAYS;

/// The first way of a socket that satisfies a condition, or [`NONE`].
#[inline(always)]
pub fn find<S: Sockets>(bucket: &S, cookie: u64, is_meant: impl Fn(u32) -> bool) -> u32 {
    let mut way = 0;
    while way < WAYS {
        if bucket.owner(way) == cookie && is_meant(way) {
            return way;
        }
        way += 1;
    }
    NONE
}

/// Writes a translation into a way of the socket's own, or with [`NONE`] into one that is free; whether there is one.
#[inline(always)]
pub fn put<S: Sockets>(bucket: &S, cookie: u64, own: u32, translation: &Translation) -> bool {
    let mut way = own;
    // Userspace may have taken it away since it was found, as its backend is gone.
    if way >= WAYS || !bucket.exchange(way, cookie, cookie | WRITING) {
        way = 0;
        while way < WAYS && !(bucket.owner(way) == 0 && bucket.exchange(way, 0, cookie | WRITING)) {
            way += 1;
        }
        if way == WAYS {
            return false;
        }
    }
    bucket.write(way, translation);
    bucket.set_owner(way, cookie);
    true
}

/// Frees every way of a socket that is no more.
#[inline(always)]
pub fn release<S: Sockets>(bucket: &S, cookie: u64) {
    let mut way = 0;
    while way < WAYS {
        let owner = bucket.owner(way);
        if owner & !WRITING == cookie {
            bucket.exchange(way, owner, 0);
        }
        way += 1;
    }
}
