//! What the scheduler knows: the cluster, and the pods that wait for something other than their turn.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{
    FLUSH,
    demand::{self, Demand},
    preempt::Preemption,
    snapshot::Snapshot,
    volumes::Choice,
};
use crate::{
    api::ObjectKey,
    controllers::{clock, pods, volumes::matching::holder},
};

/// A pod that waits for something other than its turn.
pub(super) struct Parked {
    demand: Arc<Demand>,
    /// Not before this time, whatever changes.
    until: Timestamp,
    /// At this time even if nothing changes.
    flush: Timestamp,
}

#[derive(Default)]
pub(super) struct State {
    /// The cluster.
    pub snapshot: Snapshot,
    parked: HashMap<ObjectKey, Parked>,
    /// Keys of parked pods that a change may have helped, by when they may be tried.
    ripening: BTreeSet<(Timestamp, ObjectKey)>,
    /// How often each pod was tried in vain.
    pub attempts: HashMap<ObjectKey, u32>,
}

impl State {
    /// Takes in what a pod's object shows.
    pub fn show_pod(&mut self, pod: &Pod, key: &ObjectKey, scheduler: &str, now: Timestamp) {
        if let Some(node) = pods::node(pod) {
            self.parked.remove(key);
            self.attempts.remove(key);
            self.snapshot.remove_pending(key);
            if demand::takes_room(pod) {
                if self.snapshot.place(&Arc::new(Demand::of(pod)), node) {
                    self.ripen_all(now);
                }
            } else if self.snapshot.unplace(key) {
                self.ripen_all(now);
            }
            return;
        }
        if !demand::waits(pod, scheduler) {
            self.forget(key, now);
            return;
        }
        let demand = Arc::new(Demand::of(pod));
        // Its binding may be on its way; then the object is only older than the decision.
        if self.snapshot.is_placed(&demand) {
            return;
        }
        self.snapshot.unplace(key);
        if let Some(node) = &demand.nominated
            && self.snapshot.nomination(key).is_none()
        {
            self.snapshot.nominate(&demand, node);
        }
        match self.parked.get_mut(key) {
            // Its own status is no reason to try again; its spec is.
            Some(parked) if parked.demand.uid == demand.uid && same(&parked.demand, &demand) => {}
            Some(_) => {
                self.parked.remove(key);
                self.snapshot.add_pending(&demand);
            }
            None => self.snapshot.add_pending(&demand),
        }
    }

    /// A pod that is gone, or no longer waits.
    pub fn forget(&mut self, key: &ObjectKey, now: Timestamp) {
        self.parked.remove(key);
        self.attempts.remove(key);
        self.snapshot.remove_pending(key);
        self.snapshot.remove_nomination(key);
        if self.snapshot.unplace(key) {
            self.ripen_all(now);
        }
    }

    /// A pod waits for a change, but not before `until` and not longer than until `flush`.
    pub fn park(&mut self, demand: &Arc<Demand>, until: Timestamp, flush: Timestamp) {
        self.snapshot.remove_pending(&demand.key);
        self.ripening.insert((flush, demand.key.clone()));
        let parked = Parked {
            demand: Arc::clone(demand),
            until,
            flush,
        };
        self.parked.insert(demand.key.clone(), parked);
    }

    /// Pods make way for another: they count as on their way out, and their room as the other's.
    pub fn make_way(&mut self, preemption: &Preemption) {
        for victim in &preemption.victims {
            let mut leaving = Demand::clone(victim);
            leaving.is_terminating = true;
            self.snapshot.place(&Arc::new(leaving), &preemption.node);
        }
        self.snapshot.nominate(&preemption.demand, &preemption.node);
    }

    /// A pod's claims are being bound: its room on the node is kept, and it waits until they are.
    pub fn await_volumes(
        &mut self,
        demand: &Arc<Demand>,
        node: &str,
        chosen: &[Choice],
        now: Timestamp,
    ) {
        // What shows already whose it is needs no note, which nothing would take away.
        let free = chosen.iter().filter(|(_, volume)| holder(volume).is_none());
        for (_, volume) in free {
            let name = volume.metadata.name.clone().unwrap_or_default();
            let assumed = &mut self.snapshot.volumes.assumed;
            assumed.insert(name, demand.key.clone());
        }
        self.park(demand, now, clock::after(now, FLUSH));
        self.snapshot.nominate(demand, node);
    }

    /// Something changed that may help any pod that fits nowhere.
    pub fn ripen_all(&mut self, now: Timestamp) {
        for (key, parked) in &mut self.parked {
            let when = parked.until.max(now);
            if parked.flush > when {
                parked.flush = when;
                self.ripening.insert((when, key.clone()));
            }
        }
    }

    /// Pods whose time has come wait for their turn again.
    pub fn ripen_due(&mut self, now: Timestamp) {
        while self.ripening.first().is_some_and(|(when, _)| *when <= now) {
            let Some((when, key)) = self.ripening.pop_first() else {
                return;
            };
            if self
                .parked
                .get(&key)
                .is_some_and(|parked| parked.flush <= when)
                && let Some(parked) = self.parked.remove(&key)
            {
                self.snapshot.add_pending(&parked.demand);
            }
        }
    }

    /// When the next pod's time comes.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.ripening.first().map(|(when, _)| *when)
    }
}

/// Whether two readings of a pod ask for the same.
fn same(left: &Demand, right: &Demand) -> bool {
    left.amounts == right.amounts
        && left.node_selector == right.node_selector
        && left.required == right.required
        && left.tolerations == right.tolerations
        && left.host_ports == right.host_ports
        && left.priority == right.priority
        && left.labels == right.labels
        && left.wishes == right.wishes
        && left.preferred == right.preferred
}
