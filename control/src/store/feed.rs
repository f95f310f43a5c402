//! Recent history in memory, and watches that pull from it.
//!
//! Nobody queues for a watcher: each holds the revision that it wants next and reads from one shared ring when told
//! that there is more. So a slow watcher costs no memory and slows nobody; one that has fallen out of the ring reads
//! the backend's history until it has caught up, or learns that its revision is compacted.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Change, Error, KeyValue, Revision, Watch, WatchEvent};

/// How often a watcher without changes of its own is told how far the store has come.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How many changes a watcher is given at once, apart from those that complete a revision.
pub(super) const CHUNK: usize = 256;

/// How much the ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Changes.
    pub changes: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            changes: 8192,
            bytes: 16 << 20,
        }
    }
}

/// A part of the history, in order and in whole revisions.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The changes under the prefix that was asked for.
    pub changes: Vec<Change>,
    /// Where to read on: everything before has been seen.
    pub next: Revision,
}

/// The backend's own memory of changes, for watchers whose revision the ring no longer holds.
#[async_trait]
pub(super) trait History: Send + Sync + 'static {
    /// Reads some changes at and after `from`, or fails with [`Error::Compacted`].
    async fn read(&self, prefix: &Bytes, from: Revision) -> Result<Chunk, Error>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    revision: Revision,
    closed: bool,
}

#[derive(Debug)]
struct Ring {
    /// Every change at this revision and after, up to the head, is in `changes`.
    start: Revision,
    head: Revision,
    changes: VecDeque<Change>,
    bytes: usize,
    limits: Limits,
}

/// The ring and the word that it has grown.
#[derive(Debug)]
pub(super) struct Feed {
    ring: RwLock<Ring>,
    head: watch::Sender<Head>,
}

impl Feed {
    /// A feed whose first change will be at `start` or later.
    pub fn new(start: Revision, limits: Limits) -> Self {
        let head = start - 1;
        Self {
            ring: RwLock::new(Ring {
                start,
                head,
                changes: VecDeque::new(),
                bytes: 0,
                limits,
            }),
            head: watch::Sender::new(Head {
                revision: head,
                closed: false,
            }),
        }
    }

    /// Adds the changes up to and with revision `head`, and wakes the watchers.
    pub fn publish(&self, changes: impl IntoIterator<Item = Change>, head: Revision) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            ring.bytes += size(&change);
            ring.changes.push_back(change);
        }
        ring.head = head;
        ring.evict();
        drop(ring);
        self.head.send_modify(|state| state.revision = head);
    }

    /// Begins again at `start`, after a gap that the backend can't fill.
    pub fn reset(&self, start: Revision) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        ring.changes.clear();
        ring.bytes = 0;
        ring.start = start;
        ring.head = start - 1;
        drop(ring);
        self.head.send_modify(|state| state.revision = start - 1);
    }

    /// Forgets what is compacted, so that watches from there are refused as the backend refuses them.
    pub fn compact(&self, revision: Revision) {
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        while ring
            .changes
            .front()
            .is_some_and(|change| change.revision() < revision)
        {
            ring.pop();
        }
        ring.start = ring.start.max(revision);
    }

    /// Ends every watch.
    pub fn close(&self) {
        self.head.send_modify(|state| state.closed = true);
    }

    /// The revision of the last change published.
    pub fn revision(&self) -> Revision {
        self.head.borrow().revision
    }

    /// Changes at and after `from`, or `None` when the ring does not reach back that far.
    fn read(&self, prefix: &[u8], from: Revision) -> Option<Chunk> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if from < ring.start {
            return None;
        }
        let first = ring
            .changes
            .partition_point(|change| change.revision() < from);
        let mut changes: Vec<Change> = Vec::new();
        for change in ring.changes.range(first..) {
            let full = changes.len() >= CHUNK;
            if full && changes.last().map(Change::revision) != Some(change.revision()) {
                let next = change.revision();
                return Some(Chunk { changes, next });
            }
            if change.key().starts_with(prefix) {
                changes.push(change.clone());
            }
        }
        let next = from.max(ring.head + 1);
        Some(Chunk { changes, next })
    }
}

impl Ring {
    fn pop(&mut self) -> Option<Revision> {
        let change = self.changes.pop_front()?;
        self.bytes -= size(&change);
        Some(change.revision())
    }

    /// Drops the oldest revisions, each as a whole, until the limits hold; the newest stays.
    fn evict(&mut self) {
        while self.changes.len() > self.limits.changes || self.bytes > self.limits.bytes {
            let Some(oldest) = self.changes.front().map(Change::revision) else {
                return;
            };
            if oldest == self.head {
                return;
            }
            while self.changes.front().map(Change::revision) == Some(oldest) {
                self.pop();
            }
            self.start = self.start.max(oldest + 1);
        }
    }
}

fn size(change: &Change) -> usize {
    let value = |kv: &KeyValue| kv.value.len() + kv.key.len();
    match change {
        Change::Put { current, previous } => value(current) + previous.as_ref().map_or(0, value),
        Change::Delete { key, previous, .. } => key.len() + previous.as_ref().map_or(0, value),
    }
}

struct Follower {
    feed: Arc<Feed>,
    history: Arc<dyn History>,
    head: watch::Receiver<Head>,
    prefix: Bytes,
    /// The revision to read next.
    next: Revision,
    /// How far the watcher has been told that it has seen everything.
    told: Revision,
    /// When it may be told again without a change.
    tell_at: Instant,
}

/// Follows the changes under `prefix` from revision `from` on.
pub(super) fn follow(
    feed: Arc<Feed>,
    history: Arc<dyn History>,
    prefix: Bytes,
    from: Revision,
) -> Watch {
    let follower = Follower {
        head: feed.head.subscribe(),
        feed,
        history,
        prefix,
        next: from,
        told: from - 1,
        tell_at: Instant::now() + PROGRESS_INTERVAL,
    };
    Box::pin(stream::try_unfold(follower, async |mut follower| {
        let event = follower.advance().await?;
        Ok(Some((event, follower)))
    }))
}

impl Follower {
    async fn advance(&mut self) -> Result<WatchEvent, Error> {
        loop {
            let head = *self.head.borrow_and_update();
            if head.closed {
                return Err(Error::Unavailable("the store is closed".into()));
            }
            let chunk = match self.feed.read(&self.prefix, self.next) {
                Some(chunk) => chunk,
                None => self.history.read(&self.prefix, self.next).await?,
            };
            self.next = chunk.next;
            if !chunk.changes.is_empty() {
                self.told = self.next - 1;
                self.tell_at = Instant::now() + PROGRESS_INTERVAL;
                return Ok(WatchEvent::Changes(chunk.changes));
            }
            if self.next > head.revision
                && let Some(progress) = self.wait().await?
            {
                return Ok(progress);
            }
        }
    }

    /// Waits for more, or until it is time to say that there was nothing.
    async fn wait(&mut self) -> Result<Option<WatchEvent>, Error> {
        let untold = self.next - 1 > self.told;
        tokio::select! {
            changed = self.head.changed() => {
                changed.map_err(|error| Error::Unavailable(Box::new(error)))?;
                Ok(None)
            }
            () = tokio::time::sleep_until(self.tell_at), if untold => {
                self.told = self.next - 1;
                self.tell_at = Instant::now() + PROGRESS_INTERVAL;
                Ok(Some(WatchEvent::Progress(self.told)))
            }
        }
    }
}
