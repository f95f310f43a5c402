//! Session affinity: a hash map from a client of a service to the backend that it had last.
//!
//! Looked at for new flows only. When the map is full, the choice by the client's address alone stands in for it: that
//! keeps a client's backend too, but not across a change of the service's backends.

use crate::{
    address::Address,
    assert_layout,
    backend::{self, offers},
    service::ServiceEntry,
    tables::Tables,
};

/// A client of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address, as [`Address::words`] gives it.
    pub client: [u64; 2],
    /// The service port's id.
    pub service: u32,
    /// 1 for IPv6, else 0.
    pub is_v6: u32,
}

/// What the client had last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AffinityEntry {
    /// The backend's id.
    pub backend: u32,
    /// When its last flow began, in seconds of the monotonic clock.
    pub second: u32,
}

assert_layout!(
    AffinityKey,
    size = 24,
    align = 8,
    fields = [[u64; 2], u32, u32]
);
assert_layout!(AffinityEntry, size = 8, align = 4, fields = [u32, u32]);

/// Nanoseconds of the clock as this map has them.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the difference of two is what counts"
)]
pub const fn second(now: u64) -> u32 {
    (now / 1_000_000_000) as u32
}

impl AffinityKey {
    /// A client of a service.
    #[inline(always)]
    pub fn new<A: Address>(client: A, service: u32) -> Self {
        Self {
            client: client.words(),
            service,
            is_v6: u32::from(A::IS_V6),
        }
    }
}

impl AffinityEntry {
    /// Whether so many seconds have not passed yet.
    #[inline(always)]
    pub const fn is_current(self, seconds: u32, now: u64) -> bool {
        second(now).wrapping_sub(self.second) < seconds
    }
}

/// The backend that a client had, if that still takes new flows from this table.
#[inline(always)]
pub fn recall<A: Address, T: Tables<A>>(
    key: &AffinityKey,
    service: &ServiceEntry,
    local_only: bool,
    tables: &T,
) -> Option<u32> {
    let entry = tables.affinity(key)?;
    let backend = tables.backend(entry.backend)?;
    let wanted = if local_only {
        offers::LOCAL
    } else {
        offers::CLUSTER
    };
    let serves = backend.state == backend::state::LIVE
        && backend.service == service.id
        && backend.offers & wanted != 0;
    (serves && entry.is_current(service.affinity_seconds, tables.now())).then_some(entry.backend)
}

/// Notes which backend a client has now.
#[inline(always)]
pub fn remember<A: Address, T: Tables<A>>(key: &AffinityKey, backend: u32, tables: &T) {
    let entry = AffinityEntry {
        backend,
        second: second(tables.now()),
    };
    tables.set_affinity(key, &entry);
}
