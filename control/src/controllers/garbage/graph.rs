//! Who owns whom, over all kinds, kept up to date change by change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::{
    api::{ObjectKey, ResourceId},
    controllers::{cache::key_of, meta},
};

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    /// Its kind.
    pub resource: ResourceId,
    /// Where it lives.
    pub key: ObjectKey,
}

/// As much of an object as collection depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// metadata.uid.
    pub uid: String,
    /// metadata.resourceVersion.
    pub resource_version: Option<String>,
    /// metadata.ownerReferences.
    pub owners: Vec<OwnerReference>,
    /// metadata.finalizers.
    pub finalizers: Vec<String>,
    /// Whether its deletion was asked for.
    pub is_terminating: bool,
}

impl Known {
    /// Reads metadata.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            uid: meta::uid(metadata).to_owned(),
            resource_version: metadata.resource_version.clone(),
            owners: metadata.owner_references.clone().unwrap_or_default(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
            is_terminating: meta::is_terminating(metadata),
        }
    }

    /// Whether its deletion waits for this finalizer.
    pub fn waits_for(&self, finalizer: &str) -> bool {
        self.is_terminating && self.finalizers.iter().any(|waiting| waiting == finalizer)
    }
}

#[derive(Default)]
struct State {
    items: HashMap<Item, Known>,
    uids: HashMap<String, Item>,
    dependents: HashMap<String, BTreeSet<Item>>,
}

/// See the file's front page.
#[derive(Default)]
pub struct Graph {
    state: Mutex<State>,
}

impl Graph {
    /// Takes in a change and says which items are to be looked at.
    pub fn change(
        &self,
        resource: ResourceId,
        old: Option<&ObjectMeta>,
        new: Option<&ObjectMeta>,
    ) -> Vec<Item> {
        let Some(metadata) = new.or(old) else {
            return Vec::new();
        };
        let item = Item {
            resource,
            key: key_of(metadata),
        };
        let mut state = self.lock();
        let before = state.items.get(&item).cloned();
        let mut affected = BTreeSet::new();
        if let Some(before) = &before {
            state.uids.remove(&before.uid);
            for owner in &before.owners {
                if let Some(dependents) = state.dependents.get_mut(&owner.uid) {
                    dependents.remove(&item);
                    if dependents.is_empty() {
                        state.dependents.remove(&owner.uid);
                    }
                }
                // An owner that waits for its dependents to go looks again.
                affected.extend(state.uids.get(&owner.uid).cloned());
            }
        }
        let after = new.map(Known::of);
        if let Some(after) = after.clone() {
            state.uids.insert(after.uid.clone(), item.clone());
            for owner in &after.owners {
                let dependents = state.dependents.entry(owner.uid.clone()).or_default();
                dependents.insert(item.clone());
            }
            state.items.insert(item.clone(), after);
        } else {
            state.items.remove(&item);
        }
        let is_same_object = match (&before, &after) {
            (Some(before), Some(after)) => before.uid == after.uid,
            _ => false,
        };
        if let Some(before) = before.filter(|_| !is_same_object) {
            affected.extend(
                state
                    .dependents
                    .get(&before.uid)
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
        let concerns = |known: &Known| !known.owners.is_empty() || known.is_terminating;
        if after.as_ref().is_some_and(concerns) {
            affected.insert(item);
        }
        affected.into_iter().collect()
    }

    /// What is known of an item.
    pub fn known(&self, item: &Item) -> Option<Known> {
        self.lock().items.get(item).cloned()
    }

    /// What is known of the object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<Known> {
        let state = self.lock();
        let item = state.uids.get(uid)?;
        state.items.get(item).cloned()
    }

    /// The objects that name this uid among their owners.
    pub fn dependents(&self, uid: &str) -> Vec<(Item, Known)> {
        let state = self.lock();
        let items = state.dependents.get(uid).into_iter().flatten();
        items
            .filter_map(|item| Some((item.clone(), state.items.get(item)?.clone())))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
