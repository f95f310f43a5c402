//! Which backend a new flow gets: the nearest class that has any, then consistent hashing within it.

use crate::{
    assert_layout,
    service::{ChoiceTable, LOCAL_ONLY, ServiceEntry, flags},
    tables::Origin,
};

/// How many backend ids a line of the choice map holds: one cache line.
pub const LANES: usize = 16;

/// One value of the choice map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ChoiceLine {
    /// Backend ids.
    pub backends: [u32; LANES],
}

assert_layout!(ChoiceLine, size = 64, align = 64, fields = [[u32; LANES]]);

/// Where in the choice map the answer for one flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// Where in the line.
    pub lane: u32,
}

/// The table that a client from `origin` chooses from; empty if no backend may serve it.
#[inline(always)]
pub fn table(entry: &ServiceEntry, origin: Origin) -> ChoiceTable {
    let local = match origin {
        Origin::Pod => flags::INTERNAL_LOCAL,
        Origin::Uplink => flags::EXTERNAL_LOCAL,
    };
    if entry.flags & local != 0 {
        entry.tables[LOCAL_ONLY]
    } else if entry.tables[0].lines != 0 {
        entry.tables[0]
    } else if entry.tables[1].lines != 0 {
        entry.tables[1]
    } else {
        entry.tables[2]
    }
}

/// Where a flow with this hash looks in a table that is not empty.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "bits of a hash")]
pub const fn place(table: ChoiceTable, hash: u64) -> Place {
    Place {
        line: table
            .first_line
            .wrapping_add((hash >> 8) as u32 & table.lines.wrapping_sub(1)),
        lane: hash as u32 & (LANES as u32 - 1),
    }
}

/// How many lines a table of `backends` takes: 16 lanes a backend, so that shares differ by a few percent.
pub const fn lines_for(backends: u32) -> u32 {
    if backends == 0 {
        0
    } else {
        backends.next_power_of_two()
    }
}

/// A lane that no backend has yet.
const EMPTY: u32 = u32::MAX;

/// Fills a table by Maglev's permutations, with strides that are odd because the size is a power of two.
///
/// `backends` gives each id with a hash of what the backend is (not of its id), so that every node that knows the
/// same backends fills the same table, and a change of one backend moves few flows of the others.
///
/// # Panics
/// If there are backends but `lanes` is not a power of two of at least as many places.
pub fn fill(lanes: &mut [u32], backends: &[(u32, u64)], cursor: &mut [u32]) {
    if backends.is_empty() {
        return;
    }
    assert!(lanes.len().is_power_of_two() && lanes.len() >= backends.len());
    assert!(cursor.len() >= backends.len());
    lanes.fill(EMPTY);
    let mask = lanes.len() as u64 - 1;
    let mut filled = 0;
    cursor.fill(0);
    loop {
        for (which, (id, hash)) in backends.iter().enumerate() {
            let stride = (hash >> 32) | 1;
            loop {
                let next = hash.wrapping_add(u64::from(cursor[which]).wrapping_mul(stride)) & mask;
                cursor[which] += 1;
                let lane = &mut lanes[usize::try_from(next).unwrap_or(0)];
                if *lane == EMPTY {
                    *lane = *id;
                    break;
                }
            }
            filled += 1;
            if filled == lanes.len() {
                return;
            }
        }
    }
}
