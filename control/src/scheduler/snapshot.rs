//! The cluster as the scheduler sees it, kept up to date change by change.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Taint};

use super::demand::{Amounts, Demand, HostPort, offer};
use crate::{api::ObjectKey, controllers::meta};

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
    /// Takes a pod in.
    pub fn take(&mut self, demand: &Demand) {
        self.cpu -= demand.amounts.cpu;
        self.memory -= demand.amounts.memory;
        self.pods -= 1;
        self.weighed_cpu += demand.weight.0;
        self.weighed_memory += demand.weight.1;
    }

    fn give_back(&mut self, demand: &Demand) {
        self.cpu += demand.amounts.cpu;
        self.memory += demand.amounts.memory;
        self.pods += 1;
        self.weighed_cpu -= demand.weight.0;
        self.weighed_memory -= demand.weight.1;
    }
}

/// A node.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// metadata.name.
    pub name: String,
    /// metadata.labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints, and those that its condition amounts to.
    pub taints: Vec<Taint>,
    /// Whether someone cordoned it.
    pub unschedulable: bool,
    /// Which zone it is in.
    pub zone: Option<String>,
    /// What it offers.
    pub offered: Amounts,
    /// How many pods it offers to run.
    pub offered_pods: i64,
    /// What is taken of the rest.
    pub other_taken: BTreeMap<String, i64>,
    /// Its ports that are taken.
    pub host_ports: Vec<HostPort>,
}

impl NodeState {
    /// A node with nothing on it yet.
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let allocatable =
            status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let (offered, offered_pods) = offer(allocatable);
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let spec = node.spec.as_ref();
        Self {
            name: meta::name(&node.metadata).to_owned(),
            zone: labels.get("topology.kubernetes.io/zone").cloned(),
            labels,
            taints: taints(node),
            unschedulable: spec.and_then(|spec| spec.unschedulable) == Some(true),
            offered,
            offered_pods,
            other_taken: BTreeMap::new(),
            host_ports: Vec::new(),
        }
    }

    /// Whether both are the same to the scheduler.
    fn offers_the_same(&self, other: &Self) -> bool {
        self.labels == other.labels
            && self.taints == other.taints
            && self.unschedulable == other.unschedulable
            && self.offered == other.offered
            && self.offered_pods == other.offered_pods
    }
}

/// A node's taints. One that is not ready counts as tainted even before a controller has written that down.
fn taints(node: &Node) -> Vec<Taint> {
    let mut taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let ready = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == "Ready"));
    let key = match ready.map(|ready| ready.status.as_str()) {
        Some("True") => return taints,
        Some("Unknown") => "node.kubernetes.io/unreachable",
        _ => "node.kubernetes.io/not-ready",
    };
    if !taints.iter().any(|taint| taint.key == key) {
        taints.push(Taint {
            key: key.to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        });
    }
    taints
}

/// A pod that has a node, or is about to.
#[derive(Clone, Debug)]
struct Placed {
    demand: Arc<Demand>,
    node: String,
}

/// Who goes first: higher priority, then older, then in the order of arrival.
type Turn = (std::cmp::Reverse<i32>, Option<jiff::Timestamp>, u64);

/// See the file's front page.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The nodes, in the order in which they came; places of nodes that went are empty.
    pub nodes: Vec<Option<NodeState>>,
    /// The room on each.
    pub rooms: Vec<Room>,
    places: HashMap<String, usize>,
    placed: HashMap<ObjectKey, Placed>,
    /// How many pods of each owner stand at each place.
    pub owners: HashMap<String, HashMap<usize, u32>>,
    pending: BTreeMap<Turn, Arc<Demand>>,
    turns: HashMap<ObjectKey, Turn>,
    arrivals: u64,
}

