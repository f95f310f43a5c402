//! Watches: a kind's history as one client selects it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use super::history::{Change, Kind, Stored};
use super::selector::Selection;
use super::{Status, WatchEvent};
use crate::store::Revision;

/// How often a quiet watch tells where it stands.
const BOOKMARK_EVERY: Duration = Duration::from_secs(50);
/// Changes taken from the history at once.
const BATCH: usize = 128;

/// What a watch yields inside the API server: objects shared with the cache.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// An object that now matches.
    Added(Arc<Stored>),
    /// An object that matched before and still does.
    Modified(Arc<Stored>),
    /// An object that is gone or no longer matches.
    Deleted(Arc<Stored>),
    /// Everything up to here has been seen; `initial` ends the objects that there were at first.
    Bookmark {
        /// Up to where.
        revision: Revision,
        /// Whether it ends the initial objects.
        initial: bool,
    },
}

impl From<Delivery> for WatchEvent {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Added(stored) => Self::Added(stored.value.clone()),
            Delivery::Modified(stored) => Self::Modified(stored.value.clone()),
            Delivery::Deleted(stored) => Self::Deleted(stored.value.clone()),
            Delivery::Bookmark { revision, .. } => Self::Bookmark(revision.to_string()),
        }
    }
}

/// A running watch.
pub type Deliveries = BoxStream<'static, Result<Delivery, Status>>;

/// What of a kind a client sees.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// "" or a namespace.
    pub namespace: String,
    /// The selectors.
    pub selection: Selection,
}

impl Scope {
    /// Whether the client sees an object.
    pub fn sees(&self, stored: &Stored) -> bool {
        let inside =
            self.namespace.is_empty() || super::meta::namespace(&stored.value) == self.namespace;
        inside && self.selection.matches(&stored.value)
    }

    /// What a change means to the client.
    fn delivery(&self, change: &Change) -> Option<Delivery> {
        let visible = |stored: &&Arc<Stored>| self.sees(stored);
        let before = change.previous.as_ref().filter(visible);
        let now = change.current.as_ref().filter(visible);
        match (before, now) {
            (None, Some(now)) => Some(Delivery::Added(now.clone())),
            (Some(_), Some(now)) => Some(Delivery::Modified(now.clone())),
            (Some(_), None) => change.gone().cloned().map(Delivery::Deleted),
            (None, None) => None,
        }
    }
}

/// Where a watch begins.
pub struct Beginning {
    /// The objects that are told first.
    pub initial: Vec<Arc<Stored>>,
    /// Whether a bookmark ends them.
    pub mark_initial: bool,
    /// Changes after this revision follow.
    pub position: Revision,
}

struct Follower {
    kind: Arc<Kind>,
    changed: watch::Receiver<Revision>,
    scope: Scope,
    position: Revision,
    pending: VecDeque<Delivery>,
    bookmarks: bool,
    next_bookmark: Instant,
    ended: bool,
}

/// Follows a kind from a beginning, as far as a scope sees.
pub fn follow(kind: Arc<Kind>, scope: Scope, beginning: Beginning, bookmarks: bool) -> Deliveries {
    let mut pending: VecDeque<Delivery> =
        beginning.initial.into_iter().map(Delivery::Added).collect();
    if beginning.mark_initial {
        pending.push_back(Delivery::Bookmark {
            revision: beginning.position,
            initial: true,
        });
    }
    let follower = Follower {
        changed: kind.subscribe(),
        kind,
        scope,
        position: beginning.position,
        pending,
        bookmarks,
        next_bookmark: Instant::now() + BOOKMARK_EVERY,
        ended: false,
    };
    stream::unfold(follower, |mut follower| async move {
        let next = follower.next().await?;
        Some((next, follower))
    })
    .boxed()
}

impl Follower {
    async fn next(&mut self) -> Option<Result<Delivery, Status>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(delivery) = self.pending.pop_front() {
                return Some(Ok(delivery));
            }
            self.changed.mark_unchanged();
            let before = self.position;
            match self.kind.since(self.position, BATCH) {
                Ok((changes, position)) => {
                    let told = changes
                        .iter()
                        .filter_map(|change| self.scope.delivery(change));
                    self.pending.extend(told);
                    self.position = position;
                    if !changes.is_empty() {
                        continue;
                    }
                }
                Err(forgotten) => {
                    self.ended = true;
                    return Some(Err(Status::expired(format!(
                        "too old resource version: {before} ({})",
                        forgotten.0
                    ))));
                }
            }
            if self.bookmarks && Instant::now() >= self.next_bookmark {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                return Some(Ok(Delivery::Bookmark {
                    revision: self.position,
                    initial: false,
                }));
            }
            let woken = tokio::time::timeout_at(self.next_bookmark, self.changed.changed()).await;
            if let Ok(Err(_)) = woken {
                self.ended = true;
                return Some(Err(Status::unavailable("the API server is stopping")));
            }
            if !self.bookmarks && Instant::now() >= self.next_bookmark {
                self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
            }
        }
    }
}
