//! Who may knock at a load balancer's address: a longest-prefix map from (set, address) to presence.
//!
//! A service's ranges are one set. A changed set is a new one beside the old, so that packets see either.

use crate::{address::Address, assert_layout};

/// A key of the map behind its prefix length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeMember {
    /// The set's number doubled, plus one for IPv6. All of its bits are part of every prefix.
    pub set: u32,
    /// The address in memory order; IPv4 in the first word.
    pub address: [u32; 4],
}

/// A key of the map as userspace writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct RangeKey {
    /// How many bits count: 32 of the set, then those of the range.
    pub prefix_length: u32,
    /// Set and address.
    pub member: RangeMember,
}

assert_layout!(RangeMember, size = 20, align = 4, fields = [u32, [u32; 4]]);
assert_layout!(RangeKey, size = 24, align = 4, fields = [u32, RangeMember]);

/// The prefix length of a whole key.
pub const WHOLE: u32 = 160;

impl RangeMember {
    /// An address in a set.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both halves are kept")]
    pub fn new<A: Address>(set: u32, address: A) -> Self {
        let [a, b] = address.words();
        Self {
            set: set << 1 | u32::from(A::IS_V6),
            address: [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32],
        }
    }
}

impl RangeKey {
    /// The range of the addresses whose first `length` bits are those of `address`.
    pub fn new<A: Address>(set: u32, address: A, length: u8) -> Self {
        Self {
            prefix_length: 32 + u32::from(length),
            member: RangeMember::new(set, address),
        }
    }
}
