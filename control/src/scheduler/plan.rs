//! The scheduler's decisions: synchronous, seeded, no IO. The same snapshot, policy and seed give the same plan.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use super::{
    demand::{Demand, HostPort},
    filter,
    snapshot::{NodeState, Room, Snapshot},
};

/// What the scheduler goes by.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Decides between nodes that are equally good.
    pub seed: u64,
    /// The most pods planned in one round.
    pub batch: usize,
    /// Pods that name this scheduler (or none) are planned.
    pub name: String,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            seed: 0,
            batch: 256,
            name: "default-scheduler".to_owned(),
        }
    }
}

/// Why a pod fits nowhere: how many nodes there are, and how many of them refuse for each reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfit {
    /// All nodes.
    pub nodes: usize,
    /// Nodes by reason; one may refuse for several.
    pub reasons: BTreeMap<String, usize>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<_> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        write!(
            f,
            "0/{} nodes are available: {}.",
            self.nodes,
            reasons.join(", ")
        )
    }
}

/// What is to be done about the pods that were looked at.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods with the nodes that they go to, in turn.
    pub placements: Vec<(Arc<Demand>, String)>,
    /// Pods that fit nowhere.
    pub misfits: Vec<(Arc<Demand>, Misfit)>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (demand, node) in &self.placements {
            writeln!(f, "{} -> {node}", demand.key.name)?;
        }
        for (demand, misfit) in &self.misfits {
            writeln!(f, "{} -> {misfit}", demand.key.name)?;
        }
        Ok(())
    }
}

/// Plans the next pods in turn.
pub fn plan(snapshot: &Snapshot, policy: &Policy) -> Plan {
    let mut round = Round {
        snapshot,
        policy,
        rooms: snapshot.rooms.clone(),
        ports: HashMap::new(),
        other: HashMap::new(),
        owners: HashMap::new(),
        next: usize::try_from(policy.seed % (snapshot.nodes.len().max(1) as u64)).unwrap_or(0),
        candidates: Vec::new(),
    };
    let mut plan = Plan::default();
    for demand in snapshot.pending().take(policy.batch) {
        match round.choose(demand) {
            Ok(place) => {
                round.take(place, demand);
                if let Some(node) = &snapshot.nodes[place] {
                    plan.placements
                        .push((Arc::clone(demand), node.name.clone()));
                }
            }
            Err(misfit) => plan.misfits.push((Arc::clone(demand), misfit)),
        }
    }
    plan
}

/// The snapshot with what this round has decided so far.
struct Round<'a> {
    snapshot: &'a Snapshot,
    policy: &'a Policy,
    rooms: Vec<Room>,
    ports: HashMap<usize, Vec<HostPort>>,
    other: HashMap<(usize, String), i64>,
    owners: HashMap<&'a str, HashMap<usize, u32>>,
    /// Where the search goes on, so that all nodes get their turn when not all are looked at.
    next: usize,
    candidates: Vec<usize>,
}

impl<'a> Round<'a> {
    fn choose(&mut self, demand: &'a Demand) -> Result<usize, Misfit> {
        self.find_candidates(demand)?;
        Ok(self.best(demand))
    }

    /// Collects nodes that will do: all of them in a small cluster, enough of them in a large one.
    fn find_candidates(&mut self, demand: &Demand) -> Result<(), Misfit> {
        let nodes = &self.snapshot.nodes;
        let enough = enough(nodes.len());
        let mut misfit = Misfit::default();
        self.candidates.clear();
        for step in 0..nodes.len() {
            let place = (self.next + step) % nodes.len();
            let Some(node) = &nodes[place] else { continue };
            misfit.nodes += 1;
            if let Some(reason) = filter::refusal(demand, node) {
                *misfit.reasons.entry(reason).or_default() += 1;
            } else if self.fits(demand, place, node, &mut misfit) {
                self.candidates.push(place);
                if self.candidates.len() >= enough {
                    self.next = (place + 1) % nodes.len();
                    return Ok(());
                }
            }
        }
        if self.candidates.is_empty() {
            Err(misfit)
        } else {
            Ok(())
        }
    }

    /// Whether there is room; every reason why not is counted.
    fn fits(&self, demand: &Demand, place: usize, node: &NodeState, misfit: &mut Misfit) -> bool {
        let mut refuse = |reason: String| *misfit.reasons.entry(reason).or_default() += 1;
        let taken = self.ports.get(&place);
        let clashes = demand.host_ports.iter().any(|port| {
            let taken = taken.into_iter().flatten();
            node.host_ports
                .iter()
                .chain(taken)
                .any(|taken| taken.clashes_with(port))
        });
        if clashes {
            refuse("node(s) didn't have free ports for the requested pod ports".to_owned());
            return false;
        }
        let room = &self.rooms[place];
        let amounts = &demand.amounts;
        let mut fits = true;
        for (short, reason) in [
            (room.pods < 1, "Too many pods"),
            (
                amounts.cpu > 0 && amounts.cpu > room.cpu,
                "Insufficient cpu",
            ),
            (
                amounts.memory > 0 && amounts.memory > room.memory,
                "Insufficient memory",
            ),
        ] {
            if short {
                refuse(reason.to_owned());
                fits = false;
            }
        }
        for (name, amount) in &amounts.other {
            let offered = node.offered.other.get(name).copied().unwrap_or(0);
            let taken = node.other_taken.get(name).copied().unwrap_or(0);
            let planned = self.other.get(&(place, name.clone())).copied().unwrap_or(0);
            if *amount > offered - taken - planned {
                refuse(format!("Insufficient {name}"));
                fits = false;
            }
        }
        fits
    }

