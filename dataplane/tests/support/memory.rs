//! Flow tables in plain memory, for the model of the programs.

use std::{cell::Cell, sync::atomic::Ordering};

use portolan_abi::{
    address::{V4, V6},
    bytes::Be32,
    flow::{Bucket, Meta, SlotV4},
};

use super::tables::{Plain, Shared};

/// A flow table of the model's own.
#[derive(Debug)]
pub struct Flows {
    /// All of it by words.
    pub words: Vec<Cell<u64>>,
    /// Words of a bucket.
    pub stride: usize,
}

impl Flows {
    /// A copy of what the programs' table says.
    pub fn of<T: Plain>(table: &Shared<T>) -> Self {
        let flows = Self {
            words: table.words().iter().map(|_| Cell::new(0)).collect(),
            stride: size_of::<T>() / 8,
        };
        flows.copy(table);
        flows
    }

    /// Takes over what the programs' table says.
    pub fn copy<T: Plain>(&self, table: &Shared<T>) {
        for (mine, theirs) in self.words.iter().zip(table.words()) {
            mine.set(theirs.load(Ordering::Relaxed));
        }
    }

    /// A bucket's words.
    pub fn bucket(&self, index: usize) -> Option<&[Cell<u64>]> {
        self.words
            .get(index * self.stride..(index + 1) * self.stride)
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.words.len() / self.stride
    }
}

/// A bucket of IPv4 flows.
#[derive(Clone, Copy)]
pub struct View<'a>(pub &'a [Cell<u64>]);

macro_rules! meta_at {
    ($words:literal, $meta:literal) => {
        fn meta(&self, slot: u32) -> Meta {
            Meta(self.0[slot as usize * $words + $meta].get())
        }

        fn exchange(&self, slot: u32, old: Meta, new: Meta) -> bool {
            let is = self.meta(slot) == old;
            if is {
                self.publish(slot, new);
            }
            is
        }

        fn try_lock(&self) -> bool {
            let meta = self.meta(0);
            self.publish(0, Meta(meta.0 | Meta::LOCK));
            meta.0 & Meta::LOCK == 0
        }

        fn unlock(&self) {
            self.publish(0, self.meta(0).unlocked());
        }

        fn publish(&self, slot: u32, meta: Meta) {
            self.0[slot as usize * $words + $meta].set(meta.0);
        }
    };
}

#[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
impl Bucket<V4> for View<'_> {
    meta_at!(2, 1);

    fn client(&self, slot: u32) -> V4 {
        V4(Be32(self.0[slot as usize * 2].get() as u32))
    }

    fn frontend(&self, slot: u32) -> V4 {
        V4(Be32((self.0[slot as usize * 2].get() >> 32) as u32))
    }

    fn write(&self, slot: u32, client: V4, frontend: V4) {
        self.0[slot as usize * 2].set(SlotV4::addresses(client, frontend));
    }
}

/// A bucket of IPv6 flows.
#[derive(Clone, Copy)]
pub struct View6<'a>(pub &'a [Cell<u64>]);

impl Bucket<V6> for View6<'_> {
    meta_at!(8, 0);

    fn client(&self, slot: u32) -> V6 {
        V6([1, 2].map(|word| self.0[slot as usize * 8 + word].get()))
    }

    fn frontend(&self, slot: u32) -> V6 {
        V6([3, 4].map(|word| self.0[slot as usize * 8 + word].get()))
    }

    fn write(&self, slot: u32, client: V6, frontend: V6) {
        let words = client.0.into_iter().chain(frontend.0);
        for (at, word) in (1..).zip(words) {
            self.0[slot as usize * 8 + at].set(word);
        }
    }
}
