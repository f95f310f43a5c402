//! What is counted as pods come to nodes and leave them: room, ports, and who stands near whom. One way of counting,
//! for the snapshot's own ledger and for what a round puts on top of it.

use std::collections::{BTreeMap, HashMap};

use super::{
    demand::{Demand, HostPort},
    geography::Geography,
    topology::{Counts, NOWHERE},
};

/// The room that is left on a node, in numbers that are compared a million times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Thousandths of a CPU.
    pub cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Pods.
    pub pods: i64,
    /// Taken CPU with assumptions, for comparing.
    pub weighed_cpu: i64,
    /// Taken memory with assumptions, for comparing.
    pub weighed_memory: i64,
}

impl Room {
    /// Takes a pod in (1) or lets it go (-1).
    pub fn take(&mut self, demand: &Demand, sign: i64) {
        self.cpu -= sign * demand.amounts.cpu;
        self.memory -= sign * demand.amounts.memory;
        self.pods -= sign;
        self.weighed_cpu += sign * demand.weight.0;
        self.weighed_memory += sign * demand.weight.1;
    }
}

/// What is taken of a node beyond CPU and memory.
#[derive(Clone, Debug, Default)]
pub struct Goods {
    /// Ports of the node.
    pub ports: Vec<HostPort>,
    /// Other resources by name.
    pub amounts: BTreeMap<String, i64>,
}

impl Goods {
    /// Takes a pod in (1) or lets it go (-1).
    pub fn take(&mut self, demand: &Demand, sign: i64) {
        for port in &demand.host_ports {
            if sign > 0 {
                self.ports.push(port.clone());
            } else if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
        for (name, amount) in &demand.amounts.other {
            *self.amounts.entry(name.clone()).or_default() += sign * amount;
        }
    }
}

/// What is counted of a term.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Pods that it means, by place.
    pub places: Counts,
    /// The same by domain of its topology.
    pub domains: Counts,
    /// Those of them that are on their way out, by place.
    pub leaving_places: Counts,
    /// The same by domain.
    pub leaving_domains: Counts,
    /// How many it means in all.
    pub total: i64,
    /// Pods that want to be far from those that it means, by domain.
    pub guards: Counts,
    /// How many these are in all.
    pub guarding: i64,
    /// How much pods would like those that it means to be near (above zero) or far (below), by domain.
    pub pulls: Counts,
    /// How many these are in all.
    pub pulling: i64,
}

/// Pods of one controller.
#[derive(Clone, Debug, Default)]
pub struct Crowd {
    /// By place.
    pub places: Counts,
    /// By zone.
    pub zones: Counts,
}

/// What a pod counts for, by the numbers that geography gave to its terms.
#[derive(Clone, Debug, Default)]
pub struct Uses {
    /// Its controller.
    pub owner: Option<usize>,
    /// Its terms, in the order of [`super::terms::Wishes`].
    pub near: Vec<usize>,
    /// See `near`.
    pub far: Vec<usize>,
    /// See `near`.
    pub preferred: Vec<(usize, i64)>,
    /// See `near`.
    pub spreads: Vec<usize>,
}

impl Uses {
    /// The numbers of all terms.
    pub fn terms(&self) -> impl Iterator<Item = usize> {
        let preferred = self.preferred.iter().map(|(term, _)| term);
        let all = self.near.iter().chain(&self.far).chain(preferred);
        all.chain(&self.spreads).copied()
    }
}

/// How much a required affinity of a pod that is there weighs for those that it means (Kubernetes'
/// hardPodAffinityWeight).
const REQUIRED_WEIGHT: i64 = 1;

/// Something that counts.
pub trait Books {
    /// The room at a place.
    fn room(&mut self, place: usize) -> &mut Room;
    /// What else is taken there.
    fn goods(&mut self, place: usize) -> &mut Goods;
    /// What is counted of a term.
    fn tally(&mut self, term: usize) -> &mut Tally;
    /// The pods of a controller.
    fn crowd(&mut self, owner: usize) -> &mut Crowd;

