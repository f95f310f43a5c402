//! Who holds what, in the store.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::store::{Guard, KeyValue, RangeQuery, Revision, Store, Written};

const PREFIX: &str = "/portolan/allocations";

#[derive(Serialize, Deserialize)]
struct Entry {
    owner: String,
}

/// Something that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What.
    pub item: String,
    /// By whom.
    pub owner: String,
    /// Since this store revision.
    pub revision: Revision,
}

/// One kind of thing that is held.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    prefix: String,
}

impl Ledger {
    /// The ledger of a kind.
    pub fn new(store: &Arc<dyn Store>, kind: &str) -> Self {
        Self {
            store: Arc::clone(store),
            prefix: format!("{PREFIX}/{kind}/"),
        }
    }

    fn key(&self, item: &str) -> Vec<u8> {
        format!("{}{item}", self.prefix).into_bytes()
    }

    /// Takes an item for an owner; `Some` holds whoever was first.
    pub async fn take(&self, item: &str, owner: &str) -> Result<Option<Held>, Error> {
        let entry = Entry {
            owner: owner.to_owned(),
        };
        let value = serde_json::to_vec(&entry).map_err(|source| Error::Corrupt {
            key: item.to_owned(),
            source,
        })?;
        let written = self
            .store
            .put(&self.key(item), Bytes::from(value), Guard::Absent, None)
            .await?;
        match written {
            Written::Done(_) | Written::Refused(None) => Ok(None),
            Written::Refused(Some(existing)) => self.read(&existing).map(Some),
        }
    }

    /// Who holds an item.
    pub async fn holder(&self, item: &str) -> Result<Option<Held>, Error> {
        let found = self.store.get(&self.key(item)).await?;
        found.map(|entry| self.read(&entry)).transpose()
    }

    /// Frees an item if this owner holds it.
    pub async fn free(&self, item: &str, owner: &str) -> Result<(), Error> {
        match self.holder(item).await? {
            Some(held) if held.owner == owner => self.free_as(&held).await,
            _ => Ok(()),
        }
    }

    /// Frees an item if it is still held as it was seen.
    pub async fn free_as(&self, held: &Held) -> Result<(), Error> {
        // Refused means that it is held anew, and whoever did that will free it.
        self.store
            .delete(&self.key(&held.item), Guard::At(held.revision))
            .await?;
        Ok(())
    }

    /// Everything that is held.
    pub async fn all(&self) -> Result<Vec<Held>, Error> {
        let mut all = Vec::new();
        let mut query = RangeQuery {
            prefix: Bytes::from(self.prefix.clone()),
            limit: Some(1000),
            ..RangeQuery::default()
        };
        loop {
            let page = self.store.range(query.clone()).await?;
            for entry in &page.items {
                all.push(self.read(entry)?);
            }
            match page.items.last() {
                Some(last) if page.remaining > 0 => query.after = Some(last.key.clone()),
                _ => return Ok(all),
            }
        }
    }

    fn read(&self, entry: &KeyValue) -> Result<Held, Error> {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        match serde_json::from_slice::<Entry>(&entry.value) {
            Ok(Entry { owner }) => Ok(Held {
                item: key.trim_start_matches(&self.prefix).to_owned(),
                owner,
                revision: entry.mod_revision,
            }),
            Err(source) => Err(Error::Corrupt { key, source }),
        }
    }
}
