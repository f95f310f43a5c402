//! The scheduler: gives every waiting pod a node.
//!
//! ```text
//! pod and node changes -> Snapshot (incremental) -> plan(&Snapshot, &Policy) -> bind | say why not
//! ```
//!
//! [`plan`] is pure. A pod that it places counts as placed at once; when its binding fails it waits again. A pod that
//! fits nowhere says so in its `PodScheduled` condition and an event, and waits for a change that might help it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    api::ObjectKey,
    controllers::{
        Context, cache::Change, client::Client, clock, events::Recorder, meta, pods,
        queue::Backoff, worker::chain,
    },
};

pub mod demand;
pub mod filter;
mod plan;
pub mod quantity;
mod report;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use plan::{Misfit, Plan, Policy, plan};

use demand::Demand;
use snapshot::Snapshot;

/// How many bindings are on their way at the same time.
const BINDINGS: usize = 64;
/// A pod that fits nowhere is looked at again after this time even if nothing seems to have changed.
const FLUSH: Duration = Duration::from_mins(5);

/// A pod that waits for something other than its turn.
struct Parked {
    demand: Arc<Demand>,
    /// Not before this time, whatever changes.
    until: Timestamp,
    /// At this time even if nothing changes.
    flush: Timestamp,
}

#[derive(Default)]
struct State {
    snapshot: Snapshot,
    parked: HashMap<ObjectKey, Parked>,
    /// Keys of parked pods that a change may have helped, by when they may be tried.
    ripening: BTreeSet<(Timestamp, ObjectKey)>,
    attempts: HashMap<ObjectKey, u32>,
}

/// See the file's front page.
pub struct Scheduler {
    context: Arc<Context>,
    client: Client,
    events: Recorder,
    policy: Policy,
    state: Mutex<State>,
    wake: Notify,
    backoff: Backoff,
}

impl Scheduler {
    /// A scheduler that listens to the informers but does nothing before [`Scheduler::run`].
    pub fn new(
        context: &Arc<Context>,
        client: Client,
        events: Recorder,
        policy: Policy,
    ) -> Arc<Self> {
        let scheduler = Arc::new(Self {
            context: Arc::clone(context),
            client,
            events,
            policy,
            state: Mutex::default(),
            wake: Notify::new(),
            backoff: Backoff {
                first: Duration::from_secs(1),
                most: Duration::from_secs(10),
            },
        });
        let of_pods = Arc::clone(&scheduler);
        context
            .informers
            .pods
            .on_change(move |change| of_pods.pod_changed(change));
        let of_nodes = Arc::clone(&scheduler);
        context
            .informers
            .nodes
            .on_change(move |change| of_nodes.node_changed(change));
        scheduler
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        self.context.clock.now()
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let Some(key) = change.key() else { return };
        let now = self.now();
        let mut state = self.lock();
        match &change.new {
            Some(pod) => state.show_pod(pod, &key, &self.policy.name, now),
            None => state.forget(&key, now),
        }
        drop(state);
        self.wake.notify_one();
    }

