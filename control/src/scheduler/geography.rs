//! Where things are and what they are called: topologies of nodes, and a number for each term and each controller that
//! some pod names, so that pods made from one template share what is counted.

use std::collections::HashMap;

use super::{
    demand::Demand,
    ledger::Uses,
    terms::{Labels, Selector, Term},
    topology::Topology,
};
use crate::api::ObjectKey;

/// The label of nodes that says which zone they are in.
const ZONE: &str = "topology.kubernetes.io/zone";
/// So many terms and controllers that no pod names any longer are kept, as pods of a kind come and go.
const IDLE: usize = 256;

/// A term that some pod names, or named.
#[derive(Clone, Debug)]
struct Known {
    term: Term,
    topology: usize,
    users: usize,
}

/// Names by number, with how many use each.
#[derive(Clone, Debug, Default)]
struct Owners {
    numbers: HashMap<String, usize>,
    names: Vec<(String, usize)>,
    free: Vec<usize>,
}

/// Terms by a label that all pods have which they mean.
type ByLabel = HashMap<String, HashMap<String, Vec<usize>>>;

/// See the file's front page.
#[derive(Clone, Debug)]
pub struct Geography {
    topologies: Vec<Topology>,
    by_key: HashMap<String, usize>,
    numbers: HashMap<Term, usize>,
    known: Vec<Option<Known>>,
    free: Vec<usize>,
    idle: usize,
    /// By namespace, "" for terms that mean namespaces by their labels; then by label.
    by_label: HashMap<String, ByLabel>,
    /// Terms that name no such label.
    general: Vec<usize>,
    namespaces: HashMap<String, Labels>,
    owners: Owners,
}

impl Default for Geography {
    fn default() -> Self {
        Self {
            topologies: vec![Topology::new(ZONE)],
            by_key: HashMap::from([(ZONE.to_owned(), 0)]),
            numbers: HashMap::new(),
            known: Vec::new(),
            free: Vec::new(),
            idle: 0,
            by_label: HashMap::new(),
            general: Vec::new(),
            namespaces: HashMap::new(),
            owners: Owners::default(),
        }
    }
}

impl Geography {
    /// The zones.
    pub fn zones(&self) -> &Topology {
        &self.topologies[0]
    }

    /// The topology of a term.
    pub fn topology_of(&self, term: usize) -> &Topology {
        let known = self.known.get(term).and_then(Option::as_ref);
        &self.topologies[known.map_or(0, |known| known.topology)]
    }

    /// Whether every node has a label that is some term's topology.
    pub fn is_on_every_node(&self, key: &str) -> bool {
        let topology = self.by_key.get(key);
        topology.is_some_and(|topology| self.topologies[*topology].without == 0)
    }

    /// A node with these labels came to a place.
    pub fn enter(&mut self, place: usize, labels: &Labels) {
        for topology in &mut self.topologies {
            let value = labels.get(&topology.key).cloned();
            topology.enter(place, value.as_ref());
        }
    }

    /// The node at a place went, or is about to come anew.
    pub fn leave(&mut self, place: usize) {
        for topology in &mut self.topologies {
            topology.leave(place);
        }
    }

    /// Whether a term means a pod.
    pub fn means(&self, term: usize, key: &ObjectKey, labels: &Labels) -> bool {
        let known = self.known.get(term).and_then(Option::as_ref);
        known.is_some_and(|known| self.is_meant(&known.term, key, labels))
    }

    fn is_meant(&self, term: &Term, key: &ObjectKey, labels: &Labels) -> bool {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        let is_near = term.namespaces.contains(namespace) || {
            let empty = Labels::new();
            let labels = self.namespaces.get(namespace).unwrap_or(&empty);
            term.namespace_selector.matches(labels)
        };
        is_near && term.selector.matches(labels)
    }

    /// Visits every term that means a pod.
    pub fn each_meaning(&self, key: &ObjectKey, labels: &Labels, mut visit: impl FnMut(usize)) {
        let namespace = key.namespace.as_deref().unwrap_or_default();
        for place in [namespace, ""] {
            let Some(by_label) = self.by_label.get(place) else {
                continue;
            };
            for (label, value) in labels {
                let terms = by_label.get(label).and_then(|values| values.get(value));
                for term in terms.into_iter().flatten() {
                    if self.means(*term, key, labels) {
                        visit(*term);
                    }
                }
            }
        }
        for term in &self.general {
            if self.means(*term, key, labels) {
                visit(*term);
            }
        }
    }

    /// Where a term is filed: namespaces, and the label that all pods have which it means.
    fn places_of(term: &Term) -> Option<(Vec<&str>, &str, &str)> {
        let (label, value) = term.selector.surely()?;
        let namespaces = match term.namespace_selector {
            Selector::Nothing => term.namespaces.iter().map(String::as_str).collect(),
            Selector::All(_) => vec![""],
        };
        Some((namespaces, label, value))
    }

    fn file(&mut self, number: usize, term: &Term) {
        let Some((namespaces, label, value)) = Self::places_of(term) else {
            self.general.push(number);
            return;
        };
        for namespace in namespaces {
            let by_label = self.by_label.entry(namespace.to_owned()).or_default();
            let values = by_label.entry(label.to_owned()).or_default();
            values.entry(value.to_owned()).or_default().push(number);
        }
    }

