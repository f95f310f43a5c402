//! Which backend a new flow gets: first the table, by policy, distribution and the share that leaves the node; then a
//! backend of that table, by weighted consistent hashing or as the less busy of two.

use crate::{
    address::Address,
    assert_layout, hash,
    service::{ChoiceTable, ServiceEntry, flags, table},
    tables::{Origin, Tables},
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

/// A value of the map of loads, by backend id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Connections, as userspace counted them last, and those that have begun since.
    pub connections: u32,
    /// The backend's weight.
    pub weight: u32,
}

/// A value of the map of shares, by service id. Zero, as maps begin, lets every flow stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Share {
    /// Of [`ALL`] new flows, how many are to leave the preferred backends.
    pub away: u32,
    /// Zero.
    pub reserved: u32,
}

assert_layout!(ChoiceLine, size = 64, align = 64, fields = [[u32; LANES]]);
assert_layout!(Load, size = 8, align = 4, fields = [u32, u32]);
assert_layout!(Share, size = 8, align = 4, fields = [u32, u32]);

/// What shares are parts of.
pub const ALL: u32 = 1 << 16;

/// Where in the choice map the answer for one flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: u32,
    /// Where in the line.
    pub lane: u32,
}

/// Whether a client from `origin` may have backends of this node only.
#[inline(always)]
pub const fn is_local_only(entry: &ServiceEntry, origin: Origin) -> bool {
    let local = match origin {
        Origin::Pod => flags::INTERNAL_LOCAL,
        Origin::Uplink => flags::EXTERNAL_LOCAL,
        // It has been here and there enough.
        Origin::Tunnel => return true,
    };
    entry.flags & local != 0
}

/// The table that a client chooses from; without lines if no backend may serve it.
#[inline(always)]
pub fn table<A: Address, T: Tables<A>>(
    entry: &ServiceEntry,
    local_only: bool,
    hash: u64,
    tables: &T,
) -> ChoiceTable {
    if local_only {
        entry.tables[table::LOCAL_ONLY]
    } else if entry.flags & flags::LOAD_AWARE != 0
        && (hash >> 48) as u32 & (ALL - 1) < tables.away(entry.id)
    {
        entry.tables[table::OTHER]
    } else {
        entry.tables[table::PREFERRED]
    }
}

/// The backend that a flow with this hash gets out of a table that is not empty.
#[inline(always)]
pub fn backend<A: Address, T: Tables<A>>(
    entry: &ServiceEntry,
    table: ChoiceTable,
    hash: u64,
    tables: &T,
) -> Option<u32> {
    let first = tables.choice(place(table, hash))?;
    if entry.flags & flags::LEAST_CONNECTIONS == 0 {
        return Some(first);
    }
    let second = tables.choice(place(table, hash::mix(hash, 1)))?;
    match (tables.load(first), tables.load(second)) {
        (Some(one), Some(other)) if other.is_less_than(one) => Some(second),
        _ => Some(first),
    }
}

impl Load {
    /// Whether one more connection would weigh less here than there.
    #[inline(always)]
    pub const fn is_less_than(self, other: Self) -> bool {
        (self.connections as u64 + 1) * (other.weight as u64)
            < (other.connections as u64 + 1) * (self.weight as u64)
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

/// How many lines a table of backends with these weights takes: 16 lanes a backend, so that shares differ by a few
/// percent; more where weights differ, so that the lightest has a few lanes, up to [`MOST_LANES`].
pub fn lines_for(weights: impl Iterator<Item = u32> + Clone) -> u32 {
    let backends = weights.clone().count() as u64;
    let lightest = u64::from(weights.clone().min().unwrap_or(1)).max(1);
    let total: u64 = weights.map(u64::from).sum();
    if backends == 0 {
        return 0;
    }
    let even = backends * LANES as u64;
    let fine = (total * 4).div_ceil(lightest).min(MOST_LANES);
    let lanes = even.max(fine).next_power_of_two();
    u32::try_from(lanes / LANES as u64).unwrap_or(u32::MAX)
}

/// The most lanes that a table gets for the sake of light backends.
pub const MOST_LANES: u64 = 4_096;

/// A lane that no backend has yet.
const EMPTY: u32 = u32::MAX;

/// A backend as a table is filled with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: u32,
    /// More than zero.
    pub weight: u32,
    /// A hash of what it is, not of its id: so every node that knows the same backends fills the same table.
    pub hash: u64,
}

/// Fills a table by Maglev's permutations, with strides that are odd because the size is a power of two. In each round
/// a backend has its turn when its share of weight, next to the heaviest, adds up to one.
///
/// A change of one backend moves few flows of the others. `turns` is room for a number a backend, twice.
///
/// # Panics
/// If there are backends but `lanes` is not a power of two of at least as many places, or `turns` is too short.
pub fn fill(lanes: &mut [u32], backends: &[Candidate], turns: &mut [[u32; 2]]) {
    let Some(heaviest) = backends.iter().map(|backend| backend.weight.max(1)).max() else {
        return;
    };
    assert!(lanes.len().is_power_of_two() && lanes.len() >= backends.len());
    assert!(turns.len() >= backends.len());
    lanes.fill(EMPTY);
    let mask = lanes.len() as u64 - 1;
    let mut filled = 0;
    turns.fill([0, 0]);
    loop {
        for (backend, [cursor, credit]) in backends.iter().zip(&mut *turns) {
            *credit += backend.weight.max(1);
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            let stride = (backend.hash >> 32) | 1;
            loop {
                let next = backend
                    .hash
                    .wrapping_add(u64::from(*cursor).wrapping_mul(stride))
                    & mask;
                *cursor += 1;
                let lane = &mut lanes[usize::try_from(next).unwrap_or(0)];
                if *lane == EMPTY {
                    *lane = backend.id;
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

#[cfg(test)]
mod tests;
