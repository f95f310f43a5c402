//! Values that nobody may read off the store's disk: Secrets and the cluster's own keys are encrypted on their way in.
//!
//! ```text
//! engine, controllers -> Sealed (this) -> embedded file or etcd -> its disk, its backups, its history
//! ```
//!
//! A sealed value is `"\0portolan-sealed-1\0"`, 8 bytes that name the key, 12 bytes of nonce, and the value under
//! AES-256-GCM with its tag. The store's key is authenticated along with it, so that a value which somebody moves to
//! another name can't be opened there. A value without the mark is from before sealing and is read as it is; the leader
//! seals such values, and those under other keys than the first, when its term begins ([`Sealed::reseal`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

mod check;
mod keys;

pub use check::{KeyError, open_keys};
pub use keys::{KeyId, Keys, OpenError};

use super::{
    Action, Change, Error, Fence, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch,
    WatchEvent, Write, Written,
};

/// What is sealed: Secrets, and the keys of the certificate authority and of tokens.
const SEALED: [&[u8]; 2] = [b"/registry/core/secrets/", b"/portolan/pki/"];

/// A store whose secret values are sealed.
pub struct Sealed {
    store: Arc<dyn Store>,
    keys: Arc<Keys>,
}

impl Sealed {
    /// Seals what is secret on its way into this store.
    pub fn new(store: Arc<dyn Store>, keys: Keys) -> Self {
        Self {
            store,
            keys: Arc::new(keys),
        }
    }

    /// Seals with the first key whatever is not, in the name of a leader's term; says how many values that were.
    pub async fn reseal(&self, fence: Option<&Fence>) -> Result<usize, Error> {
        check::reseal(&self.store, &self.keys, fence).await
    }
}

fn is_secret(key: &[u8]) -> bool {
    SEALED.iter().any(|prefix| key.starts_with(prefix))
}

fn open(keys: &Keys, mut kv: KeyValue) -> Result<KeyValue, Error> {
    if is_secret(&kv.key) {
        kv.value = open_value(keys, &kv.key, &kv.value)?;
    }
    Ok(kv)
}

fn open_value(keys: &Keys, key: &[u8], value: &Bytes) -> Result<Bytes, Error> {
    keys.open(key, value).map_err(|source| Error::Sealed {
        key: String::from_utf8_lossy(key).into_owned(),
        source,
    })
}

/// A value before a change may be under a key that is gone since; then it counts as compacted away.
fn open_previous(keys: &Keys, previous: Option<KeyValue>) -> Option<KeyValue> {
    previous.and_then(|kv| open(keys, kv).ok())
}

fn open_change(keys: &Keys, change: Change) -> Result<Change, Error> {
    if !is_secret(change.key()) {
        return Ok(change);
    }
    let at = change.revision();
    Ok(match change {
        Change::Put { current, previous } => Change::Put {
            // History that can't be read is as good as forgotten: the watcher lists what there is now.
            current: open(keys, current).map_err(|error| {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a watch met a value that can't be opened"
                );
                Error::Compacted {
                    requested: at,
                    oldest: at + 1,
                }
            })?,
            previous: open_previous(keys, previous),
        },
        Change::Delete {
            key,
            revision,
            previous,
        } => Change::Delete {
            key,
            revision,
            previous: open_previous(keys, previous),
        },
    })
}

#[async_trait]
impl Store for Sealed {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let found = self.store.get(key).await?;
        found.map(|kv| open(&self.keys, kv)).transpose()
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, Error> {
        let range = self.store.range(query).await?;
        let items = range.items.into_iter().map(|kv| open(&self.keys, kv));
        Ok(Range {
            items: items.collect::<Result<_, _>>()?,
            ..range
        })
    }

    async fn write(&self, mut write: Write) -> Result<Written, Error> {
        if is_secret(&write.key) {
            write.check_size()?;
            if let Action::Put { value, .. } = &mut write.action {
                *value = self.keys.seal(&write.key, value);
            }
        }
        Ok(match self.store.write(write).await? {
            Written::Refused(Some(there)) => Written::Refused(Some(open(&self.keys, there)?)),
            written => written,
        })
    }

    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error> {
        let keys = Arc::clone(&self.keys);
        let watch = self.store.watch(prefix, from).await?;
        Ok(watch
            .map(move |event| match event? {
                WatchEvent::Changes(changes) => {
                    let opened = changes.into_iter().map(|change| open_change(&keys, change));
                    Ok(WatchEvent::Changes(opened.collect::<Result<_, _>>()?))
                }
                progress @ WatchEvent::Progress(_) => Ok(progress),
            })
            .boxed())
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
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