    fn unfile(&mut self, number: usize, term: &Term) {
        let Some((namespaces, label, value)) = Self::places_of(term) else {
            self.general.retain(|other| *other != number);
            return;
        };
        for namespace in namespaces {
            let Some(by_label) = self.by_label.get_mut(namespace) else {
                continue;
            };
            if let Some(values) = by_label.get_mut(label) {
                if let Some(terms) = values.get_mut(value) {
                    terms.retain(|other| *other != number);
                }
                values.retain(|_, terms| !terms.is_empty());
                if values.is_empty() {
                    by_label.remove(label);
                }
            }
            if by_label.is_empty() {
                self.by_label.remove(namespace);
            }
        }
    }

    /// The numbers of what a pod names, which stay as long as it uses them; and which of its terms are new.
    pub fn number(
        &mut self,
        demand: &Demand,
        nodes: &dyn Fn(&str) -> Topology,
    ) -> (Uses, Vec<usize>) {
        let wishes = &demand.wishes;
        let mut new = Vec::new();
        let mut number = |term: &Term| {
            let (number, is_new) = self.number_of(term, nodes);
            if is_new {
                new.push(number);
            }
            number
        };
        let mut uses = Uses {
            owner: None,
            near: wishes.near.iter().map(&mut number).collect(),
            far: wishes.far.iter().map(&mut number).collect(),
            preferred: Vec::new(),
            spreads: Vec::new(),
        };
        for (term, weight) in &wishes.preferred {
            uses.preferred.push((number(term), *weight));
        }
        for spread in &wishes.spreads {
            uses.spreads.push(number(&spread.term));
        }
        uses.owner = demand
            .owner
            .as_deref()
            .map(|owner| self.owners.number(owner));
        (uses, new)
    }

    fn number_of(&mut self, term: &Term, nodes: &dyn Fn(&str) -> Topology) -> (usize, bool) {
        if let Some(number) = self.numbers.get(term).copied() {
            if let Some(known) = self.known[number].as_mut() {
                self.idle -= usize::from(known.users == 0);
                known.users += 1;
            }
            return (number, false);
        }
        let topology = if let Some(topology) = self.by_key.get(&term.topology_key) {
            *topology
        } else {
            self.topologies.push(nodes(&term.topology_key));
            let number = self.topologies.len() - 1;
            self.by_key.insert(term.topology_key.clone(), number);
            number
        };
        let number = self.free.pop().unwrap_or_else(|| {
            self.known.push(None);
            self.known.len() - 1
        });
        self.known[number] = Some(Known {
            term: term.clone(),
            topology,
            users: 1,
        });
        self.numbers.insert(term.clone(), number);
        self.file(number, term);
        (number, true)
    }

    /// A pod no longer uses these. Returns terms and controllers whose counts can go: there are none of them left.
    pub fn release(&mut self, uses: &Uses) -> (Vec<usize>, Option<usize>) {
        for term in uses.terms() {
            if let Some(known) = self.known.get_mut(term).and_then(Option::as_mut) {
                known.users -= 1;
                self.idle += usize::from(known.users == 0);
            }
        }
        let owner = uses.owner.filter(|owner| self.owners.release(*owner));
        let mut gone = Vec::new();
        if self.idle > IDLE {
            self.idle = 0;
            for number in 0..self.known.len() {
                if self.known[number]
                    .as_ref()
                    .is_some_and(|known| known.users == 0)
                    && let Some(known) = self.known[number].take()
                {
                    self.unfile(number, &known.term);
                    self.numbers.remove(&known.term);
                    self.free.push(number);
                    gone.push(number);
                }
            }
        }
        (gone, owner)
    }

    /// A namespace's labels, `None` when it went. Returns the terms whose pods have to be counted anew.
    pub fn set_namespace(&mut self, name: &str, labels: Option<&Labels>) -> Vec<usize> {
        let same = match labels {
            Some(labels) if self.namespaces.get(name) == Some(labels) => true,
            Some(labels) => {
                self.namespaces.insert(name.to_owned(), labels.clone());
                false
            }
            None => self.namespaces.remove(name).is_none(),
        };
        if same {
            return Vec::new();
        }
        let known = self.known.iter().enumerate();
        known
            .filter(|(_, known)| {
                known
                    .as_ref()
                    .is_some_and(|known| known.term.namespace_selector != Selector::Nothing)
            })
            .map(|(number, _)| number)
            .collect()
    }
}

impl Owners {
    fn number(&mut self, owner: &str) -> usize {
        if let Some(number) = self.numbers.get(owner).copied() {
            self.names[number].1 += 1;
            return number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.names.push((String::new(), 0));
            self.names.len() - 1
        });
        self.names[number] = (owner.to_owned(), 1);
        self.numbers.insert(owner.to_owned(), number);
        number
    }

    /// Whether nobody uses it any longer.
    fn release(&mut self, number: usize) -> bool {
        let Some((name, users)) = self.names.get_mut(number) else {
            return false;
        };
        *users -= 1;
        if *users > 0 {
            return false;
        }
        self.numbers.remove(name);
        self.free.push(number);
        true
    }
}
