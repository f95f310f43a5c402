//! What one server of all does: controllers, scheduler, repair, namespaces, compaction.
//!
//! ```text
//! campaign -> term -> store behind the term's fence -> engine, allocations -> controllers, scheduler, ... -> over
//!     ^------------------------------------------------------------------------------------------------------'
//! ```
//!
//! Nothing of a term writes but through its [`Fenced`] store, so what a deposed leader still does comes to nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod election;
mod lease;
pub mod servers;
#[cfg(test)]
mod tests;

use crate::allocation::admission::ServiceAdmission;
use crate::allocation::{Allocations, Ranges};
use crate::api::Api;
use crate::api::account::AccountAdmission;
use crate::api::admission::Admission;
use crate::api::classes::ClassAdmission;
use crate::api::engine::Engine;
use crate::controllers::clock::SystemClock;
use crate::controllers::resources::Kind;
use crate::controllers::{self, Setup};
use crate::scheduler;
use crate::store::sealed::Sealed;
use crate::store::{Fenced, Store, compactor};
use election::{Candidate, Term};
use servers::Registration;

/// How long controllers may take to end.
const GRACE: Duration = Duration::from_secs(3);

/// What a server does for the cluster right now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It does not know yet.
    #[default]
    Unknown,
    /// Another server leads.
    Standby,
    /// It leads, and its controllers work.
    Leading,
}

/// A server's part in the leading of the cluster.
pub struct Leadership {
    /// The store, with everything opened that is sealed in it.
    pub store: Arc<dyn Store>,
    /// The same, to seal anew what is not sealed with the first key.
    pub sealed: Option<Arc<Sealed>>,
    /// The engine that serves requests.
    pub engine: Arc<Engine>,
    /// What there is to allocate.
    pub ranges: Ranges,
    /// Decides what is tried first.
    pub seed: u64,
    /// The election.
    pub candidate: Candidate,
    /// Where this server is.
    pub registration: Registration,
}

/// The admissions of an engine that writes to `store`.
pub fn admissions(
    store: &Arc<dyn Store>,
    allocations: &Arc<Allocations>,
) -> Vec<Arc<dyn Admission>> {
    vec![
        ServiceAdmission::new(Arc::clone(allocations)),
        AccountAdmission::new(Arc::clone(store)),
        ClassAdmission::new(Arc::clone(store)),
    ]
}

impl Leadership {
    /// Leads whenever it can, until `shutdown`; gives the lead back then.
    pub async fn run(self, role: watch::Sender<Role>, shutdown: CancellationToken) {
        let mut leader = self.candidate.leader();
        loop {
            let campaign = async {
                let standby = async {
                    // The sender lives as long as the candidate.
                    while leader.changed().await.is_ok() {
                        role.send_replace(Role::Standby);
                    }
                };
                tokio::select! {
                    term = self.candidate.campaign() => term,
                    () = standby => std::future::pending().await,
                }
            };
            let Some(term) = shutdown.run_until_cancelled(campaign).await else {
                return;
            };
            leader.mark_unchanged();
            tracing::info!(revision = term.fence.create_revision, "leading");
            self.lead(&term, &role, &shutdown).await;
            role.send_replace(Role::Unknown);
            self.candidate.resign(term).await;
            leader.mark_unchanged();
            if shutdown.is_cancelled() {
                return;
            }
            tracing::warn!("leading no longer");
        }
    }

    async fn lead(&self, term: &Term, role: &watch::Sender<Role>, shutdown: &CancellationToken) {
        let store: Arc<dyn Store> =
            Arc::new(Fenced::new(Arc::clone(&self.store), term.fence.clone()));
        let allocations = Allocations::new(&store, &self.ranges, self.seed);
        let admissions = admissions(&store, &allocations);
        let engine = self.engine.over(Arc::clone(&store), admissions);
        let api: Arc<dyn Api> = Arc::clone(&engine) as _;
        let over = shutdown.child_token();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&engine).tend_namespaces());
        tasks.spawn(compactor::run(Arc::clone(&store), compactor::INTERVAL));
        tasks.spawn(lease::show(
            Arc::clone(&api),
            self.candidate.name().to_owned(),
        ));
        tasks.spawn(servers::publish(
            Arc::clone(&store),
            Arc::clone(&api),
            self.registration.clone(),
        ));
        if let Some(sealed) = &self.sealed {
            tasks.spawn(reseal(Arc::clone(sealed), term.fence.clone()));
        }
        let setup = Setup {
            api,
            kinds: Kind::followed(engine.table()),
            allocations,
            clock: Arc::new(SystemClock),
            scheduling: scheduler::Policy {
                seed: self.seed,
                ..scheduler::Policy::default()
            },
        };
        let running = controllers::start(setup, &over);
        let leading = async {
            running.synced().await;
            role.send_replace(Role::Leading);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = self.candidate.hold(term) => {}
            () = shutdown.cancelled() => {}
            () = leading => {}
        }
        over.cancel();
        if tokio::time::timeout(GRACE, running.ended()).await.is_err() {
            tracing::warn!("controllers were still at work when the term ended");
        }
    }
}

/// Once a term: with the same keys there is nothing to do in the next.
async fn reseal(sealed: Arc<Sealed>, fence: crate::store::Fence) {
    match sealed.reseal(Some(&fence)).await {
        Ok(0) => tracing::debug!("everything secret is sealed with the first key"),
        Ok(values) => tracing::info!(values, "sealed anew with the first key"),
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "not everything secret is sealed with the first key yet; the next term tries again"
        ),
    }
}
