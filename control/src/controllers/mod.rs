//! Controllers bring the cluster to what its objects ask for.
//!
//! ```text
//! Api::list/watch -> Informer -> Cache (typed, indexed, shared)
//!                        '-> keys -> Queue -> reconcile(key): plan(what the caches show) -> actions -> Api writes
//! ```
//!
//! There is one loop ([`worker::Controller`]); a controller is a row of [`start`] with a pure planner and an executor.
//! Nothing here knows HTTP, gRPC or a store backend. Every reconcile may be stopped after any of its writes and run again.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    allocation,
    api::Api,
    scheduler::{self, Scheduler},
};

pub mod allocation_repair;
pub mod cache;
pub mod client;
pub mod clock;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod event_ttl;
pub mod events;
pub mod expectations;
pub mod garbage;
pub mod informer;
pub mod informers;
pub mod job;
pub mod meta;
pub mod node;
pub mod node_ipam;
pub mod patch;
pub mod pod_control;
pub mod pod_gc;
pub mod pods;
pub mod queue;
pub mod replica_set;
pub mod resources;
pub mod revisions;
pub mod role_aggregation;
pub mod stateful_set;
#[cfg(test)]
mod tests;
pub mod volumes;
pub mod worker;

use client::Client;
use clock::Clock;
use events::Recorder;
use informers::Informers;
use resources::Kind;

/// What every controller works with.
pub struct Context {
    /// The API, as "kube-controller-manager".
    pub client: Client,
    /// What the cluster looks like.
    pub informers: Informers,
    /// Where to say what happened.
    pub events: Recorder,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Every kind that there is.
    pub kinds: Vec<Kind>,
}

/// What the controllers are started with.
pub struct Setup {
    /// The API.
    pub api: Arc<dyn Api>,
    /// Every kind that there is, for garbage collection and namespace clearing.
    pub kinds: Vec<Kind>,
    /// Who hands out addresses, ports and pod CIDRs.
    pub allocations: Arc<allocation::Allocations>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// What the scheduler goes by.
    pub scheduling: scheduler::Policy,
}

/// Starts every controller and the scheduler. Nothing is written before all informers have their first list.
pub fn start(setup: Setup, shutdown: &CancellationToken) -> Running {
    let Setup {
        api,
        kinds,
        allocations,
        clock,
        scheduling,
    } = setup;
    let mut tasks = JoinSet::new();
    let mut recorder = |component| {
        let client = Client::new(Arc::clone(&api), component);
        let (recorder, writer) = Recorder::new(client.clone(), component, &clock, shutdown.clone());
        tasks.spawn(writer);
        (client, recorder)
    };
    let (client, events) = recorder("kube-controller-manager");
    let (scheduler_client, scheduler_events) = recorder("default-scheduler");
    let context = Arc::new(Context {
        client,
        informers: Informers::new(&api, &clock, &kinds),
        events,
        clock,
        kinds,
    });
    let rows: [BoxFuture<'static, ()>; 18] = {
        let context = &context;
        let run = || shutdown.clone();
        [
            Box::pin(deployment::controller(context).run(run())),
            Box::pin(replica_set::controller(context).run(run())),
            Box::pin(daemon_set::controller(context).run(run())),
            Box::pin(stateful_set::controller(context).run(run())),
            Box::pin(disruption::controller(context).run(run())),
            Box::pin(job::controller(context).run(run())),
            Box::pin(cron_job::controller(context).run(run())),
            Box::pin(endpoint_slice::controller(context).run(run())),
            Box::pin(node::controller(context).run(run())),
            Box::pin(node::eviction_controller(context).run(run())),
            Box::pin(node_ipam::controller(context, &allocations).run(run())),
            Box::pin(volumes::claim_controller(context).run(run())),
            Box::pin(volumes::volume_controller(context).run(run())),
            Box::pin(pod_gc::controller(context).run(run())),
            Box::pin(garbage::controller(context).run(run())),
            Box::pin(event_ttl::controller(context).run(run())),
            Box::pin(role_aggregation::controller(context).run(run())),
            Box::pin(allocation_repair::controller(context, &allocations).run(run())),
        ]
    };
    for row in rows {
        let context = Arc::clone(&context);
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            if shutdown
                .run_until_cancelled(context.informers.synced())
                .await
                .is_some()
            {
                row.await;
            }
        });
    }
    let scheduler = Scheduler::new(&context, scheduler_client, scheduler_events, scheduling);
    tasks.spawn(scheduler.run(shutdown.clone()));
    context.informers.start(&mut tasks, shutdown);
    Running { context, tasks }
}

/// The running controllers and scheduler.
pub struct Running {
    /// What they know; others in this process may read along.
    pub context: Arc<Context>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Completes when every informer has its first list and the controllers work.
    pub async fn synced(&self) {
        self.context.informers.synced().await;
    }

    /// Completes when all of them have ended, which they do on shutdown.
    pub async fn ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(panic) = ended {
                tracing::error!(%panic, "a controller's task ended");
            }
        }
    }
}
