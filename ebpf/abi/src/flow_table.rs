//! Finding, refreshing and inserting flows in one bucket. The same code runs in the kernel and in tests.

use crate::{
    address::Address,
    bytes::Be16,
    flow::{Bucket, Meta, Ports, SLOTS, Stage},
    tcp::{self, Sender},
};

/// How often a CPU looks at another's lock before it gives up. The holder cannot sleep and needs well under this.
const LOCK_ATTEMPTS: u32 = 16;

/// How often a stage is tried to be written when other CPUs write the same word.
const REFRESH_ATTEMPTS: u32 = 2;

/// What a flow is found by from the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey<A> {
    /// The client.
    pub client: A,
    /// Where it knocked.
    pub frontend: A,
    /// Both ports.
    pub ports: Ports,
    /// The IANA number.
    pub protocol: u8,
}

/// Finds the flow of a client's packet; slots are probed from `home` on. The meta word that matched, empty if none did.
#[inline(always)]
pub fn find<A: Address, B: Bucket<A>>(
    bucket: &B,
    home: u32,
    key: &FlowKey<A>,
    found: &mut u32,
) -> Meta {
    // Once, not for each slot: the verifier would follow every branch of it eight times over.
    let stages = Stage::all_of(key.protocol);
    let mut step = 0;
    while step < SLOTS {
        let slot = (home ^ step) & (SLOTS - 1);
        let meta = bucket.meta(slot);
        if meta.has_ports(key.ports)
            && meta.stage().is_in(stages)
            && bucket.is_between(slot, key.client, key.frontend)
            && meta.is_same_flow(bucket.meta(slot))
        {
            *found = slot;
            return meta;
        }
        step += 1;
    }
    Meta(0)
}

/// Finds the flow of a reply to `client`, given who may have sent it. The caller must look at the meta word again
/// after it has read anything else of the slot.
#[inline(always)]
pub fn find_reply<A: Address, B: Bucket<A>>(
    bucket: &B,
    home: u32,
    (client, port): (A, Be16),
    protocol: u8,
    is_sender: impl Fn(u32) -> bool,
    found: &mut u32,
) -> Meta {
    let stages = Stage::all_of(protocol);
    let mut step = 0;
    while step < SLOTS {
        let slot = (home ^ step) & (SLOTS - 1);
        let meta = bucket.meta(slot);
        if meta.client_port() == port
            && meta.stage().is_in(stages)
            && bucket.client(slot) == client
            && is_sender(meta.backend())
        {
            *found = slot;
            return meta;
        }
        step += 1;
    }
    Meta(0)
}

/// Notes a packet in its flow's slot: writes only when the stage or the age changes. Whether it was the flow's end.
#[inline(always)]
pub fn refresh<A: Address, B: Bucket<A>>(
    bucket: &B,
    slot: u32,
    meta: Meta,
    sender: Sender,
    flags: u8,
    now: u64,
) -> bool {
    let mut seen = meta;
    let mut attempt = 0;
    while attempt < REFRESH_ATTEMPTS {
        let noted = seen.at(tcp::next(seen.stage(), sender, flags), now);
        if noted == seen {
            return false;
        }
        if bucket.exchange(slot, seen, noted) {
            return noted.stage().is_over() && !seen.stage().is_over();
        }
        // Another CPU was quicker. If the slot is still this flow's, what it wrote is the new starting point.
        seen = bucket.meta(slot);
        if !meta.is_same_flow(seen) {
            return false;
        }
        attempt += 1;
    }
    false
}

/// What became of an insertion, in one word: the slot, what became of it, and what the slot was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted(u32);

impl Inserted {
    /// The flow stands in the slot.
    pub const NEW: u32 = 0;
    /// Another CPU had inserted the flow already, perhaps with another backend.
    pub const EXISTING: u32 = 1;
    /// Another CPU held the bucket for too long.
    pub const BUSY: u32 = 2;
    /// Every slot holds a flow that must not be given up.
    pub const FULL: u32 = 3;

    #[inline(always)]
    const fn of(kind: u32, slot: u32, victim: u32) -> Self {
        Self(slot | kind << 8 | victim << 16)
    }

