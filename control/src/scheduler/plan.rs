//! The scheduler's decisions: synchronous, seeded, no IO. The same snapshot, policy and seed give the same plan.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use super::{
    demand::Demand,
    preempt::{self, Preemption},
    round::{Round, Survey},
    snapshot::{Entry, Snapshot},
    volumes::Choice,
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

/// How many of some nodes refuse, for each reason; one may refuse for several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// All nodes.
    pub nodes: usize,
    /// Why none of them was even looked at.
    pub whole: Option<Cow<'static, str>>,
    /// Nodes by reason.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
}

impl Refusals {
    /// So many more nodes refuse for a reason.
    pub fn add(&mut self, reason: Cow<'static, str>, nodes: usize) {
        if nodes > 0 {
            *self.reasons.entry(reason).or_default() += nodes;
        }
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.whole {
            return write!(f, "0/{} nodes are available: {why}.", self.nodes);
        }
        let mut reasons: Vec<_> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        let reasons = reasons.join(", ");
        write!(f, "0/{} nodes are available: {reasons}.", self.nodes)
    }
}

/// Why a pod fits nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Misfit {
    /// Why no node will do.
    pub refusals: Refusals,
    /// Why no pod can make way for it; empty where some do.
    pub preemption: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.refusals.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        self.refusals.fmt(f)?;
        if !self.preemption.is_empty() {
            write!(f, " preemption: {}", self.preemption)?;
        }
        Ok(())
    }
}

/// What is to be done about the pods that were looked at.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods with the nodes that they go to, in turn.
    pub placements: Vec<(Arc<Demand>, String)>,
    /// Pods whose claims are bound first, to volumes of the node that they will go to then.
    pub claims: Vec<(Arc<Demand>, String, Vec<Choice>)>,
    /// Pods that fit nowhere.
    pub misfits: Vec<(Arc<Demand>, Misfit)>,
    /// Pods that others are to make way for; each is among the misfits too.
    pub preemptions: Vec<Preemption>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (demand, node) in &self.placements {
            writeln!(f, "{} -> {node}", demand.key.name)?;
        }
        for (demand, node, chosen) in &self.claims {
            let names = chosen.iter().map(|(claim, volume)| {
                let (claim, volume) = (&claim.metadata.name, &volume.metadata.name);
                let text = |name: &Option<String>| name.clone().unwrap_or_default();
                format!("{} = {}", text(claim), text(volume))
            });
            let names = names.collect::<Vec<_>>().join(", ");
            writeln!(f, "{} -> {node} when {names}", demand.key.name)?;
        }
        for (demand, misfit) in &self.misfits {
            writeln!(f, "{} -> {misfit}", demand.key.name)?;
        }
        for preemption in &self.preemptions {
            let victims = preemption.victims.iter();
            let names: Vec<_> = victims.map(|victim| victim.key.name.as_str()).collect();
            let (name, node) = (&preemption.demand.key.name, &preemption.node);
            writeln!(f, "{name} preempts {} on {node}", names.join(", "))?;
        }
        Ok(())
    }
}

/// Plans the next pods in turn.
pub fn plan(snapshot: &Snapshot, policy: &Policy) -> Plan {
    let mut round = Round::of(snapshot, policy);
    let mut plan = Plan::default();
    for entry in snapshot.pending().take(policy.batch) {
        let demand = &entry.demand;
        match round.survey(entry) {
            Survey::Found(place) => {
                round.take(place, entry);
                let chosen = round.give_volumes(demand, place);
                let node = snapshot.nodes[place].as_ref();
                let node = node.map_or_else(String::new, |node| node.name.clone());
                if chosen.is_empty() {
                    plan.placements.push((Arc::clone(demand), node));
                } else {
                    plan.claims.push((Arc::clone(demand), node, chosen));
                }
            }
            Survey::Refused { refusals, helpable } => {
                let preemption = make_way(&mut round, entry, &helpable, refusals.nodes);
                let preemption = match preemption {
                    Ok(preemption) => {
                        plan.preemptions.push(preemption);
                        String::new()
                    }
                    Err(why) => why,
                };
                let misfit = Misfit {
                    refusals,
                    preemption,
                };
                plan.misfits.push((Arc::clone(demand), misfit));
            }
        }
    }
    plan
}

/// Looks for pods that matter less and could make way, unless some do already.
fn make_way(
    round: &mut Round<'_>,
    entry: &Arc<Entry>,
    helpable: &[usize],
    nodes: usize,
) -> Result<Preemption, String> {
    let demand = &entry.demand;
    if !demand.may_preempt {
        return Err("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    if preempt::is_waiting(round, demand) {
        return Err("not eligible due to a terminating pod on the nominated node.".to_owned());
    }
    preempt::find(round, entry, helpable, nodes)
}