    fn node_changed(&self, change: &Change<Node>) {
        let now = self.now();
        let mut state = self.lock();
        match (&change.old, &change.new) {
            (_, Some(node)) => {
                if state.snapshot.set_node(node) {
                    state.ripen_all(now);
                }
            }
            (Some(node), None) => state.snapshot.remove_node(meta::name(&node.metadata)),
            (None, None) => {}
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Schedules until shut down.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let synced = self.context.informers.pods_and_nodes_synced();
        if shutdown.run_until_cancelled(synced).await.is_none() {
            return;
        }
        let mut writes = JoinSet::new();
        loop {
            let is_done = self.round(&mut writes);
            if !is_done && writes.len() < BINDINGS {
                continue;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified(), if writes.len() < BINDINGS => {}
                () = self.next_due(), if writes.len() < BINDINGS => {}
                Some(ended) = writes.join_next() => {
                    if let Err(panic) = ended {
                        error!(%panic, "a binding panicked");
                    }
                }
            }
        }
    }

    async fn next_due(&self) {
        let due = self.lock().next_due();
        match due {
            Some(due) => {
                let delay = clock::elapsed(self.now(), due);
                self.context.clock.sleep(delay).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Plans the pods whose turn it is and sets off the writes; true when none is left.
    fn round(self: &Arc<Self>, writes: &mut JoinSet<()>) -> bool {
        let now = self.now();
        let mut state = self.lock();
        state.ripen_due(now);
        let mut policy = self.policy.clone();
        policy.batch = policy.batch.min(BINDINGS.saturating_sub(writes.len()));
        let plan = plan(&state.snapshot, &policy);
        for (demand, node) in &plan.placements {
            state.snapshot.place(demand, node);
        }
        for (demand, _) in &plan.misfits {
            let until = self.next_try(&mut state, demand, now);
            state.park(demand, until, clock::after(now, FLUSH));
        }
        let is_done = state.snapshot.pending().next().is_none();
        drop(state);
        for (demand, node) in plan.placements {
            let scheduler = Arc::clone(self);
            writes.spawn(async move { scheduler.bind(&demand, &node).await });
        }
        for (demand, misfit) in plan.misfits {
            let scheduler = Arc::clone(self);
            writes.spawn(async move { scheduler.say_misfit(&demand, &misfit).await });
        }
        is_done
    }

    fn next_try(&self, state: &mut State, demand: &Demand, now: Timestamp) -> Timestamp {
        let attempts = state.attempts.entry(demand.key.clone()).or_default();
        *attempts += 1;
        let seed = self.policy.seed ^ u64::from(meta::hash(&demand.uid)) ^ u64::from(*attempts);
        let delay = self
            .backoff
            .delay(*attempts, &mut fastrand::Rng::with_seed(seed));
        clock::after(now, delay)
    }

    async fn bind(&self, demand: &Arc<Demand>, node: &str) {
        match self.client.bind(&demand.key, &demand.uid, node).await {
            Ok(()) => self.say_bound(demand, node),
            // Gone, or bound by someone else: the informer tells what is true now.
            Err(error) if matches!(error.code(), Some(404 | 409)) => {
                debug!(pod = ?demand.key, cause = chain(&error), "not bound");
                self.take_back(demand, false);
            }
            Err(error) => {
                warn!(pod = ?demand.key, node, cause = chain(&error), "binding failed");
                self.say_rejected(demand, &chain(&error));
                self.take_back(demand, true);
            }
        }
    }

    /// A pod that was counted as placed was not: it waits again, unless the cache knows better.
    fn take_back(&self, demand: &Arc<Demand>, failed: bool) {
        let now = self.now();
        let shown = self.context.informers.pods.cache().get(&demand.key);
        let waits = shown.is_some_and(|pod| {
            meta::uid(&pod.metadata) == demand.uid && demand::waits(&pod, &self.policy.name)
        });
        let mut state = self.lock();
        state.snapshot.unplace(&demand.key);
        if waits {
            let until = self.next_try(&mut state, demand, now);
            state.park(demand, until, until);
        } else if failed {
            state.attempts.remove(&demand.key);
        }
        state.ripen_all(now);
        drop(state);
        self.wake.notify_one();
    }
}

impl State {
    /// Takes in what a pod's object shows.
    fn show_pod(&mut self, pod: &Pod, key: &ObjectKey, scheduler: &str, now: Timestamp) {
        if let Some(node) = pods::node(pod) {
            self.parked.remove(key);
            self.attempts.remove(key);
            self.snapshot.remove_pending(key);
            if demand::takes_room(pod) {
                self.snapshot.place(&Arc::new(Demand::of(pod)), node);
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
        match self.parked.get_mut(key) {
            // Its own status is no reason to try again; its spec is.
            Some(parked) if parked.demand.uid == demand.uid && same(&parked.demand, &demand) => {}
            Some(_) => {
                self.parked.remove(key);
                self.snapshot.add_pending(demand);
            }
            None => self.snapshot.add_pending(demand),
        }
    }

    fn forget(&mut self, key: &ObjectKey, now: Timestamp) {
        self.parked.remove(key);
        self.attempts.remove(key);
        self.snapshot.remove_pending(key);
        if self.snapshot.unplace(key) {
            self.ripen_all(now);
        }
    }

    fn park(&mut self, demand: &Arc<Demand>, until: Timestamp, flush: Timestamp) {
        self.snapshot.remove_pending(&demand.key);
        self.ripening.insert((flush, demand.key.clone()));
        let parked = Parked {
            demand: Arc::clone(demand),
            until,
            flush,
        };
        self.parked.insert(demand.key.clone(), parked);
    }

    /// Something changed that may help any pod that fits nowhere.
    fn ripen_all(&mut self, now: Timestamp) {
        for (key, parked) in &mut self.parked {
            let when = parked.until.max(now);
            if parked.flush > when {
                parked.flush = when;
                self.ripening.insert((when, key.clone()));
            }
        }
    }

    /// Pods whose time has come wait for their turn again.
    fn ripen_due(&mut self, now: Timestamp) {
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
                self.snapshot.add_pending(parked.demand);
            }
        }
    }

    fn next_due(&self) -> Option<Timestamp> {
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
}