    fn best(&self, demand: &Demand) -> usize {
        if let [only] = self.candidates.as_slice() {
            return *only;
        }
        let crowds = Crowds::of(self, demand);
        let preferences = Preferences::of(self, demand);
        let salt = self.policy.seed ^ u64::from(crate::controllers::meta::hash(&demand.uid));
        self.candidates
            .iter()
            .enumerate()
            .max_by_key(|(index, place)| {
                let score = 2 * crowds.score(*index)
                    + preferences.score(*index)
                    + self.room_score(demand, **place);
                (score, mixed(salt, **place as u64))
            })
            .map_or(0, |(_, place)| *place)
    }

    /// Prefers nodes with much room (0 to 100), evenly used (0 to 100).
    fn room_score(&self, demand: &Demand, place: usize) -> i64 {
        let Some(node) = &self.snapshot.nodes[place] else {
            return 0;
        };
        let room = &self.rooms[place];
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

    fn crowd(&self, owner: &str, place: usize) -> u32 {
        let of = |owners: Option<&HashMap<usize, u32>>| {
            owners
                .and_then(|places| places.get(&place))
                .copied()
                .unwrap_or(0)
        };
        of(self.snapshot.owners.get(owner)) + of(self.owners.get(owner))
    }

    fn take(&mut self, place: usize, demand: &'a Demand) {
        self.rooms[place].take(demand);
        if !demand.host_ports.is_empty() {
            self.ports
                .entry(place)
                .or_default()
                .extend(demand.host_ports.iter().cloned());
        }
        for (name, amount) in &demand.amounts.other {
            *self.other.entry((place, name.clone())).or_default() += amount;
        }
        if let Some(owner) = &demand.owner {
            *self
                .owners
                .entry(owner)
                .or_default()
                .entry(place)
                .or_default() += 1;
        }
    }
}

/// How many pods of the same owner stand on each candidate and in its zone.
struct Crowds {
    nodes: Vec<u32>,
    zones: Vec<u32>,
    most: (u32, u32),
}

impl Crowds {
    fn of(round: &Round<'_>, demand: &Demand) -> Self {
        let mut crowds = Self {
            nodes: Vec::new(),
            zones: Vec::new(),
            most: (0, 0),
        };
        let Some(owner) = &demand.owner else {
            return crowds;
        };
        let zone = |place: usize| {
            let node = round.snapshot.nodes.get(place).and_then(Option::as_ref);
            node.and_then(|node| node.zone.as_deref())
                .unwrap_or_default()
        };
        let mut by_zone: HashMap<&str, u32> = HashMap::new();
        let sources = [
            round.snapshot.owners.get(owner),
            round.owners.get(owner.as_str()),
        ];
        for (place, count) in sources.into_iter().flatten().flatten() {
            *by_zone.entry(zone(*place)).or_default() += count;
        }
        for place in &round.candidates {
            crowds.nodes.push(round.crowd(owner, *place));
            crowds
                .zones
                .push(by_zone.get(zone(*place)).copied().unwrap_or(0));
        }
        let most = |counts: &[u32]| counts.iter().copied().max().unwrap_or(0);
        crowds.most = (most(&crowds.nodes), most(&crowds.zones));
        crowds
    }

    /// 100 where there is none of them, 0 where there are most; the node counts twice as much as the zone.
    fn score(&self, index: usize) -> i64 {
        let of = |counts: &[u32], most: u32| match counts.get(index) {
            Some(count) if most > 0 => i64::from(100 * (most - count) / most),
            _ => 100,
        };
        (2 * of(&self.nodes, self.most.0) + of(&self.zones, self.most.1)) / 3
    }
}

/// How well each candidate meets what the pod would like: preferred affinity, no taints that ask it to stay away.
struct Preferences {
    affinity: Vec<i64>,
    taints: Vec<i64>,
    most: (i64, i64),
}

impl Preferences {
    fn of(round: &Round<'_>, demand: &Demand) -> Self {
        let nodes = || {
            let places = round.candidates.iter();
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

/// How many nodes that will do are enough to choose from: all in a small cluster, 5% to 50% in a large one.
fn enough(nodes: usize) -> usize {
    if nodes <= 100 {
        return nodes.max(1);
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(100)
}

/// A number that looks random but follows from its arguments.
fn mixed(salt: u64, number: u64) -> u64 {
    let mut hash = salt ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}