impl Snapshot {
    /// A node that came or changed; true when pods that did not fit might fit now.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let state = NodeState::of(node);
        if let Some(place) = self.places.get(&state.name).copied() {
            let Some(old) = self.nodes[place].as_mut() else {
                return false;
            };
            if old.offers_the_same(&state) {
                return false;
            }
            let (host_ports, other_taken) = (
                std::mem::take(&mut old.host_ports),
                std::mem::take(&mut old.other_taken),
            );
            let room = &mut self.rooms[place];
            room.cpu += state.offered.cpu - old.offered.cpu;
            room.memory += state.offered.memory - old.offered.memory;
            room.pods += state.offered_pods - old.offered_pods;
            *old = NodeState {
                other_taken,
                host_ports,
                ..state
            };
            return true;
        }
        let place = self
            .nodes
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.nodes.len());
        let room = Room {
            cpu: state.offered.cpu,
            memory: state.offered.memory,
            pods: state.offered_pods,
            ..Room::default()
        };
        self.places.insert(state.name.clone(), place);
        let name = state.name.clone();
        if place == self.nodes.len() {
            self.nodes.push(Some(state));
            self.rooms.push(room);
        } else {
            self.nodes[place] = Some(state);
            self.rooms[place] = room;
        }
        // Pods may be known before their node is.
        let here: Vec<_> = self
            .placed
            .values()
            .filter(|placed| placed.node == name)
            .map(|placed| Arc::clone(&placed.demand))
            .collect();
        for demand in here {
            self.take(place, &demand);
        }
        true
    }

    /// A node that went.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(place) = self.places.remove(name) {
            self.nodes[place] = None;
            self.rooms[place] = Room::default();
            for places in self.owners.values_mut() {
                places.remove(&place);
            }
        }
    }

    /// A pod that waits for a node.
    pub fn add_pending(&mut self, demand: Arc<Demand>) {
        if self.turns.contains_key(&demand.key) || self.is_placed(&demand) {
            return;
        }
        self.arrivals += 1;
        let turn = (
            std::cmp::Reverse(demand.priority),
            demand.created,
            self.arrivals,
        );
        self.turns.insert(demand.key.clone(), turn);
        self.pending.insert(turn, demand);
    }

    /// A pod that no longer waits.
    pub fn remove_pending(&mut self, key: &ObjectKey) {
        if let Some(turn) = self.turns.remove(key) {
            self.pending.remove(&turn);
        }
    }

    /// The pods that wait, in turn.
    pub fn pending(&self) -> impl Iterator<Item = &Arc<Demand>> {
        self.pending.values()
    }

    /// Whether this very pod (not one that had its name) has a node.
    pub fn is_placed(&self, demand: &Demand) -> bool {
        self.placed
            .get(&demand.key)
            .is_some_and(|placed| placed.demand.uid == demand.uid)
    }

    /// A pod that has a node, or was just given one.
    pub fn place(&mut self, demand: &Arc<Demand>, node: &str) {
        self.remove_pending(&demand.key);
        if let Some(placed) = self.placed.get(&demand.key) {
            if placed.node == node && placed.demand.uid == demand.uid {
                return;
            }
            self.unplace(&demand.key);
        }
        if let Some(place) = self.places.get(node).copied() {
            self.take(place, demand);
        }
        let placed = Placed {
            demand: Arc::clone(demand),
            node: node.to_owned(),
        };
        self.placed.insert(demand.key.clone(), placed);
    }

    /// A pod that left its node; true when it had one.
    pub fn unplace(&mut self, key: &ObjectKey) -> bool {
        let Some(Placed { demand, node }) = self.placed.remove(key) else {
            return false;
        };
        let Some(place) = self.places.get(&node).copied() else {
            return true;
        };
        self.rooms[place].give_back(&demand);
        if let Some(state) = self.nodes[place].as_mut() {
            for port in &demand.host_ports {
                if let Some(index) = state.host_ports.iter().position(|taken| taken == port) {
                    state.host_ports.swap_remove(index);
                }
            }
            for (name, amount) in &demand.amounts.other {
                if let Some(taken) = state.other_taken.get_mut(name) {
                    *taken -= amount;
                }
            }
        }
        if let Some(owner) = &demand.owner
            && let Some(places) = self.owners.get_mut(owner)
        {
            if let Some(count) = places.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    places.remove(&place);
                }
            }
            if places.is_empty() {
                self.owners.remove(owner);
            }
        }
        true
    }

    fn take(&mut self, place: usize, demand: &Demand) {
        self.rooms[place].take(demand);
        if let Some(state) = self.nodes[place].as_mut() {
            state.host_ports.extend(demand.host_ports.iter().cloned());
            for (name, amount) in &demand.amounts.other {
                *state.other_taken.entry(name.clone()).or_default() += amount;
            }
        }
        if let Some(owner) = &demand.owner {
            let places = self.owners.entry(owner.clone()).or_default();
            *places.entry(place).or_default() += 1;
        }
    }
}
