//! Preemption: which pods of lower priority make way for one that fits nowhere. As few as possible, on the node where
//! their going does the least harm: first no disruption budget overdrawn, then the lowest priorities, then the fewest.
//!
//! Source of the rules: k8s.io/kubernetes, `pkg/scheduler/framework/{preemption,plugins/defaultpreemption}`.

use std::{borrow::Cow, cmp::Reverse, sync::Arc};

use jiff::Timestamp;

use super::{
    budgets, demand::Demand, nodes::NodeState, plan::Refusals, round::Round, snapshot::Entry,
    standing::Standing,
};

const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
/// So many nodes where preemption helps are enough to choose from.
const ENOUGH: usize = 100;

/// Pods that are to make way for another.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// For whom.
    pub demand: Arc<Demand>,
    /// On which node.
    pub node: String,
    /// Who.
    pub victims: Vec<Arc<Demand>>,
}

/// What preemption on a node would take.
struct Candidate {
    place: usize,
    victims: Vec<Arc<Entry>>,
    violations: usize,
}

/// Whether a pod still waits for one that makes way for it.
pub fn is_waiting(round: &Round<'_>, demand: &Demand) -> bool {
    let snapshot = round.snapshot;
    let named = || snapshot.place_of(demand.nominated.as_deref()?);
    let Some(place) = snapshot.nomination(&demand.key).or_else(named) else {
        return false;
    };
    let mut residents = snapshot.residents[place].iter();
    residents.any(|entry| {
        let resident = &entry.demand;
        resident.is_terminating && resident.priority < demand.priority
    })
}

/// Finds the node where preemption does the least harm, and counts on it for the rest of the round. Otherwise says why
/// there is none.
pub fn find(
    round: &mut Round<'_>,
    entry: &Arc<Entry>,
    helpable: &[usize],
    nodes: usize,
) -> Result<Preemption, String> {
    let demand = &entry.demand;
    let mut refusals = Refusals {
        nodes,
        ..Refusals::default()
    };
    refusals.add(Cow::Borrowed(NOT_HELPFUL), nodes - helpable.len());
    let lowest = round.snapshot.priorities.keys().next();
    if lowest.is_none_or(|lowest| *lowest >= demand.priority) {
        refusals.add(Cow::Borrowed(NO_VICTIMS), helpable.len());
        return Err(refusals.to_string());
    }
    let mut candidates = Vec::new();
    for place in helpable {
        match candidate(round, entry, *place) {
            Ok(candidate) => candidates.push(candidate),
            Err(reasons) => {
                for reason in reasons {
                    refusals.add(reason, 1);
                }
            }
        }
        if candidates.len() >= ENOUGH {
            break;
        }
    }
    let Some(best) = candidates.into_iter().min_by_key(harm) else {
        return Err(refusals.to_string());
    };
    for victim in &best.victims {
        round.book(best.place, victim, -1);
        round.doomed.push(Arc::clone(victim));
    }
    round.nominated.push((best.place, Arc::clone(demand)));
    let node = round.snapshot.nodes[best.place].as_ref();
    let victims = best.victims.iter();
    Ok(Preemption {
        demand: Arc::clone(demand),
        node: node.map_or_else(String::new, |node| node.name.clone()),
        victims: victims.map(|victim| Arc::clone(&victim.demand)).collect(),
    })
}

/// The lesser the better, one after the other: budgets overdrawn, the highest priority, all priorities, the number, how
/// long the most important have run.
fn harm(candidate: &Candidate) -> (usize, i64, i64, usize, Reverse<Option<Timestamp>>, usize) {
    let victims = || candidate.victims.iter().map(|entry| &entry.demand);
    let priorities = || victims().map(|victim| i64::from(victim.priority));
    let highest = priorities().max().unwrap_or(i64::MIN);
    // Lifted above zero, so that more victims are always more harm.
    let sum = priorities()
        .map(|priority| priority - i64::from(i32::MIN))
        .sum();
    let most_important = victims().filter(|victim| i64::from(victim.priority) == highest);
    let since = most_important.map(|victim| victim.started).min().flatten();
    (
        candidate.violations,
        highest,
        sum,
        candidate.victims.len(),
        Reverse(since),
        candidate.place,
    )
}

/// The fewest pods that have to leave a node for another to fit.
fn candidate(
    round: &mut Round<'_>,
    entry: &Arc<Entry>,
    place: usize,
) -> Result<Candidate, Vec<Cow<'static, str>>> {
    let snapshot = round.snapshot;
    let Some(node) = &snapshot.nodes[place] else {
        return Err(vec![Cow::Borrowed(NOT_HELPFUL)]);
    };
    let is_doomed = |resident: &Arc<Entry>| {
        let mut doomed = round.doomed.iter();
        doomed.any(|other| Arc::ptr_eq(other, resident))
    };
    let mut lower: Vec<_> = snapshot.residents[place]
        .iter()
        .filter(|resident| resident.demand.priority < entry.demand.priority)
        .filter(|resident| !is_doomed(resident))
        .map(Arc::clone)
        .collect();
    if lower.is_empty() {
        return Err(vec![Cow::Borrowed(NO_VICTIMS)]);
    }
    // The most important come first: they are the first that may stay.
    lower.sort_by_key(|resident| {
        let demand = &resident.demand;
        (Reverse(demand.priority), demand.started, demand.key.clone())
    });
    for resident in &lower {
        round.book(place, resident, -1);
    }
    let mut refused = Vec::new();
    let fits = tried(round, entry, (place, node), &mut refused);
    let found = if fits {
        Ok(reprieve(round, entry, (place, node), &lower))
    } else {
        Err(refused)
    };
    for resident in &lower {
        round.book(place, resident, 1);
    }
    found
}

/// Lets those stay that may, beginning with those whose budget would be overdrawn. They are booked as they were before.
fn reprieve(
    round: &mut Round<'_>,
    entry: &Arc<Entry>,
    node: (usize, &NodeState),
    lower: &[Arc<Entry>],
) -> Candidate {
    let place = node.0;
    let demands: Vec<_> = lower.iter().map(|resident| &*resident.demand).collect();
    let violates = budgets::violations(&round.snapshot.budgets.values(), &demands);
    let in_turn = |wanted: bool| {
        let both = lower.iter().zip(&violates);
        both.filter(move |(_, violates)| **violates == wanted)
    };
    let mut candidate = Candidate {
        place,
        victims: Vec::new(),
        violations: 0,
    };
    let mut staying = Vec::new();
    for (resident, violates) in in_turn(true).chain(in_turn(false)) {
        round.book(place, resident, 1);
        if tried(round, entry, node, &mut Vec::new()) {
            staying.push(resident);
        } else {
            round.book(place, resident, -1);
            candidate.victims.push(Arc::clone(resident));
            candidate.violations += usize::from(*violates);
        }
    }
    for resident in staying {
        round.book(place, resident, -1);
    }
    candidate
}

/// Whether a pod fits on a node as the round counts now.
fn tried(
    round: &Round<'_>,
    entry: &Arc<Entry>,
    node: (usize, &NodeState),
    refused: &mut Vec<Cow<'static, str>>,
) -> bool {
    let what = (entry.demand.as_ref(), &entry.uses);
    let standing = Standing::of(round.snapshot, &round.draft, what);
    let needs = match round.needs(&entry.demand) {
        Ok(needs) => needs,
        Err(why) => {
            refused.push(why);
            return false;
        }
    };
    let asks = (&*entry.demand, &standing, &needs);
    round.check(asks, node, &mut |refusal| refused.push(refusal.reason))
}
