//! One kind's objects in memory with its recent changes: what reads are answered from and watches follow. Watchers pull
//! from the history at their own pace, so that a slow one costs the others nothing.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{managed, meta};
use crate::store::Revision;

/// How many changes are kept at most.
const HISTORY_LIMIT: usize = 4096;
/// How many changes are kept however old they are.
const HISTORY_FLOOR: usize = 256;
/// How long changes beyond the floor are kept.
const HISTORY_AGE: Duration = Duration::from_mins(5);

/// An object as it was stored at a revision, with its resourceVersion filled in.
#[derive(Debug)]
pub struct Stored {
    /// The revision of its write.
    pub revision: Revision,
    /// The object.
    pub value: Value,
    json: OnceLock<Bytes>,
}

impl Stored {
    /// An object at a revision.
    pub fn new(mut value: Value, revision: Revision) -> Self {
        let version = Value::from(revision.to_string());
        meta::set_metadata(&mut value, "resourceVersion", Some(version));
        Self {
            revision,
            value,
            json: OnceLock::new(),
        }
    }

    /// Its JSON, serialized once for all who read it.
    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| {
            let text = serde_json::to_vec(&*managed::shown(&self.value));
            Bytes::from(text.expect("a JSON value always serializes"))
        })
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// When.
    pub revision: Revision,
    /// What was there before.
    pub previous: Option<Arc<Stored>>,
    /// What is there now.
    pub current: Option<Arc<Stored>>,
    at: Instant,
    gone: OnceLock<Option<Arc<Stored>>>,
}

impl Change {
    /// The object before the change, at the version of the change: what a watcher is told that no longer sees it.
    pub fn gone(&self) -> Option<&Arc<Stored>> {
        let last = || {
            let previous = self.previous.as_ref()?;
            Some(Arc::new(Stored::new(previous.value.clone(), self.revision)))
        };
        self.gone.get_or_init(last).as_ref()
    }
}

/// A consistent look at a kind's objects.
pub struct Snapshot {
    /// The objects by their keys ("namespace/name" or "name").
    pub items: Vec<(String, Arc<Stored>)>,
    /// Everything up to this revision is in, nothing after it.
    pub revision: Revision,
}

/// The changes after a position were forgotten; the oldest position that can be followed.
#[derive(Debug, PartialEq, Eq)]
pub struct Forgotten(pub Revision);

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Arc<Stored>>,
    history: VecDeque<Arc<Change>>,
    /// Every change after this revision is in the history.
    oldest: Revision,
    /// Every change up to this revision is in.
    seen: Revision,
}

/// A kind's objects and recent changes.
pub struct Kind {
    inner: Mutex<Inner>,
    changed: watch::Sender<Revision>,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Kind {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change to the inner state is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins anew with what the store holds at a revision.
    pub fn reset(&self, objects: BTreeMap<String, Arc<Stored>>, revision: Revision) {
        let mut inner = self.lock();
        inner.objects = objects;
        inner.history.clear();
        inner.oldest = revision;
        inner.seen = revision;
        drop(inner);
        self.changed.send_replace(revision);
    }

    /// Takes in one change.
    pub fn apply(&self, key: String, current: Option<Stored>, revision: Revision) {
        let mut inner = self.lock();
        let current = current.map(Arc::new);
        let previous = match &current {
            Some(stored) => inner.objects.insert(key, stored.clone()),
            None => inner.objects.remove(&key),
        };
        if previous.is_none() && current.is_none() {
            return;
        }
        inner.history.push_back(Arc::new(Change {
            revision,
            previous,
            current,
            at: Instant::now(),
            gone: OnceLock::new(),
        }));
        inner.trim();
    }

    /// Everything up to a revision has been applied; wakes the watchers if this kind has changed.
    pub fn advance(&self, revision: Revision) {
        let mut inner = self.lock();
        inner.seen = inner.seen.max(revision);
        let last = inner.history.back().map_or(0, |change| change.revision);
        drop(inner);
        self.changed.send_if_modified(|told| {
            let news = last > *told;
            *told = last.max(*told);
            news
        });
    }

    /// Tells when something has changed.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.lock().objects.get(key).cloned()
    }

