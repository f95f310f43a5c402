//! How what a pod asks about other pods stands just now: which places are too near, too far, or too crowded.
//!
//! Source of the rules: k8s.io/kubernetes, `pkg/scheduler/framework/plugins/{interpodaffinity,podtopologyspread}`.

use std::borrow::Cow;

use super::{
    demand::Demand,
    filter::{self, Refusal},
    ledger::{Draft, Tally, Uses},
    snapshot::Snapshot,
    terms::Spread,
    topology::{Counts, NOWHERE, Topology},
};

const NOT_NEAR: Refusal = Refusal::lasting("node(s) didn't match pod affinity rules");
const NOT_FAR: Refusal = Refusal::passing("node(s) didn't match pod anti-affinity rules");
const GUARDED: Refusal =
    Refusal::passing("node(s) didn't satisfy existing pods anti-affinity rules");
const UNEVEN: Refusal = Refusal::passing("node(s) didn't match pod topology spread constraints");
const UNLABELLED: Refusal = Refusal::lasting(
    "node(s) didn't match pod topology spread constraints (missing required label)",
);

/// Counts by domain of a topology.
type View<'a> = (&'a Topology, &'a Counts);

/// See the file's front page.
#[derive(Default)]
pub struct Standing<'a> {
    /// Pods that it must be near; at least one of each in a node's domain.
    near: Vec<View<'a>>,
    /// There is none of them anywhere yet, and it would be the first: then only the labels have to be there.
    is_first: bool,
    /// Pods that it must be far from; none in a node's domain.
    far: Vec<View<'a>>,
    /// Pods that must be far from it.
    guards: Vec<View<'a>>,
    /// What must be even, and what had better be.
    spreads: Vec<Evenness<'a>>,
    /// What it would like to be near (far from), and who would like it to be near (far), by weight.
    pulls: Vec<(View<'a>, i64)>,
}

/// How a spread stands.
struct Evenness<'a> {
    spread: &'a Spread,
    topology: &'a Topology,
    counts: Cow<'a, Counts>,
    least: i64,
    own: i64,
    domains: usize,
}

impl<'a> Standing<'a> {
    /// How things stand for a pod in a draft.
    pub fn of(
        snapshot: &'a Snapshot,
        draft: &'a Draft<'_>,
        (demand, uses): (&'a Demand, &Uses),
    ) -> Self {
        let geography = &snapshot.geography;
        let view = |term: &usize| {
            let tally = draft.tally_of(*term)?;
            Some((geography.topology_of(*term), tally))
        };
        let of = |terms: &[usize]| -> Vec<(&'a Topology, &'a Tally)> {
            terms.iter().filter_map(view).collect()
        };
        let near = of(&uses.near);
        let is_own = |term: &usize| geography.means(*term, &demand.key, &demand.labels);
        let domains = |list: Vec<(&'a Topology, &'a Tally)>| {
            let views = list.into_iter();
            views
                .map(|(topology, tally)| (topology, &tally.domains))
                .collect()
        };
        let mut standing = Self {
            is_first: near
                .iter()
                .all(|(_, tally)| tally.domains.iter().next().is_none())
                && uses.near.iter().all(is_own),
            near: domains(near),
            far: domains(of(&uses.far)),
            ..Self::default()
        };
        for (term, weight) in &uses.preferred {
            if let Some((topology, tally)) = view(term)
                && tally.total > 0
            {
                standing.pulls.push(((topology, &tally.domains), *weight));
            }
        }
        geography.each_meaning(&demand.key, &demand.labels, |term| {
            let Some((topology, tally)) = view(&term) else {
                return;
            };
            if tally.guarding > 0 {
                standing.guards.push((topology, &tally.guards));
            }
            if tally.pulling > 0 {
                standing.pulls.push(((topology, &tally.pulls), 1));
            }
        });
        let spreads = demand.wishes.spreads.iter().zip(&uses.spreads);
        for (spread, term) in spreads {
            if let Some((topology, tally)) = view(term) {
                let own = i64::from(is_own(term) && !demand.is_terminating);
                let evenness = Evenness::of(snapshot, demand, spread, (topology, tally), own);
                standing.spreads.push(evenness);
            }
        }
        standing
    }

    /// Why a place will not do; `None` when it will.
    pub fn refusal(&self, place: usize) -> Option<Refusal> {
        for evenness in self.spreads.iter().filter(|one| one.spread.is_required) {
            let domain = evenness.topology.domain(place);
            if domain == NOWHERE {
                return Some(UNLABELLED);
            }
            let skew = evenness.counts.get(domain) + evenness.own - evenness.least;
            if skew > evenness.spread.max_skew {
                return Some(UNEVEN);
            }
        }
        for (topology, counts) in &self.near {
            let domain = topology.domain(place);
            if domain == NOWHERE || (counts.get(domain) == 0 && !self.is_first) {
                return Some(NOT_NEAR);
            }
        }
        let is_taken = |(topology, counts): &View<'_>| {
            let domain = topology.domain(place);
            domain != NOWHERE && counts.get(domain) > 0
        };
        if self.far.iter().any(is_taken) {
            return Some(NOT_FAR);
        }
        if self.guards.iter().any(is_taken) {
            return Some(GUARDED);
        }
        None
    }

    /// Whether the pod says itself how evenly it wants to stand.
    pub fn spreads(&self) -> bool {
        !self.spreads.is_empty()
    }

