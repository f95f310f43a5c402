//! The watch cache: one watch on the store feeds the histories of all kinds. Because every write moves the store's one
//! revision and all writes come through the one watch, a reader who waits for a revision sees every kind as of then.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::history::{Kind, Stored};
use super::{ResourceId, Status};
use crate::resource::Table;
use crate::store::{self, Change, RangeQuery, Revision, Store, WatchEvent};

/// Everything is watched, not only the registry, so that foreign writes move the cache's revision too.
const WATCHED: &[u8] = b"/";
/// Where the objects are.
const REGISTRY: &str = "/registry/";
/// Objects read at once when the cache is filled.
const PAGE: usize = 1000;
/// How long a reader waits for the cache to come up to the store.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the feeder waits before it tries the store again.
const RETRY: Duration = Duration::from_millis(200);

/// All kinds' objects and recent changes.
pub struct Cache {
    shared: Arc<Shared>,
    _feeder: AbortOnDropHandle<()>,
}

struct Shared {
    store: Arc<dyn Store>,
    /// By "GROUP/PLURAL/", as in the keys of the store.
    by_prefix: HashMap<String, Arc<Kind>>,
    by_id: HashMap<ResourceId, Arc<Kind>>,
    seen: watch::Sender<Revision>,
}

impl Cache {
    /// Fills the cache and follows the store from there.
    pub async fn start(store: Arc<dyn Store>, table: &Table) -> Result<Self, store::Error> {
        let mut by_prefix = HashMap::new();
        let mut by_id = HashMap::new();
        for row in table.rows() {
            let prefix = row.prefix();
            let prefix = prefix.strip_prefix(REGISTRY).unwrap_or(&prefix).to_owned();
            let kind: &Arc<Kind> = by_prefix.entry(prefix).or_default();
            by_id.insert(row.id, kind.clone());
        }
        let shared = Arc::new(Shared {
            store,
            by_prefix,
            by_id,
            seen: watch::Sender::new(0),
        });
        shared.load().await?;
        let feeder = tokio::spawn(feed(shared.clone()));
        Ok(Self {
            shared,
            _feeder: AbortOnDropHandle::new(feeder),
        })
    }

    /// A kind's objects and history.
    pub fn kind(&self, id: ResourceId) -> Option<&Arc<Kind>> {
        self.shared.by_id.get(&id)
    }

    /// Waits until the cache shows at least what the store holds now.
    pub async fn catch_up(&self) -> Result<(), Status> {
        let current = self.shared.store.revision().await?;
        self.wait_for(current).await
    }

    /// Waits until the cache shows at least a revision.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), Status> {
        let mut seen = self.shared.seen.subscribe();
        let reached = seen.wait_for(|seen| *seen >= revision);
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(Status::timeout(format!(
                "Too large resource version: {revision}, current: {}",
                *self.shared.seen.borrow()
            ))),
        }
    }
}

/// Splits "/registry/apps/deployments/ns/name" into "apps/deployments/" and "ns/name".
fn split_key(key: &str) -> Option<(&str, &str)> {
    let rest = key.strip_prefix(REGISTRY)?;
    let group = rest.find('/')? + 1;
    let plural = rest[group..].find('/')? + 1;
    Some(rest.split_at(group + plural))
}

fn parse(key: &str, value: &[u8], revision: Revision) -> Option<Stored> {
    match serde_json::from_slice::<Value>(value) {
        Ok(object) => Some(Stored::new(object, revision)),
        Err(error) => {
            tracing::error!(key, revision, %error, "the store holds an object that can't be read");
            None
        }
    }
}

fn text(key: &Bytes) -> Option<&str> {
    std::str::from_utf8(key).ok()
}

impl Shared {
    /// Reads everything as of one revision.
    async fn load(&self) -> Result<(), store::Error> {
        let mut objects: HashMap<&str, BTreeMap<String, Arc<Stored>>> = HashMap::new();
        let mut query = RangeQuery {
            prefix: Bytes::from_static(REGISTRY.as_bytes()),
            after: None,
            limit: Some(PAGE),
            revision: None,
        };
        let revision = loop {
            let page = self.store.range(query.clone()).await?;
            for item in &page.items {
                let Some((prefix, name)) = text(&item.key).and_then(split_key) else {
                    continue;
                };
                let Some((prefix, _)) = self.by_prefix.get_key_value(prefix) else {
                    continue;
                };
                if let Some(stored) = parse(name, &item.value, item.mod_revision) {
                    let kind = objects.entry(prefix).or_default();
                    kind.insert(name.to_owned(), Arc::new(stored));
                }
            }
            let last = page.items.last().map(|item| item.key.clone());
            match last {
                Some(last) if page.remaining > 0 => query.after = Some(last),
                _ => break page.revision,
            }
            query.revision = Some(page.revision);
        };
        for (prefix, kind) in &self.by_prefix {
            kind.reset(
                objects.remove(prefix.as_str()).unwrap_or_default(),
                revision,
            );
        }
        self.seen.send_replace(revision);
        Ok(())
    }

    fn apply(&self, change: Change) -> Revision {
        let (key, value, revision) = match change {
            Change::Put { current, .. } => (current.key, Some(current.value), current.mod_revision),
            Change::Delete { key, revision, .. } => (key, None, revision),
        };
        if let Some((prefix, name)) = text(&key).and_then(split_key)
            && let Some(kind) = self.by_prefix.get(prefix)
        {
            let stored = value.and_then(|value| parse(name, &value, revision));
            kind.apply(name.to_owned(), stored, revision);
        }
        revision
    }

    fn advance(&self, revision: Revision) {
        for kind in self.by_prefix.values() {
            kind.advance(revision);
        }
        self.seen
            .send_if_modified(|seen| std::mem::replace(seen, revision.max(*seen)) < revision);
    }

    /// Follows the store until its watch fails.
    async fn follow(&self) -> Result<(), store::Error> {
        let from = *self.seen.borrow() + 1;
        let mut watch = self.store.watch(WATCHED, Some(from)).await?;
        while let Some(event) = watch.next().await {
            let revision = match event? {
                WatchEvent::Changes(changes) => changes
                    .into_iter()
                    .map(|change| self.apply(change))
                    .max()
                    .unwrap_or_default(),
                WatchEvent::Progress(revision) => revision,
            };
            self.advance(revision);
        }
        Ok(())
    }
}

/// Keeps following the store; begins anew where the history in between is lost.
async fn feed(shared: Arc<Shared>) {
    loop {
        match shared.follow().await {
            Ok(()) => tracing::warn!("the store's watch ended; watching again"),
            Err(store::Error::Compacted { .. }) => {
                tracing::warn!(
                    "the store has compacted what the cache missed; reading everything anew"
                );
                if let Err(error) = shared.load().await {
                    tracing::warn!(%error, "the cache can't be filled; trying again");
                }
            }
            Err(error) => tracing::warn!(%error, "the store's watch failed; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_split_into_kind_and_object() {
        assert_eq!(
            split_key("/registry/core/pods/default/web"),
            Some(("core/pods/", "default/web"))
        );
        assert_eq!(
            split_key("/registry/core/nodes/n1"),
            Some(("core/nodes/", "n1"))
        );
        assert_eq!(split_key("/portolan/pki/ca"), None);
    }
}
