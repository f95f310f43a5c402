//! One round of planning: the snapshot with what the round has decided so far.

use std::{borrow::Cow, collections::HashSet, sync::Arc};

use super::{
    demand::Demand,
    filter::{self, Refusal},
    ledger::{Books as _, Draft, Room},
    nodes::NodeState,
    plan::{Policy, Refusals},
    score,
    snapshot::{Entry, Snapshot},
    standing::Standing,
    volumes::{Choice, Needs},
};

const NO_PORTS: &str = "node(s) didn't have free ports for the requested pod ports";

/// See the file's front page.
pub struct Round<'a> {
    /// What the round began with.
    pub snapshot: &'a Snapshot,
    /// What it goes by.
    pub policy: &'a Policy,
    /// What is counted by now.
    pub draft: Draft<'a>,
    /// Where the search goes on, so that all nodes get their turn when not all are looked at.
    next: usize,
    /// Pods that this round has planned preemptions for, with the places that they wait for.
    pub nominated: Vec<(usize, Arc<Demand>)>,
    /// Pods that this round has others make way for.
    pub doomed: Vec<Arc<Entry>>,
    /// Volumes that this round has given away, by name.
    given: HashSet<String>,
}

/// A pod, how what it asks about other pods stands, and what its claims need.
pub type Asks<'a> = (&'a Demand, &'a Standing<'a>, &'a Needs);

/// What a look at the nodes has come to.
pub enum Survey {
    /// The best place.
    Found(usize),
    /// None will do.
    Refused {
        /// Why.
        refusals: Refusals,
        /// Places that might do if pods left them.
        helpable: Vec<usize>,
    },
}

impl<'a> Round<'a> {
    /// A round that has decided nothing yet.
    pub fn of(snapshot: &'a Snapshot, policy: &'a Policy) -> Self {
        let nodes = snapshot.nodes.len().max(1) as u64;
        Self {
            snapshot,
            policy,
            draft: Draft::of(&snapshot.ledger),
            next: usize::try_from(policy.seed % nodes).unwrap_or(0),
            nominated: Vec::new(),
            doomed: Vec::new(),
            given: HashSet::new(),
        }
    }

    /// Looks for the best place for a pod: among all of a small cluster's nodes, among enough of a large one's.
    pub fn survey(&mut self, entry: &Entry) -> Survey {
        let needs = match self.needs(&entry.demand) {
            Ok(needs) => needs,
            Err(why) => return self.refused_everywhere(why),
        };
        let what = (entry.demand.as_ref(), &entry.uses);
        let standing = Standing::of(self.snapshot, &self.draft, what);
        let asks = (&*entry.demand, &standing, &needs);
        if let Some(place) = self.awaited(asks) {
            return Survey::Found(place);
        }
        let nodes = &self.snapshot.nodes;
        let enough = enough(nodes.len());
        let mut candidates = Vec::with_capacity(enough);
        let (mut refusals, mut helpable) = (Refusals::default(), Vec::new());
        let mut next = self.next;
        for step in 0..nodes.len() {
            let place = (self.next + step) % nodes.len();
            let Some(node) = &nodes[place] else { continue };
            refusals.nodes += 1;
            let mut is_final = false;
            let fits = self.check(asks, (place, node), &mut |refusal| {
                is_final |= refusal.is_final;
                refusals.add(refusal.reason, 1);
            });
            if fits {
                candidates.push(place);
                if candidates.len() >= enough {
                    next = (place + 1) % nodes.len();
                    break;
                }
            } else if !is_final {
                helpable.push(place);
            }
        }
        if candidates.is_empty() {
            return Survey::Refused { refusals, helpable };
        }
        let best = score::best(self, entry, &standing, &candidates);
        self.next = next;
        Survey::Found(best)
    }

    /// The place where others made way for a pod, if it will do now.
    fn awaited(&self, asks: Asks<'_>) -> Option<usize> {
        let demand = asks.0;
        let place = self
            .snapshot
            .nomination(&demand.key)
            .or_else(|| self.snapshot.place_of(demand.nominated.as_deref()?))?;
        let node = self.snapshot.nodes.get(place)?.as_ref()?;
        let fits = self.check(asks, (place, node), &mut |_| {});
        fits.then_some(place)
    }