    /// The objects whose keys begin with a prefix.
    pub fn snapshot(&self, prefix: &str) -> Snapshot {
        let inner = self.lock();
        let from = (Bound::Included(prefix.to_owned()), Bound::Unbounded);
        let items = inner
            .objects
            .range(from)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, stored)| (key.clone(), stored.clone()))
            .collect();
        Snapshot {
            items,
            revision: inner.seen,
        }
    }

    /// About `limit` changes after a position, all of a revision together, and up to where nothing is missing.
    pub fn since(
        &self,
        position: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Change>>, Revision), Forgotten> {
        let inner = self.lock();
        if position < inner.oldest {
            return Err(Forgotten(inner.oldest));
        }
        let start = inner
            .history
            .partition_point(|change| change.revision <= position);
        let mut changes: Vec<Arc<Change>> = Vec::new();
        for change in inner.history.range(start..) {
            let full = changes.len() >= limit;
            if full
                && changes
                    .last()
                    .is_some_and(|last| last.revision != change.revision)
            {
                break;
            }
            changes.push(change.clone());
        }
        let complete = start + changes.len() == inner.history.len();
        let last = changes.last().map_or(position, |change| change.revision);
        // A revision is complete once `advance` has passed it; until then its later changes may still be coming.
        changes.retain(|change| change.revision <= inner.seen);
        let reached = if complete {
            inner.seen
        } else {
            last.min(inner.seen)
        };
        // One who follows from a write that is not in yet must not be told of that write.
        Ok((changes, reached.max(position)))
    }
}

impl Inner {
    fn trim(&mut self) {
        let now = Instant::now();
        while self.history.len() > HISTORY_FLOOR {
            let Some(first) = self.history.front() else {
                return;
            };
            if self.history.len() <= HISTORY_LIMIT && now.duration_since(first.at) < HISTORY_AGE {
                return;
            }
            self.oldest = first.revision;
            self.history.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(revision: Revision) -> Stored {
        Stored::new(json!({"metadata": {}}), revision)
    }

    #[test]
    fn changes_are_followed_in_order_and_forgotten_in_the_end() {
        let kind = Kind::default();
        kind.reset(BTreeMap::new(), 10);
        for revision in 11..=13 {
            kind.apply("a/x".to_owned(), Some(stored(revision)), revision);
            kind.advance(revision);
        }
        let (changes, position) = kind.since(11, 100).expect("kept");
        let revisions: Vec<_> = changes.iter().map(|change| change.revision).collect();
        assert_eq!((revisions, position), (vec![12, 13], 13));
        let (changes, position) = kind.since(10, 1).expect("kept");
        assert_eq!((changes.len(), position), (1, 11));
        assert_eq!(kind.since(9, 1).err(), Some(Forgotten(10)));
        for revision in 14..14 + 5000 {
            kind.apply("a/x".to_owned(), Some(stored(revision)), revision);
            kind.advance(revision);
        }
        assert!(kind.since(13, 1).is_err());
        assert_eq!(
            kind.since(5013, 9).map(|(changes, at)| (changes.len(), at)),
            Ok((0, 5013)).map_err(Forgotten)
        );
    }

    #[test]
    fn a_follower_is_not_told_of_the_write_that_it_follows_from() {
        let kind = Kind::default();
        kind.reset(BTreeMap::new(), 10);
        let position = |from| kind.since(from, 9).map(|(changes, at)| (changes.len(), at));
        assert_eq!(position(12), Ok((0, 12)), "12 is written, but not in yet");
        kind.apply("x".to_owned(), Some(stored(12)), 12);
        kind.advance(12);
        assert_eq!(position(12), Ok((0, 12)));
        assert_eq!(position(11), Ok((1, 12)));
    }

    #[test]
    fn a_deletion_shows_the_last_state_at_its_own_version() {
        let kind = Kind::default();
        kind.apply("x".to_owned(), Some(stored(3)), 3);
        kind.apply("x".to_owned(), None, 4);
        kind.advance(4);
        let (changes, _) = kind.since(3, 9).expect("kept");
        let gone = changes[0].gone().expect("it was there");
        assert_eq!(meta::resource_version(&gone.value), "4");
        assert!(kind.get("x").is_none());
    }
}
