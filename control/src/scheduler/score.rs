//! Which of the nodes that will do is the best.

use super::{
    demand::Demand, filter, round::Round, snapshot::Entry, standing::Standing, topology::NOWHERE,
};

/// The best of some places. Of equals, the seed decides.
pub fn best(round: &Round<'_>, entry: &Entry, standing: &Standing<'_>, places: &[usize]) -> usize {
    if let [only] = places {
        return *only;
    }
    let demand = entry.demand.as_ref();
    let preferences = Preferences::of(round, demand, places);
    let wishes = standing.scores(places);
    // A pod that says itself how it wants to be spread is not spread by its controller.
    let crowds = (!standing.spreads()).then(|| Crowds::of(round, entry, places));
    let salt = round.policy.seed ^ u64::from(crate::controllers::meta::hash(&demand.uid));
    places
        .iter()
        .zip(wishes)
        .enumerate()
        .max_by_key(|(index, (place, (affinity, evenness)))| {
            let spreading = match &crowds {
                Some(crowds) => crowds.score(*index),
                None => *evenness,
            };
            let score = 2 * spreading
                + 2 * affinity
                + preferences.score(*index)
                + room_score(round, demand, **place);
            (score, mixed(salt, **place as u64))
        })
        .map_or(0, |(_, (place, _))| *place)
}

/// Prefers nodes with much room (0 to 100), evenly used (0 to 100).
fn room_score(round: &Round<'_>, demand: &Demand, place: usize) -> i64 {
    let Some(node) = &round.snapshot.nodes[place] else {
        return 0;
    };
    let room = round.draft.room_at(place);
    let percent = |taken: i64, offered: i64| {
        if offered <= 0 {
            100
        } else {
            (taken.saturating_mul(100) / offered).clamp(0, 100)
        }
    };
    let cpu = percent(room.weighed_cpu + demand.weight.0, node.offered.cpu);
    let memory = percent(room.weighed_memory + demand.weight.1, node.offered.memory);
    let free = (200 - cpu - memory) / 2;
    let even = 100 - (cpu - memory).abs() / 2;
    free + even
}

/// How many pods of the same owner stand at each place and in its zone.
struct Crowds {
    nodes: Vec<i64>,
    zones: Vec<i64>,
    most: (i64, i64),
}

impl Crowds {
    fn of(round: &Round<'_>, entry: &Entry, places: &[usize]) -> Self {
        let mut crowds = Self {
            nodes: Vec::new(),
            zones: Vec::new(),
            most: (0, 0),
        };
        let Some(crowd) = entry
            .uses
            .owner
            .and_then(|owner| round.draft.crowd_of(owner))
        else {
            return crowds;
        };
        let zones = round.snapshot.geography.zones();
        for place in places {
            let here = u32::try_from(*place).unwrap_or(NOWHERE);
            let zone = zones.domain(*place);
            crowds.nodes.push(crowd.places.get(here));
            crowds.zones.push(match zone {
                NOWHERE => 0,
                zone => crowd.zones.get(zone),
            });
        }
        let most = |counts: &[i64]| counts.iter().copied().max().unwrap_or(0);
        crowds.most = (most(&crowds.nodes), most(&crowds.zones));
        crowds
    }

    /// 100 where there is none of them, 0 where there are most; the node counts twice as much as the zone.
    fn score(&self, index: usize) -> i64 {
        let of = |counts: &[i64], most: i64| match counts.get(index) {
            Some(count) if most > 0 => 100 * (most - count) / most,
            _ => 100,
        };
        (2 * of(&self.nodes, self.most.0) + of(&self.zones, self.most.1)) / 3
    }
}

/// How well each place meets what the pod would like: preferred affinity, no taints that ask it to stay away.
struct Preferences {
    affinity: Vec<i64>,
    taints: Vec<i64>,
    most: (i64, i64),
}

impl Preferences {
    fn of(round: &Round<'_>, demand: &Demand, places: &[usize]) -> Self {
        let nodes = || {
            let places = places.iter();
            places.filter_map(|place| round.snapshot.nodes[*place].as_ref())
        };
        let affinity: Vec<i64> = if demand.preferred.is_empty() {
            Vec::new()
        } else {
            nodes()
                .map(|node| {
                    let terms = demand.preferred.iter();
                    terms
                        .filter(|term| filter::matches(&term.preference, node))
                        .map(|term| i64::from(term.weight))
                        .sum()
                })
                .collect()
        };
        let taints: Vec<i64> = nodes()
            .map(|node| {
                let unwanted = node.taints.iter().filter(|taint| {
                    taint.effect == "PreferNoSchedule"
                        && !filter::is_tolerated(taint, &demand.tolerations)
                });
                i64::try_from(unwanted.count()).unwrap_or(i64::MAX)
            })
            .collect();
        let most = |values: &[i64]| values.iter().copied().max().unwrap_or(0);
        Self {
            most: (most(&affinity), most(&taints)),
            affinity,
            taints,
        }
    }

    fn score(&self, index: usize) -> i64 {
        let affinity = match self.affinity.get(index) {
            Some(weight) if self.most.0 > 0 => 100 * weight / self.most.0,
            _ => 0,
        };
        let taints = match self.taints.get(index) {
            Some(count) if self.most.1 > 0 => 100 * (self.most.1 - count) / self.most.1,
            _ => 100,
        };
        2 * affinity + 3 * taints
    }
}

/// A number that looks random but follows from its arguments.
fn mixed(salt: u64, number: u64) -> u64 {
    let mut hash = salt ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
