//! The election: whoever makes the leader's key leads until that key is gone.
//!
//! The key lives under a lease of the store, so a leader that dies leaves it behind for no longer than [`TTL`], and one
//! that ends takes it along at once. The revision that made the key is the term's mark: every write of the term carries a
//! compare on it, so a leader that has lost the key without knowing it can't write any more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::store::{Error, Fence, Guard, LeaseId, Store, WatchEvent, Written};

/// Where the leader's name is.
pub const LEADER_KEY: &[u8] = b"/portolan/leader";
/// How long a dead server's keys outlive it; etcd grants no less than 1.5 of its election timeout.
pub const TTL: Duration = Duration::from_secs(4);
const RENEW_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);
/// How soon the key is looked at again though the watch said nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One server that would lead.
pub struct Candidate {
    store: Arc<dyn Store>,
    name: String,
    leader: watch::Sender<Option<String>>,
}

/// One time of leading.
#[derive(Debug)]
pub struct Term {
    /// What every write of this term carries.
    pub fence: Fence,
    lease: LeaseId,
    begun: Instant,
}

impl Candidate {
    /// A server with a name that no other life of any server has.
    pub fn new(store: Arc<dyn Store>, name: String) -> Self {
        Self {
            store,
            name,
            leader: watch::Sender::new(None),
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who leads, as this candidate has seen it last.
    pub fn leader(&self) -> watch::Receiver<Option<String>> {
        self.leader.subscribe()
    }

    /// Waits for as long as another leads, then leads.
    pub async fn campaign(&self) -> Term {
        loop {
            match self.attempt().await {
                Ok(Some(term)) => {
                    self.leader.send_replace(Some(self.name.clone()));
                    return term;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "can't stand for election; trying again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn attempt(&self) -> Result<Option<Term>, Error> {
        // The watch begins before the look, so that no end of a term is missed.
        let mut watch = self.store.watch(LEADER_KEY, None).await?;
        if let Some(found) = self.store.get(LEADER_KEY).await? {
            let leader = String::from_utf8_lossy(&found.value).into_owned();
            if self.leader.send_if_modified(|known| {
                let is_news = known.as_ref() != Some(&leader);
                *known = Some(leader.clone());
                is_news
            }) {
                tracing::info!(leader, "another server leads");
            }
            let changed = async {
                while let Some(event) = watch.next().await {
                    if matches!(event?, WatchEvent::Changes(_)) {
                        break;
                    }
                }
                Ok(None)
            };
            return tokio::time::timeout(LOOK_AGAIN, changed)
                .await
                .unwrap_or(Ok(None));
        }
        let begun = Instant::now();
        let lease = self.store.lease_grant(TTL).await?;
        let name = Bytes::from(self.name.clone());
        let put = self.store.put(LEADER_KEY, name, Guard::Absent, Some(lease));
        match put.await {
            Ok(Written::Done(create_revision)) => Ok(Some(Term {
                fence: Fence {
                    key: Bytes::from_static(LEADER_KEY),
                    create_revision,
                },
                lease,
                begun,
            })),
            refused => {
                // Should the key have been made though we were told otherwise, it goes with the lease.
                self.end(lease).await;
                refused.map(|_| None)
            }
        }
    }

    /// Keeps the term; returns when it is over.
    pub async fn hold(&self, term: &Term) {
        let mut valid_until = term.begun + TTL;
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let asked = Instant::now();
            match tokio::time::timeout_at(valid_until, self.renew(term)).await {
                Ok(Ok(true)) => valid_until = asked + TTL,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "can't renew the term; trying again"
                ),
                Err(_) => {
                    tracing::warn!("the store did not answer while the term could be renewed");
                    return;
                }
            }
        }
    }

    async fn renew(&self, term: &Term) -> Result<bool, Error> {
        match self.store.lease_keep_alive(term.lease).await {
            Ok(()) => {}
            Err(Error::NoSuchLease(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        let found = self.store.get(&term.fence.key).await?;
        Ok(found.is_some_and(|kv| kv.create_revision == term.fence.create_revision))
    }

    /// Ends the term, so that another server takes over at once.
    pub async fn resign(&self, term: Term) {
        self.leader.send_replace(None);
        self.end(term.lease).await;
    }

    async fn end(&self, lease: LeaseId) {
        end(&*self.store, lease).await;
    }
}

/// Ends a lease and what lives under it, as far as the store can be reached.
pub async fn end(store: &dyn Store, lease: LeaseId) {
    match store.lease_revoke(lease).await {
        Ok(()) | Err(Error::NoSuchLease(_)) => {}
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "a lease is left to expire"
        ),
    }
}

/// Takes away what an earlier life of the only server has left: nobody else can have the store open.
pub async fn clear(store: &dyn Store, prefix: &[u8]) -> Result<(), Error> {
    let query = crate::store::RangeQuery {
        prefix: Bytes::copy_from_slice(prefix),
        ..Default::default()
    };
    for left in store.range(query).await?.items {
        store
            .delete(&left.key, Guard::At(left.mod_revision))
            .await?;
    }
    Ok(())
}
