//! What an informer knows: the objects of one resource, parsed once, found by key or by index.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use k8s_openapi::{Metadata, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};

use crate::api::ObjectKey;

/// What a cache holds: anything with metadata.
pub trait Object: DeserializeOwned + Send + Sync + 'static {
    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;
}

impl<T: Metadata<Ty = ObjectMeta> + DeserializeOwned + Send + Sync + 'static> Object for T {
    fn metadata(&self) -> &ObjectMeta {
        Metadata::metadata(self)
    }
}

/// An object of which only the metadata matters; all that garbage collection needs of most kinds.
#[derive(Clone, Debug, Deserialize)]
pub struct Partial {
    /// metadata.
    pub metadata: ObjectMeta,
}

impl Object for Partial {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The key that an object's metadata spells.
pub fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone().unwrap_or_default(),
    }
}

/// The store revision of an object; 0 when it has none.
pub fn revision_of(metadata: &ObjectMeta) -> i64 {
    metadata
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

/// A second way to find objects: the words that each is filed under.
pub struct Index<T> {
    /// What it is asked for by.
    pub name: &'static str,
    /// The words of an object.
    pub words: fn(&T) -> Vec<String>,
}

/// What happened to an object; one side is absent when it appeared or went.
pub struct Change<T> {
    /// As it was.
    pub old: Option<Arc<T>>,
    /// As it is.
    pub new: Option<Arc<T>>,
}

impl<T> Change<T> {
    /// The sides that there are, the old one first.
    pub fn sides(&self) -> impl Iterator<Item = &Arc<T>> {
        self.old.iter().chain(self.new.iter())
    }
}

impl<T: Object> Change<T> {
    /// The key of the object; both sides have the same.
    pub fn key(&self) -> Option<ObjectKey> {
        self.sides().next().map(|object| key_of(object.metadata()))
    }
}

struct State<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    filed: Vec<HashMap<String, BTreeSet<ObjectKey>>>,
    revision: i64,
}

/// See the file's front page.
pub struct Cache<T> {
    indexes: Vec<Index<T>>,
    state: RwLock<State<T>>,
}

impl<T: Object> Cache<T> {
    /// An empty cache.
    pub fn new(indexes: Vec<Index<T>>) -> Self {
        let filed = indexes.iter().map(|_| HashMap::new()).collect();
        Self {
            indexes,
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                filed,
                revision: 0,
            }),
        }
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.read().objects.get(key).cloned()
    }

    /// Every object, by namespace and name.
    pub fn all(&self) -> Vec<Arc<T>> {
        self.read().objects.values().cloned().collect()
    }

    /// Every key.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.read().objects.keys().cloned().collect()
    }

    /// The objects of a namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let first = ObjectKey {
            namespace: Some(namespace.to_owned()),
            name: String::new(),
        };
        self.read()
            .objects
            .range(first..)
            .take_while(|(key, _)| key.namespace.as_deref() == Some(namespace))
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// The objects that an index files under a word.
    pub fn find(&self, index: &str, word: &str) -> Vec<Arc<T>> {
        let position = self
            .indexes
            .iter()
            .position(|candidate| candidate.name == index)
            .expect("an index is asked for by the name that it was made with");
        let state = self.read();
        let Some(keys) = state.filed[position].get(word) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything up to this store revision has been seen.
    pub fn revision(&self) -> i64 {
        self.read().revision
    }

    /// Notes that everything up to a revision has been seen.
    pub fn seen(&self, revision: i64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.revision = state.revision.max(revision);
    }

    /// Puts an object in its place and says what was there.
    pub fn put(&self, object: T) -> Change<T> {
        let key = key_of(object.metadata());
        let object = Arc::new(object);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.revision = state.revision.max(revision_of(object.metadata()));
        let old = state.objects.insert(key.clone(), Arc::clone(&object));
        if let Some(old) = &old {
            self.unfile(&mut state, &key, old);
        }
        for (index, filed) in self.indexes.iter().zip(&mut state.filed) {
            for word in (index.words)(&object) {
                filed.entry(word).or_default().insert(key.clone());
            }
        }
        Change {
            old,
            new: Some(object),
        }
    }

    /// Takes an object out and says what was there.
    pub fn remove(&self, key: &ObjectKey, revision: i64) -> Change<T> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.revision = state.revision.max(revision);
        let old = state.objects.remove(key);
        if let Some(old) = &old {
            self.unfile(&mut state, key, old);
        }
        Change { old, new: None }
    }

    fn unfile(&self, state: &mut State<T>, key: &ObjectKey, object: &T) {
        for (index, filed) in self.indexes.iter().zip(&mut state.filed) {
            for word in (index.words)(object) {
                if let Some(keys) = filed.get_mut(&word) {
                    keys.remove(key);
                    if keys.is_empty() {
                        filed.remove(&word);
                    }
                }
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        // Every critical section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(namespace: &str, name: &str, zone: &str, version: i64) -> Partial {
        serde_json::from_value(serde_json::json!({"metadata": {
            "namespace": namespace, "name": name, "resourceVersion": version.to_string(),
            "labels": {"zone": zone},
        }}))
        .expect("metadata parses")
    }

    fn by_zone(object: &Partial) -> Vec<String> {
        object
            .metadata
            .labels
            .iter()
            .flatten()
            .map(|(_, zone)| zone.clone())
            .collect()
    }

    #[test]
    fn indexes_follow_their_objects() {
        let cache = Cache::new(vec![Index {
            name: "zone",
            words: by_zone,
        }]);
        cache.put(object("default", "a", "east", 2));
        cache.put(object("default", "b", "east", 3));
        cache.put(object("other", "c", "west", 4));
        assert_eq!(cache.find("zone", "east").len(), 2);
        assert_eq!(cache.in_namespace("default").len(), 2);

        let change = cache.put(object("default", "a", "west", 5));
        assert!(change.old.is_some());
        assert_eq!(cache.find("zone", "east").len(), 1);
        assert_eq!(cache.find("zone", "west").len(), 2);

        let key = change.key().expect("there is an object");
        cache.remove(&key, 9);
        assert!(cache.get(&key).is_none());
        assert_eq!(cache.find("zone", "west").len(), 1);
        assert_eq!(cache.revision(), 9);
    }
}
