//! Topologies: the labels of nodes by which places are told apart, and numbers counted by place.

use std::collections::HashMap;

/// A number for each of many small numbers (places, domains): few of them in a list, many in a table.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    few: Vec<(u32, i64)>,
    many: Vec<i64>,
}

/// So many are searched one by one.
const FEW: usize = 16;

impl Counts {
    /// The count at a place; 0 where none was ever added.
    pub fn get(&self, at: u32) -> i64 {
        if self.many.is_empty() {
            let found = self.few.iter().find(|(place, _)| *place == at);
            return found.map_or(0, |(_, count)| *count);
        }
        self.many.get(at as usize).copied().unwrap_or(0)
    }

    /// Adds to the count at a place.
    pub fn add(&mut self, at: u32, amount: i64) {
        if !self.many.is_empty() {
            self.grow(at);
            self.many[at as usize] += amount;
            return;
        }
        if let Some(index) = self.few.iter().position(|(place, _)| *place == at) {
            self.few[index].1 += amount;
            if self.few[index].1 == 0 {
                self.few.swap_remove(index);
            }
        } else if self.few.len() < FEW {
            self.few.push((at, amount));
        } else {
            for (place, count) in std::mem::take(&mut self.few) {
                self.grow(place);
                self.many[place as usize] = count;
            }
            self.grow(at);
            self.many[at as usize] += amount;
        }
    }

    fn grow(&mut self, at: u32) {
        let wanted = at as usize + 1;
        if self.many.len() < wanted {
            self.many.resize(wanted.next_power_of_two(), 0);
        }
    }

    /// The places with a count that is not 0.
    pub fn iter(&self) -> impl Iterator<Item = (u32, i64)> {
        let many = self.many.iter().enumerate();
        let many = many
            .filter(|(_, count)| **count != 0)
            .filter_map(|(place, count)| Some((u32::try_from(place).ok()?, *count)));
        self.few.iter().copied().chain(many)
    }
}

/// A node without the label is in no domain.
pub const NOWHERE: u32 = u32::MAX;

/// The nodes by the values of one label.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// The label.
    pub key: String,
    /// The domain of each place.
    pub domains: Vec<u32>,
    /// How many nodes each domain has; numbers of empty ones are given out again.
    pub sizes: Vec<u32>,
    /// How many nodes are without the label.
    pub without: usize,
    by_value: HashMap<String, u32>,
    values: Vec<String>,
    free: Vec<u32>,
}

impl Topology {
    /// A topology that knows no node yet.
    pub fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..Self::default()
        }
    }

    /// The domain of a place.
    pub fn domain(&self, place: usize) -> u32 {
        self.domains.get(place).copied().unwrap_or(NOWHERE)
    }

    /// A node came to a place.
    pub fn enter(&mut self, place: usize, value: Option<&String>) {
        if self.domains.len() <= place {
            self.domains.resize(place + 1, NOWHERE);
        }
        let Some(value) = value else {
            self.without += 1;
            self.domains[place] = NOWHERE;
            return;
        };
        let domain = match self.by_value.get(value) {
            Some(domain) => *domain,
            None => self.name(value),
        };
        self.sizes[domain as usize] += 1;
        self.domains[place] = domain;
    }

    fn name(&mut self, value: &str) -> u32 {
        let domain = self.free.pop().unwrap_or_else(|| {
            self.sizes.push(0);
            self.values.push(String::new());
            // Bounded by the number of nodes, which fits.
            u32::try_from(self.sizes.len() - 1).unwrap_or(NOWHERE)
        });
        value.clone_into(&mut self.values[domain as usize]);
        self.by_value.insert(value.to_owned(), domain);
        domain
    }

    /// The node at a place went, or is about to come anew. Nothing is counted there any longer.
    pub fn leave(&mut self, place: usize) {
        let domain = self.domain(place);
        if domain == NOWHERE {
            self.without -= 1;
            return;
        }
        self.domains[place] = NOWHERE;
        let size = &mut self.sizes[domain as usize];
        *size -= 1;
        if *size == 0 {
            self.by_value.remove(&self.values[domain as usize]);
            self.free.push(domain);
        }
    }

    /// How many domains have nodes.
    pub fn count(&self) -> usize {
        self.by_value.len()
    }

    /// The domains that have nodes.
    pub fn inhabited(&self) -> impl Iterator<Item = u32> {
        let sizes = self.sizes.iter().enumerate();
        sizes
            .filter(|(_, size)| **size > 0)
            .filter_map(|(domain, _)| u32::try_from(domain).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_counts_are_the_same_to_the_reader() {
        let mut counts = Counts::default();
        for place in 0..100 {
            counts.add(place, i64::from(place));
            assert_eq!(counts.get(place), i64::from(place));
        }
        assert_eq!(counts.get(1000), 0);
        assert_eq!(counts.iter().count(), 99, "zero is no count");
        for place in 0..100 {
            counts.add(place, -i64::from(place));
        }
        assert_eq!(counts.iter().count(), 0);
    }

    #[test]
    fn domains_come_and_go_with_their_nodes() {
        let mut zones = Topology::new("zone");
        let (east, west) = ("east".to_owned(), "west".to_owned());
        zones.enter(0, Some(&east));
        zones.enter(1, Some(&west));
        zones.enter(2, Some(&east));
        zones.enter(3, None);
        assert_eq!(zones.domain(0), zones.domain(2));
        assert_ne!(zones.domain(0), zones.domain(1));
        assert_eq!((zones.domain(3), zones.without), (NOWHERE, 1));
        assert_eq!(zones.inhabited().count(), 2);
        zones.leave(1);
        zones.leave(3);
        assert_eq!((zones.inhabited().count(), zones.without), (1, 0));
        zones.enter(1, Some(&"north".to_owned()));
        assert_eq!(zones.sizes.len(), 2, "the number of west is north's now");
    }
}