    /// Which of the four.
    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.0 >> 8 & 0xff
    }

    /// The slot of a new or existing flow.
    #[inline(always)]
    pub const fn slot(self) -> u32 {
        self.0 & (SLOTS - 1)
    }

    /// What the slot of a new flow was before: a [`Victim`].
    #[inline(always)]
    pub const fn victim(self) -> u32 {
        self.0 >> 16
    }

    /// The meta word of an existing flow.
    #[inline(always)]
    pub fn meta_of<A: Address, B: Bucket<A>>(self, bucket: &B) -> Meta {
        bucket.meta(self.slot())
    }
}

/// What a slot was before it was given to a new flow: the order is that in which slots are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Victim {
    /// Nothing.
    Empty = 0,
    /// A flow that is over, or has aged.
    Over = 1,
    /// A flow whose backend has never been heard, or one without a connection that rests.
    Unconfirmed = 2,
    /// A live flow.
    Confirmed = 3,
}

/// How an insertion treats what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insertion {
    /// The backend that the flow had so far and must leave: its slot is written over.
    pub leaves: u32,
    /// The worst that may be done to another flow.
    pub at_most: Victim,
}

/// Puts a flow into its bucket under the bucket's lock.
#[inline(always)]
pub fn insert<A: Address, B: Bucket<A>>(
    bucket: &B,
    home: u32,
    key: &FlowKey<A>,
    meta: Meta,
    insertion: Insertion,
    now: u64,
) -> Inserted {
    if !lock(bucket) {
        return Inserted::of(Inserted::BUSY, 0, 0);
    }
    let mut inserted = Inserted(bucket.forget(place(bucket, home, key, insertion.leaves, now).0));
    if inserted.kind() == Inserted::NEW && inserted.victim() > insertion.at_most as u32 {
        inserted = Inserted::of(Inserted::FULL, 0, 0);
    } else if inserted.kind() == Inserted::NEW {
        let slot = inserted.slot();
        let lock = if slot == 0 { Meta::LOCK } else { 0 };
        bucket.publish(slot, Meta(lock));
        bucket.write(slot, key.client, key.frontend);
        bucket.publish(slot, Meta(meta.0 | lock));
    }
    bucket.unlock();
    inserted
}

/// Where a flow stands, or is best put. The bucket must be locked.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a slot's number")]
fn place<A: Address, B: Bucket<A>>(
    bucket: &B,
    home: u32,
    key: &FlowKey<A>,
    leaves: u32,
    now: u64,
) -> Inserted {
    let stages = Stage::all_of(key.protocol);
    let mut best = rank(bucket.meta(home & (SLOTS - 1)), home, 0, now);
    let mut step = 0;
    while step < SLOTS {
        let slot = (home ^ step) & (SLOTS - 1);
        let old = bucket.meta(slot);
        if old.has_ports(key.ports)
            && old.stage().is_in(stages)
            && bucket.is_between(slot, key.client, key.frontend)
        {
            if leaves != old.backend() {
                return Inserted::of(Inserted::EXISTING, slot, 0);
            }
            // The flow's own slot: nothing else will do, and nothing is given up.
            best = u64::from(slot);
            break;
        }
        let rank = rank(old, slot, step, now);
        best = if rank < best { rank } else { best };
        step += 1;
    }
    Inserted::of(Inserted::NEW, best as u32 & (SLOTS - 1), victim_of(best))
}

/// Orders slots by what would be lost: kind of victim, then the longest idle, then the nearest to home. The slot's own
/// number stands in the low bits.
///
/// In the high half is what all ranks of one search have in common: a number that the verifier does not know. Of bare ranks it
/// would know now and then which is the lower one, remember how it knows, and follow every way that differs.
#[inline(always)]
fn rank(meta: Meta, slot: u32, step: u32, now: u64) -> u64 {
    let since = meta.since(now);
    let worth = meta.stage().worth(meta.staleness(now), since);
    let order = worth << 16 | (Meta::AGE_MAX - since) << 8 | u64::from(step);
    (order << SLOT_BITS | u64::from(slot & (SLOTS - 1))).wrapping_add(now << 32)
}

/// How many bits a slot's number has.
const SLOT_BITS: u32 = SLOTS.trailing_zeros();

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the high bits of a rank's low half are two"
)]
const fn victim_of(rank: u64) -> u32 {
    rank as u32 >> (16 + SLOT_BITS)
}

#[inline(always)]
fn lock<A: Address, B: Bucket<A>>(bucket: &B) -> bool {
    let mut attempt = 0;
    while attempt < LOCK_ATTEMPTS {
        if bucket.try_lock() {
            return true;
        }
        attempt += 1;
    }
    false
}
