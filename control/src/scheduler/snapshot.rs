//! The cluster as the scheduler sees it, kept up to date change by change.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Node, policy::v1::PodDisruptionBudget};

use super::{
    budgets::Budget,
    demand::Demand,
    geography::Geography,
    ledger::{Books as _, Crowd, Ledger, Room, Tally, Uses},
    nodes::NodeState,
    terms::Labels,
    topology::{NOWHERE, Topology},
    volumes::Volumes,
};
use crate::{
    api::ObjectKey,
    controllers::{cache::key_of, meta},
};

/// A pod with what it counts for.
#[derive(Debug)]
pub struct Entry {
    /// What it asks.
    pub demand: Arc<Demand>,
    /// What it counts for.
    pub uses: Uses,
    /// The node that it has, or is about to have; "" while it waits.
    node: String,
}

/// Who goes first: higher priority, then older, then in the order of arrival.
type Turn = (std::cmp::Reverse<i32>, Option<jiff::Timestamp>, u64);

/// See the file's front page.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The nodes, in the order in which they came; places of nodes that went are empty.
    pub nodes: Vec<Option<NodeState>>,
    /// What is counted.
    pub ledger: Ledger,
    /// What counts are about.
    pub geography: Geography,
    /// The pods at each place.
    pub residents: Vec<Vec<Arc<Entry>>>,
    /// How many pods of each priority have a node.
    pub priorities: BTreeMap<i32, usize>,
    /// What may be disrupted.
    pub budgets: HashMap<ObjectKey, Budget>,
    /// Pods that others made way for, by the place that they wait for.
    pub nominated: HashMap<usize, Vec<Arc<Demand>>>,
    /// Persistent volumes.
    pub volumes: Volumes,
    places: HashMap<String, usize>,
    free_places: Vec<usize>,
    placed: HashMap<ObjectKey, Arc<Entry>>,
    /// Pods whose nodes are not known yet, by node.
    homeless: HashMap<String, Vec<Arc<Entry>>>,
    pending: BTreeMap<Turn, Arc<Entry>>,
    turns: HashMap<ObjectKey, Turn>,
    arrivals: u64,
}

