//! A store that was restored from a backup counts on from where the lost one may have been.
//!
//! Clients hold revisions of the lost store, as resourceVersions. In a new etcd or a new file the same numbers would come
//! again and mean something else; so a restore writes down a base, and every revision that servers show is the backend's
//! plus that base. What is below the base is history that nobody has: it counts as compacted, and watchers list anew.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};

use super::{
    Change, Error, Guard, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch, WatchEvent,
    Write, Written,
};

/// Where the base lies, as a decimal number.
pub const BASE_KEY: &[u8] = b"/portolan/revision-base";

/// The store of servers: what the backend holds, counted from its base. A store that was never restored has none.
pub async fn open(store: Arc<dyn Store>) -> Result<Arc<dyn Store>, Error> {
    let Some(found) = store.get(BASE_KEY).await? else {
        return Ok(store);
    };
    let text = std::str::from_utf8(&found.value);
    let base: Revision = text
        .map_err(|error| Error::Unavailable(Box::new(error)))?
        .parse()
        .map_err(|error| Error::Unavailable(Box::new(error)))?;
    Ok(Arc::new(Rebased { store, base }))
}

/// See the file's front page.
struct Rebased {
    store: Arc<dyn Store>,
    base: Revision,
}

impl Rebased {
    /// A revision as the backend counts; one from before the restore is gone.
    fn inner(&self, requested: Revision) -> Result<Revision, Error> {
        if requested > self.base {
            Ok(requested - self.base)
        } else {
            Err(Error::Compacted {
                requested,
                oldest: self.base + 1,
            })
        }
    }

    /// What a guard or fence names; nothing there was written before the restore.
    fn inner_or_never(&self, revision: Revision) -> Revision {
        // No key's last write was at revision 1, where an empty store begins.
        self.inner(revision).unwrap_or(1)
    }

    fn error(&self, error: Error) -> Error {
        outer_error(self.base, error)
    }

    fn key_value(&self, kv: KeyValue) -> KeyValue {
        outer(self.base, kv)
    }
}

fn outer(base: Revision, kv: KeyValue) -> KeyValue {
    KeyValue {
        create_revision: kv.create_revision + base,
        mod_revision: kv.mod_revision + base,
        ..kv
    }
}

fn outer_error(base: Revision, error: Error) -> Error {
    match error {
        Error::Compacted { requested, oldest } => Error::Compacted {
            requested: requested + base,
            oldest: oldest + base,
        },
        Error::Future { requested, current } => Error::Future {
            requested: requested + base,
            current: current + base,
        },
        other => other,
    }
}

fn outer_event(base: Revision, event: WatchEvent) -> WatchEvent {
    let change = |change| match change {
        Change::Put { current, previous } => Change::Put {
            current: outer(base, current),
            previous: previous.map(|kv| outer(base, kv)),
        },
        Change::Delete {
            key,
            revision,
            previous,
        } => Change::Delete {
            key,
            revision: revision + base,
            previous: previous.map(|kv| outer(base, kv)),
        },
    };
    match event {
        WatchEvent::Changes(changes) => {
            WatchEvent::Changes(changes.into_iter().map(change).collect())
        }
        WatchEvent::Progress(revision) => WatchEvent::Progress(revision + base),
    }
}

#[async_trait]
impl Store for Rebased {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let found = self.store.get(key).await?;
        Ok(found.map(|kv| self.key_value(kv)))
    }

    async fn range(&self, mut query: RangeQuery) -> Result<Range, Error> {
        if let Some(revision) = &mut query.revision {
            *revision = self.inner(*revision)?;
        }
        let range = self.store.range(query).await;
        let range = range.map_err(|error| self.error(error))?;
        let items = range.items.into_iter().map(|kv| self.key_value(kv));
        Ok(Range {
            items: items.collect(),
            revision: range.revision + self.base,
            remaining: range.remaining,
        })
    }

    async fn write(&self, mut write: Write) -> Result<Written, Error> {
        if let Guard::At(revision) = &mut write.guard {
            *revision = self.inner_or_never(*revision);
        }
        if let Some(fence) = &mut write.fence {
            fence.create_revision = self.inner_or_never(fence.create_revision);
        }
        Ok(match self.store.write(write).await? {
            Written::Done(revision) => Written::Done(revision + self.base),
            Written::Refused(there) => Written::Refused(there.map(|kv| self.key_value(kv))),
        })
    }

    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error> {
        let from = match from.map(|from| self.inner(from)).transpose() {
            Ok(from) => from,
            // As the backends do: the watch begins and then says so.
            Err(gone) => return Ok(stream::iter([Err(gone)]).boxed()),
        };
        let base = self.base;
        let watch = self.store.watch(prefix, from).await;
        let watch = watch.map_err(|error| self.error(error))?;
        Ok(watch
            .map(move |event| match event {
                Ok(event) => Ok(outer_event(base, event)),
                Err(error) => Err(outer_error(base, error)),
            })
            .boxed())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.store.revision().await? + self.base)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let Ok(inner) = self.inner(revision) else {
            // All of that is gone already.
            return Ok(());
        };
        let compacted = self.store.compact(inner).await;
        compacted.map_err(|error| self.error(error))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.store.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.lease_keep_alive(lease).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.lease_revoke(lease).await
    }
}