    /// What a pod's claims ask for; or why it can't be placed anywhere.
    pub fn needs(&self, demand: &Demand) -> Result<Needs, Cow<'static, str>> {
        if demand.claims.is_empty() {
            return Ok(Needs::default());
        }
        self.snapshot.volumes.needs(demand)
    }

    fn refused_everywhere(&self, why: Cow<'static, str>) -> Survey {
        let refusals = Refusals {
            nodes: self.snapshot.nodes.iter().flatten().count(),
            whole: Some(why),
            ..Refusals::default()
        };
        Survey::Refused {
            refusals,
            helpable: Vec::new(),
        }
    }

    /// The volumes that a pod's unbound claims get at the place that was found for it, which then are nobody else's.
    pub fn give_volumes(&mut self, demand: &Demand, place: usize) -> Vec<Choice> {
        let (Ok(needs), Some(node)) = (self.needs(demand), &self.snapshot.nodes[place]) else {
            return Vec::new();
        };
        let volumes = &self.snapshot.volumes;
        let chosen = volumes
            .choose(&needs, node, &self.given)
            .unwrap_or_default();
        let names = chosen
            .iter()
            .filter_map(|(_, volume)| volume.metadata.name.clone());
        self.given.extend(names);
        chosen
    }

    /// Whether a node will do; every reason why not is told.
    pub fn check(
        &self,
        (demand, standing, needs): Asks<'_>,
        (place, node): (usize, &NodeState),
        refuse: &mut dyn FnMut(Refusal),
    ) -> bool {
        if let Some(refusal) = filter::refusal(demand, node) {
            refuse(refusal);
            return false;
        }
        if !self.fits(demand, place, node, refuse) {
            return false;
        }
        if !demand.claims.is_empty()
            && let Err(refusal) = self.snapshot.volumes.choose(needs, node, &self.given)
        {
            refuse(refusal);
            return false;
        }
        if let Some(refusal) = standing.refusal(place) {
            refuse(refusal);
            return false;
        }
        true
    }

    /// Pods that wait for a place where others make way for them, and matter at least as much as this one.
    fn awaiting(&self, demand: &Demand, place: usize) -> impl Iterator<Item = &Arc<Demand>> {
        let earlier = self.snapshot.nominated.get(&place).into_iter().flatten();
        let now = self.nominated.iter();
        let now = now.filter(move |(at, _)| *at == place);
        let (key, priority) = (demand.key.clone(), demand.priority);
        earlier
            .chain(now.map(|(_, waiting)| waiting))
            .filter(move |waiting| waiting.key != key && waiting.priority >= priority)
    }

    /// The room that is left for a pod at a place.
    fn room_for(&self, demand: &Demand, place: usize) -> Room {
        let mut room = self.draft.room_at(place);
        if !(self.snapshot.nominated.is_empty() && self.nominated.is_empty()) {
            for waiting in self.awaiting(demand, place) {
                room.take(waiting, 1);
            }
        }
        room
    }

    /// Whether there is room; every reason why not is told.
    fn fits(
        &self,
        demand: &Demand,
        place: usize,
        node: &NodeState,
        refuse: &mut dyn FnMut(Refusal),
    ) -> bool {
        let goods = self.draft.goods_at(place);
        let clashes = demand.host_ports.iter().any(|port| {
            let mut taken = goods.into_iter().flat_map(|goods| &goods.ports);
            taken.any(|taken| taken.clashes_with(port))
        });
        if clashes {
            refuse(Refusal::passing(NO_PORTS));
            return false;
        }
        let room = self.room_for(demand, place);
        let amounts = &demand.amounts;
        let mut fits = true;
        let short = |amount: i64, left: i64| amount > 0 && amount > left;
        let (cpu, memory) = (amounts.cpu, amounts.memory);
        for (is_short, reason, is_final) in [
            (room.pods < 1, "Too many pods", node.offered_pods < 1),
            (
                short(cpu, room.cpu),
                "Insufficient cpu",
                cpu > node.offered.cpu,
            ),
            (
                short(memory, room.memory),
                "Insufficient memory",
                memory > node.offered.memory,
            ),
        ] {
            if is_short {
                refuse(Refusal {
                    reason: Cow::Borrowed(reason),
                    is_final,
                });
                fits = false;
            }
        }
        for (name, amount) in &amounts.other {
            let offered = node.offered.other.get(name).copied().unwrap_or(0);
            let taken = goods.and_then(|goods| goods.amounts.get(name)).copied();
            if *amount > offered - taken.unwrap_or(0) {
                refuse(Refusal {
                    reason: Cow::Owned(format!("Insufficient {name}")),
                    is_final: *amount > offered,
                });
                fits = false;
            }
        }
        fits
    }

    /// A pod is to go to a place.
    pub fn take(&mut self, place: usize, entry: &Entry) {
        self.book(place, entry, 1);
        self.nominated
            .retain(|(_, waiting)| waiting.key != entry.demand.key);
    }

    /// Counts a pod at a place (1), or no longer (-1).
    pub fn book(&mut self, place: usize, entry: &Entry, sign: i64) {
        let what = (entry.demand.as_ref(), &entry.uses);
        let geography = &self.snapshot.geography;
        self.draft.book(geography, place, what, sign);
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
