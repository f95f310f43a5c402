//! The one controller loop. A controller is a row: what it watches, how a change maps to keys, and a reconcile function
//! that brings the world to what the key's objects ask for, whatever happened before.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    cache::{Change, Object, key_of},
    clock::{self, Clock},
    informer::Informer,
    queue::{Backoff, Key, Queue},
};
use crate::api::{ObjectKey, Status};

/// Why a reconcile did not get through; the loop logs it and tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or failed.
    #[error("{action}")]
    Api {
        /// What was tried.
        action: String,
        /// What it answered.
        #[source]
        source: Status,
    },
    /// An allocation failed.
    #[error("{action}")]
    Allocation {
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: crate::allocation::Error,
    },
    /// An object could not be put into or taken out of JSON.
    #[error("{action}")]
    Json {
        /// What was tried.
        action: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    /// Another writer was first: nothing is wrong, the next round sees its write.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The API's answer, where it was the API that failed.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => Some(source.code),
            Self::Allocation { .. } | Self::Json { .. } => None,
        }
    }
}

/// What a reconcile that went well leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Look again after this time even if nothing changes.
    After(Duration),
}

/// A reconcile function: level-triggered, idempotent, bounded in what it does in one call.
pub type Reconcile<K> = Arc<dyn Fn(K) -> BoxFuture<'static, Result<Outcome, Error>> + Send + Sync>;

/// One row. See the file's front page.
pub struct Controller<K> {
    name: &'static str,
    queue: Arc<Queue<K>>,
    clock: Arc<dyn Clock>,
    reconcile: Reconcile<K>,
    workers: usize,
}

impl<K: Key> Controller<K> {
    /// A controller that nothing triggers yet.
    pub fn new<F>(
        name: &'static str,
        clock: &Arc<dyn Clock>,
        reconcile: impl Fn(K) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<Outcome, Error>> + Send + 'static,
    {
        let seed = name.bytes().fold(0, |seed: u64, byte| {
            seed.wrapping_mul(31).wrapping_add(u64::from(byte))
        });
        Self {
            name,
            queue: Arc::new(Queue::new(Backoff::default(), seed)),
            clock: Arc::clone(clock),
            reconcile: Arc::new(move |key| Box::pin(reconcile(key))),
            workers: 8,
        }
    }

    /// How many keys are worked on at the same time (8 unless said).
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Works on the keys that each change of these objects maps to.
    #[must_use]
    pub fn watch<T: Object>(
        self,
        informer: &Informer<T>,
        keys: impl Fn(&Change<T>) -> Vec<K> + Send + Sync + 'static,
    ) -> Self {
        let queue = Arc::clone(&self.queue);
        informer.on_change(move |change| {
            for key in keys(change) {
                queue.add(key);
            }
        });
        self
    }

    /// Its queue, for what triggers it otherwise.
    pub fn queue(&self) -> &Arc<Queue<K>> {
        &self.queue
    }

    /// Works until shut down; what is being worked on then is abandoned, as a crash would.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut running = JoinSet::new();
        let mut keys: HashMap<Id, (K, Timestamp)> = HashMap::new();
        loop {
            while running.len() < self.workers {
                let now = self.clock.now();
                let Some(key) = self.queue.take(now) else {
                    break;
                };
                let id = running.spawn((self.reconcile)(key.clone())).id();
                keys.insert(id, (key, now));
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.queue.changed() => {}
                () = self.next_due(), if running.len() < self.workers => {}
                Some(ended) = running.join_next_with_id() => self.ended(ended, &mut keys),
            }
        }
    }

    /// Completes when the next delayed key is due.
    async fn next_due(&self) {
        match self.queue.next_due() {
            Some(when) => {
                let delay = clock::elapsed(self.clock.now(), when);
                self.clock.sleep(delay).await;
            }
            None => std::future::pending().await,
        }
    }

    fn ended(
        &self,
        ended: Result<(Id, Result<Outcome, Error>), JoinError>,
        keys: &mut HashMap<Id, (K, Timestamp)>,
    ) {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(panic) => panic.id(),
        };
        let Some((key, begun)) = keys.remove(&id) else {
            return;
        };
        let controller = self.name;
        let now = self.clock.now();
        match ended {
            Ok((_, Ok(outcome))) => {
                self.queue.done(&key);
                if let Outcome::After(delay) = outcome {
                    // From the time that the reconcile went by: the clock may have jumped since.
                    self.queue.add_at(key, clock::after(begun, delay));
                }
            }
            Ok((_, Err(cause))) if cause.is_conflict() => {
                let (delay, _) = self.queue.failed(&key, now);
                debug!(
                    controller,
                    ?key,
                    cause = chain(&cause),
                    ?delay,
                    "was overtaken"
                );
            }
            Ok((_, Err(cause))) => {
                let (delay, failures) = self.queue.failed(&key, now);
                let cause = chain(&cause);
                warn!(
                    controller,
                    ?key,
                    cause,
                    failures,
                    ?delay,
                    "reconcile failed"
                );
            }
            Err(panic) => {
                let (delay, failures) = self.queue.failed(&key, now);
                error!(controller, ?key, %panic, failures, ?delay, "reconcile panicked");
            }
        }
    }
}

/// An error with its causes, as one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Maps a change to the changed object's own key.
pub fn own_key<T: Object>(change: &Change<T>) -> Vec<ObjectKey> {
    change.key().into_iter().collect()
}

/// Maps a change to the controllers (of one kind) of the object, before and after.
pub fn controller_key<T: Object>(
    kind: &'static str,
) -> impl Fn(&Change<T>) -> Vec<ObjectKey> + Send + Sync + 'static {
    move |change| {
        let mut keys: Vec<ObjectKey> = change
            .sides()
            .filter_map(|object| {
                let metadata = object.metadata();
                let owner = super::meta::controller_of(metadata)?;
                (owner.kind == kind).then(|| ObjectKey {
                    namespace: key_of(metadata).namespace,
                    name: owner.name.clone(),
                })
            })
            .collect();
        keys.dedup();
        keys
    }
}
