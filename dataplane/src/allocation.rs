//! Numbers that are given out and taken back: ids, and runs of lines in the choice map.

use std::collections::{BTreeMap, BTreeSet};

/// Gives out the smallest free number below a bound.
#[derive(Debug)]
pub struct Ids {
    used: Vec<bool>,
    first_free: usize,
}

impl Ids {
    /// Numbers from 0 to `bound` (not included), all free.
    pub fn new(bound: u32) -> Self {
        Self {
            used: vec![false; bound as usize],
            first_free: 0,
        }
    }

    /// A free number; none if all are used.
    pub fn allocate(&mut self) -> Option<u32> {
        let index = self.first_free + self.used[self.first_free..].iter().position(|used| !used)?;
        self.used[index] = true;
        self.first_free = index + 1;
        u32::try_from(index).ok()
    }

    /// Marks a number that is used already.
    pub fn reserve(&mut self, id: u32) {
        if let Some(used) = self.used.get_mut(id as usize) {
            *used = true;
        }
    }

    /// Takes a number back.
    pub fn free(&mut self, id: u32) {
        if let Some(used) = self.used.get_mut(id as usize) {
            *used = false;
            self.first_free = self.first_free.min(id as usize);
        }
    }

    /// How many numbers are used.
    pub fn used(&self) -> usize {
        self.used.iter().filter(|used| **used).count()
    }

    /// How many numbers there are in all.
    pub fn bound(&self) -> u32 {
        u32::try_from(self.used.len()).unwrap_or(u32::MAX)
    }
}

/// Gives out runs of lines, each a power of two long. Free runs are kept by where they begin, and by length, so that
/// finding one takes no longer however many there are; neighbours are joined again.
#[derive(Debug)]
pub struct Lines {
    free: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    total: u32,
}

impl Lines {
    /// Lines from 0 to `total` (not included), all free.
    pub fn new(total: u32) -> Self {
        Self {
            free: BTreeMap::from([(0, total)]),
            by_length: BTreeSet::from([(total, 0)]),
            total,
        }
    }

    /// How many lines are used.
    pub fn used(&self) -> u32 {
        self.total - self.free.values().sum::<u32>()
    }

    /// How many lines there are in all.
    pub fn total(&self) -> u32 {
        self.total
    }

    fn insert(&mut self, first: u32, length: u32) {
        self.free.insert(first, length);
        self.by_length.insert((length, first));
    }

    fn remove(&mut self, first: u32) -> Option<u32> {
        let length = self.free.remove(&first)?;
        self.by_length.remove(&(length, first));
        Some(length)
    }

    /// The first line of a free run, the shortest that is long enough; none if no run is.
    pub fn allocate(&mut self, lines: u32) -> Option<u32> {
        let (length, first) = *self.by_length.range((lines, 0)..).next()?;
        self.remove(first);
        if length > lines {
            self.insert(first + lines, length - lines);
        }
        Some(first)
    }

    /// Marks a run that is used already.
    pub fn reserve(&mut self, first: u32, lines: u32) {
        let Some((&start, &length)) = self.free.range(..=first).next_back() else {
            return;
        };
        if start + length < first + lines {
            return;
        }
        self.remove(start);
        if start < first {
            self.insert(start, first - start);
        }
        if first + lines < start + length {
            self.insert(first + lines, start + length - first - lines);
        }
    }

    /// Takes a run back.
    pub fn free(&mut self, first: u32, lines: u32) {
        let (mut first, mut lines) = (first, lines);
        if let Some((&start, &length)) = self.free.range(..first).next_back()
            && start + length == first
        {
            self.remove(start);
            first = start;
            lines += length;
        }
        if let Some(length) = self.remove(first + lines) {
            lines += length;
        }
        self.insert(first, lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_are_given_out_smallest_first_and_again() {
        let mut ids = Ids::new(3);
        ids.reserve(1);
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(0), Some(2), None)
        );
        ids.free(1);
        assert_eq!(ids.allocate(), Some(1));
    }

    proptest! {
        #[test]
        fn runs_never_overlap_and_all_come_back(sizes in proptest::collection::vec(0..5_u32, 1..60), keep in 0..7_usize) {
            let mut lines = Lines::new(256);
            let mut given: Vec<(u32, u32)> = Vec::new();
            for (index, power) in sizes.iter().enumerate() {
                let length = 1 << power;
                if let Some(first) = lines.allocate(length) {
                    for (other, other_length) in &given {
                        prop_assert!(first + length <= *other || other + other_length <= first);
                    }
                    given.push((first, length));
                }
                if index % 7 == keep && !given.is_empty() {
                    let (first, length) = given.swap_remove(0);
                    lines.free(first, length);
                }
            }
            let mut again = Lines::new(256);
            for (first, length) in &given {
                again.reserve(*first, *length);
            }
            prop_assert_eq!(&again.free, &lines.free);
            prop_assert_eq!(&again.by_length, &lines.by_length);
            for (first, length) in given {
                lines.free(first, length);
            }
            prop_assert_eq!(lines.allocate(256), Some(0));
        }
    }
}
