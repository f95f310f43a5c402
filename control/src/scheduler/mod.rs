//! The scheduler: gives every waiting pod a node.
//!
//! ```text
//! pod and node changes -> Snapshot (incremental) -> plan(&Snapshot, &Policy) -> bind | say why not
//! ```
//!
//! [`plan`] is pure. A pod that it places counts as placed at once; when its binding fails it waits again. A pod that
//! fits nowhere says so in its `PodScheduled` condition and an event, and waits for a change that might help it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    policy::v1::PodDisruptionBudget,
};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::api::ObjectKey;
use crate::controllers::{
    Context, cache::Change, client::Client, clock, events::Recorder, meta, queue::Backoff,
    worker::chain,
};

pub mod budgets;
pub mod demand;
pub mod filter;
pub mod geography;
pub mod ledger;
pub mod nodes;
mod plan;
pub mod preempt;
pub mod quantity;
mod report;
mod round;
mod score;
pub mod snapshot;
mod standing;
mod state;
mod storage;
pub mod terms;
#[cfg(test)]
mod tests;
pub mod topology;
pub mod volumes;

pub use plan::{Misfit, Plan, Policy, Refusals, plan};

use demand::Demand;
use preempt::Preemption;
use state::State;

/// How many bindings are on their way at the same time.
const BINDINGS: usize = 64;
/// A pod that fits nowhere is looked at again after this time even if nothing seems to have changed.
const FLUSH: Duration = Duration::from_mins(5);

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
        scheduler.follow_volumes();
        let of_namespaces = Arc::clone(&scheduler);
        context
            .informers
            .namespaces
            .on_change(move |change| of_namespaces.namespace_changed(change));
        let of_budgets = Arc::clone(&scheduler);
        context
            .informers
            .disruption_budgets
            .on_change(move |change| of_budgets.budget_changed(change));
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

    fn namespace_changed(&self, change: &Change<Namespace>) {
        let Some(key) = change.key() else { return };
        let now = self.now();
        let mut state = self.lock();
        let labels = change
            .new
            .as_ref()
            .map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
        state.snapshot.set_namespace(&key.name, labels.as_ref());
        state.ripen_all(now);
        drop(state);
        self.wake.notify_one();
    }

    fn budget_changed(&self, change: &Change<PodDisruptionBudget>) {
        let Some(key) = change.key() else { return };
        let mut state = self.lock();
        match &change.new {
            Some(budget) => state.snapshot.set_budget(budget),
            None => state.snapshot.remove_budget(&key),
        }
    }

    /// Schedules until shut down.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let synced = self.context.informers.scheduling_synced();
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
        for (demand, node, chosen) in &plan.claims {
            state.await_volumes(demand, node, chosen, now);
        }
        for preemption in &plan.preemptions {
            state.make_way(preemption);
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
        for (demand, _, chosen) in plan.claims {
            let scheduler = Arc::clone(self);
            writes.spawn(async move { scheduler.bind_volumes(&demand, chosen).await });
        }
        for (demand, misfit) in plan.misfits {
            let mut preemptions = plan.preemptions.iter();
            let found = preemptions.find(|one| one.demand.key == demand.key);
            let (scheduler, preemption) = (Arc::clone(self), found.cloned());
            writes.spawn(async move {
                let node = preemption.as_ref().map(|one| one.node.as_str());
                scheduler.say_misfit(&demand, &misfit, node).await;
                if let Some(preemption) = &preemption {
                    scheduler.preempt(preemption).await;
                }
            });
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

    /// Has pods make way: each ends as gracefully as if a user had deleted it.
    async fn preempt(&self, preemption: &Preemption) {
        for victim in &preemption.victims {
            // One that is on its way out already needs no push.
            let cached = self.context.informers.pods.cache().get(&victim.key);
            if cached.is_some_and(|pod| meta::is_terminating(&pod.metadata)) {
                continue;
            }
            if let Err(error) = self.evict(victim, preemption).await {
                let cause = chain(&error);
                warn!(pod = ?victim.key, for_pod = ?preemption.demand.key, cause, "can't preempt");
                self.show_again(&victim.key);
            }
        }
    }

    /// What was assumed of a pod did not come true: what its object shows is true.
    fn show_again(&self, key: &ObjectKey) {
        let now = self.now();
        let pod = self.context.informers.pods.cache().get(key);
        let mut state = self.lock();
        match pod {
            Some(pod) => state.show_pod(&pod, key, &self.policy.name, now),
            None => state.forget(key, now),
        }
        drop(state);
        self.wake.notify_one();
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