impl Snapshot {
    /// A node that came or changed; true when pods that did not fit might fit now.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let state = NodeState::of(node);
        if let Some(place) = self.places.get(&state.name).copied() {
            return self.change_node(place, state);
        }
        let place = self.free_places.pop().unwrap_or(self.nodes.len());
        if place == self.nodes.len() {
            self.nodes.push(None);
            self.residents.push(Vec::new());
        }
        *self.ledger.room(place) = Room {
            cpu: state.offered.cpu,
            memory: state.offered.memory,
            pods: state.offered_pods,
            ..Room::default()
        };
        *self.ledger.goods(place) = super::ledger::Goods::default();
        self.places.insert(state.name.clone(), place);
        self.geography.enter(place, &state.labels);
        let here = self.homeless.remove(&state.name).unwrap_or_default();
        self.nodes[place] = Some(state);
        for entry in here {
            self.settle(place, entry);
        }
        true
    }

    fn change_node(&mut self, place: usize, state: NodeState) -> bool {
        let Some(old) = self.nodes[place].as_ref() else {
            return false;
        };
        if old.offers_the_same(&state) {
            return false;
        }
        let more = Room {
            cpu: state.offered.cpu - old.offered.cpu,
            memory: state.offered.memory - old.offered.memory,
            pods: state.offered_pods - old.offered_pods,
            ..Room::default()
        };
        let has_moved = old.labels != state.labels;
        // Who stands near whom changes with the labels.
        let residents = if has_moved {
            let residents = std::mem::take(&mut self.residents[place]);
            for entry in &residents {
                self.book(place, entry, -1);
            }
            self.geography.leave(place);
            self.geography.enter(place, &state.labels);
            residents
        } else {
            Vec::new()
        };
        let room = self.ledger.room(place);
        room.cpu += more.cpu;
        room.memory += more.memory;
        room.pods += more.pods;
        self.nodes[place] = Some(state);
        for entry in residents {
            self.book(place, &entry, 1);
            self.residents[place].push(entry);
        }
        true
    }

    /// A node that went.
    pub fn remove_node(&mut self, name: &str) {
        let Some(place) = self.places.remove(name) else {
            return;
        };
        for entry in std::mem::take(&mut self.residents[place]) {
            self.book(place, &entry, -1);
            let homeless = self.homeless.entry(name.to_owned()).or_default();
            homeless.push(entry);
        }
        self.geography.leave(place);
        self.nodes[place] = None;
        *self.ledger.room(place) = Room::default();
        self.nominated.remove(&place);
        self.free_places.push(place);
    }

    /// The place of a node.
    pub fn place_of(&self, node: &str) -> Option<usize> {
        self.places.get(node).copied()
    }

    fn book(&mut self, place: usize, entry: &Entry, sign: i64) {
        let what = (entry.demand.as_ref(), &entry.uses);
        self.ledger.book(&self.geography, place, what, sign);
    }

    fn settle(&mut self, place: usize, entry: Arc<Entry>) {
        self.book(place, &entry, 1);
        self.residents[place].push(entry);
    }

    /// Reads what a pod names, and counts what nobody named before.
    fn entry(&mut self, demand: &Arc<Demand>, node: &str) -> Arc<Entry> {
        let nodes = &self.nodes;
        let survey = |key: &str| {
            let mut topology = Topology::new(key);
            for (place, node) in nodes.iter().enumerate() {
                if let Some(node) = node {
                    topology.enter(place, node.labels.get(key));
                }
            }
            topology
        };
        let (uses, new) = self.geography.number(demand, &survey);
        for term in new {
            *self.ledger.tally(term) = Tally::default();
            self.count(term);
        }
        Arc::new(Entry {
            demand: Arc::clone(demand),
            uses,
            node: node.to_owned(),
        })
    }

    /// Counts the pods that a term means, from nothing.
    fn count(&mut self, term: usize) {
        let tally = self.ledger.tally(term);
        let (guards, pulls) = (
            std::mem::take(&mut tally.guards),
            std::mem::take(&mut tally.pulls),
        );
        let mut counted = Tally {
            guards,
            pulls,
            guarding: tally.guarding,
            pulling: tally.pulling,
            ..Tally::default()
        };
        for (place, residents) in self.residents.iter().enumerate() {
            let here = u32::try_from(place).unwrap_or(NOWHERE);
            let domain = self.geography.topology_of(term).domain(place);
            for entry in residents {
                let demand = &entry.demand;
                if !self.geography.means(term, &demand.key, &demand.labels) {
                    continue;
                }
                let leaving = i64::from(demand.is_terminating);
                counted.total += 1;
                counted.places.add(here, 1);
                counted.leaving_places.add(here, leaving);
                if domain != NOWHERE {
                    counted.domains.add(domain, 1);
                    counted.leaving_domains.add(domain, leaving);
                }
            }
        }
        *self.ledger.tally(term) = counted;
    }

    fn release(&mut self, entry: &Entry) {
        let (terms, owner) = self.geography.release(&entry.uses);
        for term in terms {
            *self.ledger.tally(term) = Tally::default();
        }
        if let Some(owner) = owner {
            *self.ledger.crowd(owner) = Crowd::default();
        }
    }

    /// A pod that waits for a node.
    pub fn add_pending(&mut self, demand: &Arc<Demand>) {
        if self.turns.contains_key(&demand.key) || self.is_placed(demand) {
            return;
        }
        self.arrivals += 1;
        let turn = (
            std::cmp::Reverse(demand.priority),
            demand.created,
            self.arrivals,
        );
        self.turns.insert(demand.key.clone(), turn);
        let entry = self.entry(demand, "");
        self.pending.insert(turn, entry);
    }

    /// A pod that no longer waits.
    pub fn remove_pending(&mut self, key: &ObjectKey) {
        if let Some(turn) = self.turns.remove(key)
            && let Some(entry) = self.pending.remove(&turn)
        {
            self.release(&entry);
        }
    }

    /// The pods that wait, in turn.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.pending.values()
    }

    /// Whether this very pod (not one that had its name) has a node.
    pub fn is_placed(&self, demand: &Demand) -> bool {
        self.placed
            .get(&demand.key)
            .is_some_and(|placed| placed.demand.uid == demand.uid)
    }

    /// A pod that has a node, or was just given one. True when what it was counted for before may help others.
    pub fn place(&mut self, demand: &Arc<Demand>, node: &str) -> bool {
        let mut has_changed = false;
        if let Some(placed) = self.placed.get(&demand.key) {
            if placed.node == node && placed.demand.counts_as(demand) {
                self.remove_pending(&demand.key);
                return false;
            }
            has_changed = placed.node == node;
        }
        // Numbered before the old entry lets go of the same terms, which then need no new count.
        let entry = self.entry(demand, node);
        self.remove_pending(&demand.key);
        self.unplace(&demand.key);
        self.remove_nomination(&demand.key);
        *self.priorities.entry(demand.priority).or_default() += 1;
        self.placed.insert(demand.key.clone(), Arc::clone(&entry));
        if let Some(place) = self.place_of(node) {
            self.settle(place, entry);
        } else {
            let homeless = self.homeless.entry(node.to_owned()).or_default();
            homeless.push(entry);
        }
        has_changed
    }

    /// A pod that left its node; true when it had one.
    pub fn unplace(&mut self, key: &ObjectKey) -> bool {
        let Some(entry) = self.placed.remove(key) else {
            return false;
        };
        if let Some(count) = self.priorities.get_mut(&entry.demand.priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&entry.demand.priority);
            }
        }
        let is_it = |other: &Arc<Entry>| Arc::ptr_eq(other, &entry);
        match self.place_of(&entry.node) {
            Some(place) => {
                if let Some(index) = self.residents[place].iter().position(is_it) {
                    self.residents[place].swap_remove(index);
                    self.book(place, &entry, -1);
                }
            }
            None => {
                if let Some(homeless) = self.homeless.get_mut(&entry.node) {
                    homeless.retain(|other| !is_it(other));
                    if homeless.is_empty() {
                        self.homeless.remove(&entry.node);
                    }
                }
            }
        }
        self.release(&entry);
        true
    }

    /// Others make way, or made way, for a pod on a node: its room there is not for pods that matter less.
    pub fn nominate(&mut self, demand: &Arc<Demand>, node: &str) {
        self.remove_nomination(&demand.key);
        if let Some(place) = self.place_of(node) {
            let nominated = self.nominated.entry(place).or_default();
            nominated.push(Arc::clone(demand));
        }
    }

    /// A pod no longer waits for a certain node.
    pub fn remove_nomination(&mut self, key: &ObjectKey) {
        if self.nominated.is_empty() {
            return;
        }
        self.nominated.retain(|_, demands| {
            demands.retain(|demand| demand.key != *key);
            !demands.is_empty()
        });
    }

    /// The place that a pod is nominated for.
    pub fn nomination(&self, key: &ObjectKey) -> Option<usize> {
        let mut nominated = self.nominated.iter();
        let found = nominated.find(|(_, demands)| demands.iter().any(|demand| demand.key == *key));
        found.map(|(place, _)| *place)
    }

    /// A namespace that came or changed its labels; `None`: it went.
    pub fn set_namespace(&mut self, name: &str, labels: Option<&Labels>) {
        for term in self.geography.set_namespace(name, labels) {
            self.count(term);
        }
    }

    /// A disruption budget that came or changed.
    pub fn set_budget(&mut self, budget: &PodDisruptionBudget) {
        let key = key_of(&budget.metadata);
        let namespace = meta::namespace(&budget.metadata);
        self.budgets.insert(key, Budget::of(budget, namespace));
    }

    /// A disruption budget that went.
    pub fn remove_budget(&mut self, key: &ObjectKey) {
        self.budgets.remove(key);
    }
}
