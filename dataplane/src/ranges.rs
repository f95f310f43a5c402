//! The source ranges of load balancers: a set of prefixes a service, in one longest-prefix map.
//!
//! A set is written before an entry leads to it, and goes a while after the last entry did.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use portolan_abi::{
    address::{V4, V6},
    source_range::RangeKey,
};

use crate::{
    Error,
    allocation::Ids,
    maps::{Maps, failed},
};

/// The sets that stand in the map.
#[derive(Debug)]
pub struct Ranges {
    numbers: Ids,
    sets: BTreeMap<u32, Vec<IpNet>>,
    retired: VecDeque<(Instant, u32)>,
}

impl Ranges {
    /// Reads the map.
    pub fn restore(maps: &Maps) -> Result<Self, Error> {
        let mut ranges = Self {
            numbers: Ids::new(maps.ranges.max_entries()),
            sets: BTreeMap::new(),
            retired: VecDeque::new(),
        };
        let entries = maps
            .ranges
            .entries::<RangeKey, u32>()
            .map_err(|error| failed("read", Path::new("RANGES"), error))?;
        for (key, _) in entries {
            let (set, net) = from_key(&key);
            ranges.numbers.reserve(set);
            ranges.sets.entry(set).or_default().extend(net);
        }
        Ok(ranges)
    }

    /// The ranges of a set; none if there is no such set.
    pub fn get(&self, set: u32) -> &[IpNet] {
        self.sets.get(&set).map_or(&[], Vec::as_slice)
    }

    /// Whether a set is of exactly these ranges.
    pub fn holds(&self, set: u32, ranges: &[IpNet]) -> bool {
        let normal = |ranges: &[IpNet]| {
            let mut ranges: Vec<_> = ranges.iter().map(IpNet::trunc).collect();
            ranges.sort_unstable();
            ranges.dedup();
            ranges
        };
        normal(self.get(set)) == normal(ranges)
    }

    /// Gives up, in a while, what no entry leads to: sets of services that are gone.
    pub fn retire_all_but(&mut self, used: &[u32]) {
        let unused: Vec<u32> = self
            .sets
            .keys()
            .filter(|set| !used.contains(set))
            .copied()
            .collect();
        for set in unused {
            self.retire(set);
        }
    }

    /// Writes a set that no packet sees yet: all of it or nothing.
    pub fn add(&mut self, maps: &Maps, ranges: &[IpNet]) -> Result<u32, Error> {
        self.collect(maps, super::services::GRACE)?;
        let full = || Error::TableFull {
            table: "source ranges",
            capacity: maps.ranges.max_entries(),
        };
        let set = self.numbers.allocate().ok_or_else(full)?;
        self.sets.insert(set, ranges.to_vec());
        for range in ranges {
            if let Err(error) = maps.ranges.set(&to_key(set, range), &1_u32) {
                self.forget(maps, set)?;
                return Err(match error.raw_os_error() {
                    Some(libc::E2BIG | libc::ENOSPC) => full(),
                    _ => failed("write source range", Path::new(&range.to_string()), error),
                });
            }
        }
        Ok(set)
    }

    /// Takes a set out when no program can be reading it any more.
    pub fn retire(&mut self, set: u32) {
        self.retired.push_back((Instant::now(), set));
    }

    /// Takes a set out at once, which no entry has led to.
    pub fn forget(&mut self, maps: &Maps, set: u32) -> Result<(), Error> {
        for range in self.sets.remove(&set).unwrap_or_default() {
            maps.ranges
                .remove(&to_key(set, &range))
                .map_err(|error| failed("remove", Path::new(&range.to_string()), error))?;
        }
        self.numbers.free(set);
        Ok(())
    }

    fn collect(&mut self, maps: &Maps, grace: Duration) -> Result<(), Error> {
        while let Some((since, set)) = self.retired.front().copied()
            && since.elapsed() >= grace
        {
            self.retired.pop_front();
            self.forget(maps, set)?;
        }
        Ok(())
    }
}

/// The key of a prefix in a set.
pub fn to_key(set: u32, range: &IpNet) -> RangeKey {
    match range.trunc() {
        IpNet::V4(range) => RangeKey::new(
            set,
            V4::from_octets(range.addr().octets()),
            range.prefix_len(),
        ),
        IpNet::V6(range) => RangeKey::new(
            set,
            V6::from_octets(range.addr().octets()),
            range.prefix_len(),
        ),
    }
}

fn from_key(key: &RangeKey) -> (u32, Option<IpNet>) {
    let mut bytes = [0; 16];
    for (word, part) in key.member.address.iter().zip(bytes.chunks_exact_mut(4)) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    let address = if key.member.set & 1 == 0 {
        let [a, b, c, d, ..] = bytes;
        IpAddr::from(Ipv4Addr::new(a, b, c, d))
    } else {
        IpAddr::from(Ipv6Addr::from(bytes))
    };
    let length = u8::try_from(key.prefix_length.saturating_sub(32)).unwrap_or(u8::MAX);
    (key.member.set >> 1, IpNet::new(address, length).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gives_back_its_range() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "198.51.100.7/32",
            "2001:db8::/32",
            "::/0",
        ] {
            let range: IpNet = text.parse().expect("a range");
            assert_eq!(from_key(&to_key(7, &range)), (7, Some(range)));
        }
        let sloppy: IpNet = "10.1.2.3/8".parse().expect("a range");
        assert_eq!(from_key(&to_key(7, &sloppy)).1, Some(sloppy.trunc()));
    }
}
