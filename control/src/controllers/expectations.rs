//! What a controller has written and its cache has not shown yet. Until the cache catches up, acting on it would do the
//! same thing twice: make a pod again, or delete a second one.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{
    cache::{Cache, Object},
    meta,
};
use crate::api::ObjectKey;

/// A write that the cache is to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An object that was created at this store revision.
    Created {
        /// Its key.
        key: ObjectKey,
        /// metadata.uid.
        uid: String,
        /// The revision that the API answered with.
        revision: i64,
    },
    /// An object that was deleted, or marked for deletion.
    Deleted {
        /// Its key.
        key: ObjectKey,
        /// metadata.uid.
        uid: String,
    },
}

impl Expected {
    fn is_shown<T: Object>(&self, cache: &Cache<T>) -> bool {
        match self {
            // A cache that has seen a later revision has also seen an object that came and went.
            Self::Created { key, uid, revision } => {
                cache.revision() >= *revision
                    || cache
                        .get(key)
                        .is_some_and(|object| meta::uid(object.metadata()) == uid)
            }
            Self::Deleted { key, uid } => cache.get(key).is_none_or(|object| {
                meta::uid(object.metadata()) != uid || meta::is_terminating(object.metadata())
            }),
        }
    }
}

/// The writes that are expected to show, by the key of the object that they were made for.
#[derive(Default)]
pub struct Expectations {
    pending: Mutex<HashMap<ObjectKey, Vec<Expected>>>,
    /// The revision of the last write of each object itself.
    written: Mutex<HashMap<ObjectKey, i64>>,
}

impl Expectations {
    /// Notes a write made for an object.
    pub fn expect(&self, owner: &ObjectKey, expected: Expected) {
        self.lock().entry(owner.clone()).or_default().push(expected);
    }

    /// Whether the cache shows every write made for the object.
    pub fn are_met<T: Object>(&self, owner: &ObjectKey, cache: &Cache<T>) -> bool {
        let mut pending = self.lock();
        let Some(expected) = pending.get_mut(owner) else {
            return true;
        };
        expected.retain(|expected| !expected.is_shown(cache));
        if expected.is_empty() {
            pending.remove(owner);
            return true;
        }
        false
    }

    /// Notes that the object itself was written.
    pub fn wrote(&self, owner: &ObjectKey, revision: i64) {
        self.written().insert(owner.clone(), revision);
    }

    /// Whether an object as of a revision shows the last write of it: what was counted into its status must not be
    /// counted again.
    pub fn is_current(&self, owner: &ObjectKey, revision: i64) -> bool {
        self.written()
            .get(owner)
            .is_none_or(|written| *written <= revision)
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, owner: &ObjectKey) {
        self.lock().remove(owner);
        self.written().remove(owner);
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, i64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Vec<Expected>>> {
        // Every critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controllers::cache::Partial;

    fn pod(name: &str, uid: &str, version: &str, terminating: bool) -> Partial {
        let mut object = json!({"metadata": {
            "namespace": "default", "name": name, "uid": uid, "resourceVersion": version,
        }});
        if terminating {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        serde_json::from_value(object).expect("metadata parses")
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey {
            namespace: Some("default".to_owned()),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_created_object_is_met_when_seen_or_passed_by() {
        let cache: Cache<Partial> = Cache::new(Vec::new());
        let expectations = Expectations::default();
        let expected = Expected::Created {
            key: key("a"),
            uid: "1".to_owned(),
            revision: 7,
        };
        expectations.expect(&key("set"), expected.clone());
        assert!(!expectations.are_met(&key("set"), &cache));
        cache.put(pod("a", "1", "7", false));
        assert!(expectations.are_met(&key("set"), &cache));

        expectations.expect(
            &key("set"),
            Expected::Created {
                key: key("b"),
                uid: "2".to_owned(),
                revision: 8,
            },
        );
        assert!(!expectations.are_met(&key("set"), &cache));
        cache.seen(9);
        assert!(expectations.are_met(&key("set"), &cache));
    }

    #[test]
    fn a_deleted_object_is_met_when_gone_replaced_or_terminating() {
        let cache: Cache<Partial> = Cache::new(Vec::new());
        let expectations = Expectations::default();
        for after in [None, Some(("2", false)), Some(("1", true))] {
            cache.put(pod("a", "1", "3", false));
            expectations.expect(
                &key("set"),
                Expected::Deleted {
                    key: key("a"),
                    uid: "1".to_owned(),
                },
            );
            assert!(!expectations.are_met(&key("set"), &cache));
            match after {
                None => drop(cache.remove(&key("a"), 4)),
                Some((uid, terminating)) => drop(cache.put(pod("a", uid, "5", terminating))),
            }
            assert!(expectations.are_met(&key("set"), &cache), "{after:?}");
        }
    }
}