    /// A pod comes to a place (1) or leaves it (-1).
    fn book(
        &mut self,
        geography: &Geography,
        place: usize,
        (demand, uses): (&Demand, &Uses),
        sign: i64,
    ) {
        self.room(place).take(demand, sign);
        if !(demand.host_ports.is_empty() && demand.amounts.other.is_empty()) {
            self.goods(place).take(demand, sign);
        }
        let here = u32::try_from(place).unwrap_or(NOWHERE);
        if let Some(owner) = uses.owner {
            let zone = geography.zones().domain(place);
            let crowd = self.crowd(owner);
            crowd.places.add(here, sign);
            if zone != NOWHERE {
                crowd.zones.add(zone, sign);
            }
        }
        geography.each_meaning(&demand.key, &demand.labels, |term| {
            let domain = geography.topology_of(term).domain(place);
            let tally = self.tally(term);
            tally.total += sign;
            tally.places.add(here, sign);
            if demand.is_terminating {
                tally.leaving_places.add(here, sign);
            }
            if domain != NOWHERE {
                tally.domains.add(domain, sign);
                if demand.is_terminating {
                    tally.leaving_domains.add(domain, sign);
                }
            }
        });
        for term in &uses.far {
            let domain = geography.topology_of(*term).domain(place);
            let tally = self.tally(*term);
            tally.guarding += sign;
            if domain != NOWHERE {
                tally.guards.add(domain, sign);
            }
        }
        let required = uses.near.iter().map(|term| (*term, REQUIRED_WEIGHT));
        for (term, weight) in required.chain(uses.preferred.iter().copied()) {
            let domain = geography.topology_of(term).domain(place);
            let tally = self.tally(term);
            tally.pulling += sign;
            if domain != NOWHERE {
                tally.pulls.add(domain, sign * weight);
            }
        }
    }
}

/// The snapshot's own counts.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The room at each place.
    pub rooms: Vec<Room>,
    /// What else is taken at each place.
    pub goods: Vec<Goods>,
    /// By term.
    pub tallies: Vec<Tally>,
    /// By controller.
    pub crowds: Vec<Crowd>,
}

/// The element of a list that grows as needed.
fn grown<T: Clone + Default>(list: &mut Vec<T>, index: usize) -> &mut T {
    if list.len() <= index {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
}

impl Books for Ledger {
    fn room(&mut self, place: usize) -> &mut Room {
        grown(&mut self.rooms, place)
    }

    fn goods(&mut self, place: usize) -> &mut Goods {
        grown(&mut self.goods, place)
    }

    fn tally(&mut self, term: usize) -> &mut Tally {
        grown(&mut self.tallies, term)
    }

    fn crowd(&mut self, owner: usize) -> &mut Crowd {
        grown(&mut self.crowds, owner)
    }
}

/// A ledger with what one round has put on top; what it does not touch is not copied, but for the rooms, which are read
/// all the time.
pub struct Draft<'a> {
    base: &'a Ledger,
    rooms: Vec<Room>,
    goods: HashMap<usize, Goods>,
    tallies: HashMap<usize, Tally>,
    crowds: HashMap<usize, Crowd>,
}

impl<'a> Draft<'a> {
    /// A draft with nothing on top yet.
    pub fn of(base: &'a Ledger) -> Self {
        Self {
            base,
            rooms: base.rooms.clone(),
            goods: HashMap::new(),
            tallies: HashMap::new(),
            crowds: HashMap::new(),
        }
    }

    /// The room at a place.
    pub fn room_at(&self, place: usize) -> Room {
        self.rooms.get(place).copied().unwrap_or_default()
    }

    /// What else is taken at a place.
    pub fn goods_at(&self, place: usize) -> Option<&Goods> {
        self.goods
            .get(&place)
            .or_else(|| self.base.goods.get(place))
    }

    /// What is counted of a term.
    pub fn tally_of(&self, term: usize) -> Option<&Tally> {
        self.tallies
            .get(&term)
            .or_else(|| self.base.tallies.get(term))
    }

    /// The pods of a controller.
    pub fn crowd_of(&self, owner: usize) -> Option<&Crowd> {
        self.crowds
            .get(&owner)
            .or_else(|| self.base.crowds.get(owner))
    }
}

fn copied<'a, T: Clone + Default>(
    on_top: &'a mut HashMap<usize, T>,
    base: &[T],
    index: usize,
) -> &'a mut T {
    on_top
        .entry(index)
        .or_insert_with(|| base.get(index).cloned().unwrap_or_default())
}

impl Books for Draft<'_> {
    fn room(&mut self, place: usize) -> &mut Room {
        grown(&mut self.rooms, place)
    }

    fn goods(&mut self, place: usize) -> &mut Goods {
        copied(&mut self.goods, &self.base.goods, place)
    }

    fn tally(&mut self, term: usize) -> &mut Tally {
        copied(&mut self.tallies, &self.base.tallies, term)
    }

    fn crowd(&mut self, owner: usize) -> &mut Crowd {
        copied(&mut self.crowds, &self.base.crowds, owner)
    }
}