    /// How well each place suits what had better be: 0 to 100 for affinity, 0 to 100 for evenness.
    pub fn scores(&self, places: &[usize]) -> Vec<(i64, i64)> {
        let pulls: Vec<i64> = places.iter().map(|place| self.pull(*place)).collect();
        let (least, most) = (
            pulls.iter().copied().min().unwrap_or(0),
            pulls.iter().copied().max().unwrap_or(0),
        );
        let uneven: Vec<Option<i64>> = places.iter().map(|place| self.crowding(*place)).collect();
        let (fewest, fullest) = (
            uneven.iter().flatten().copied().min().unwrap_or(0),
            uneven.iter().flatten().copied().max().unwrap_or(0),
        );
        let scores = pulls.iter().zip(&uneven);
        scores
            .map(|(pull, crowding)| {
                let affinity = if most > least {
                    100 * (pull - least) / (most - least)
                } else {
                    0
                };
                let evenness = match crowding {
                    None => 0,
                    Some(_) if fullest == 0 => 100,
                    Some(crowding) => 100 * (fullest + fewest - crowding) / fullest,
                };
                (affinity, evenness)
            })
            .collect()
    }

    fn pull(&self, place: usize) -> i64 {
        let pulls = self.pulls.iter();
        pulls
            .map(
                |((topology, counts), weight)| match topology.domain(place) {
                    NOWHERE => 0,
                    domain => counts.get(domain) * weight,
                },
            )
            .sum()
    }

    /// How crowded a place is, in thousandths; `None` where a label is missing.
    fn crowding(&self, place: usize) -> Option<i64> {
        let mut crowding = 0;
        for evenness in self.spreads.iter().filter(|one| !one.spread.is_required) {
            let domain = evenness.topology.domain(place);
            if domain == NOWHERE {
                return None;
            }
            // Many small domains weigh less each than few large ones.
            crowding += evenness.counts.get(domain) * weight_of(evenness.domains)
                + 1000 * (evenness.spread.max_skew - 1);
        }
        Some(crowding)
    }
}

/// The logarithm of a number of domains and two, in thousandths.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a logarithm of a number of nodes, rounded"
)]
fn weight_of(domains: usize) -> i64 {
    (((domains + 2) as f64).ln() * 1000.0) as i64
}

impl<'a> Evenness<'a> {
    fn of(
        snapshot: &'a Snapshot,
        demand: &'a Demand,
        spread: &'a Spread,
        (topology, tally): (&'a Topology, &'a Tally),
        own: i64,
    ) -> Self {
        let picks = Picks::of(snapshot, demand, spread);
        let (counts, least, domains) = if picks.all {
            let counts = if tally.leaving_domains.iter().next().is_none() {
                Cow::Borrowed(&tally.domains)
            } else {
                let mut staying = tally.domains.clone();
                for (domain, leaving) in tally.leaving_domains.iter() {
                    staying.add(domain, -leaving);
                }
                Cow::Owned(staying)
            };
            let inhabited = topology.inhabited();
            let least = inhabited.map(|domain| counts.get(domain)).min();
            (counts, least, topology.count())
        } else {
            let (counts, seen) = picks.count(topology, tally);
            let least = seen.iter().map(|(domain, _)| counts.get(domain)).min();
            let domains = seen.iter().count();
            (Cow::Owned(counts), least, domains)
        };
        let wanted = spread.min_domains.unwrap_or(1);
        let is_short = i64::try_from(domains).unwrap_or(i64::MAX) < wanted;
        Self {
            spread,
            topology,
            counts,
            least: if is_short { 0 } else { least.unwrap_or(0) },
            own,
            domains,
        }
    }
}

/// The nodes whose pods count for a spread.
struct Picks<'a> {
    snapshot: &'a Snapshot,
    demand: &'a Demand,
    spread: &'a Spread,
    all: bool,
}

impl<'a> Picks<'a> {
    fn of(snapshot: &'a Snapshot, demand: &'a Demand, spread: &'a Spread) -> Self {
        let spreads = demand.wishes.spreads.iter();
        let has_all_labels = spreads
            .filter(|other| other.is_required == spread.is_required)
            .all(|other| {
                snapshot
                    .geography
                    .is_on_every_node(&other.term.topology_key)
            });
        let is_choosy = !demand.node_selector.is_empty() || demand.required.is_some();
        Self {
            snapshot,
            demand,
            spread,
            all: has_all_labels && !(spread.honors_affinity && is_choosy) && !spread.honors_taints,
        }
    }

    /// The pods of the nodes that count, by domain, and the domains that have such nodes.
    fn count(&self, topology: &Topology, tally: &Tally) -> (Counts, Counts) {
        let (mut counts, mut seen) = (Counts::default(), Counts::default());
        let (demand, spread) = (self.demand, self.spread);
        for (place, node) in self.snapshot.nodes.iter().enumerate() {
            let (Some(node), Ok(here)) = (node, u32::try_from(place)) else {
                continue;
            };
            let spreads = demand.wishes.spreads.iter();
            let is_labelled = spreads
                .filter(|other| other.is_required == spread.is_required)
                .all(|other| node.labels.contains_key(&other.term.topology_key));
            if !is_labelled
                || (spread.honors_affinity && !filter::is_selected(demand, node))
                || (spread.honors_taints && filter::untolerated(demand, node).is_some())
            {
                continue;
            }
            let domain = topology.domain(place);
            seen.add(domain, 1);
            let count = tally.places.get(here) - tally.leaving_places.get(here);
            if count != 0 {
                counts.add(domain, count);
            }
        }
        (counts, seen)
    }
}
