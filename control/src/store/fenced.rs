//! The store as a leader writes to it: every write holds only as long as the leader's term.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    Error, Fence, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch, Write, Written,
};

/// A store whose writes all carry one fence. Whoever holds it can't write without it.
pub struct Fenced {
    store: Arc<dyn Store>,
    fence: Fence,
}

impl Fenced {
    /// Puts a fence around a store.
    pub fn new(store: Arc<dyn Store>, fence: Fence) -> Self {
        Self { store, fence }
    }
}

#[async_trait]
impl Store for Fenced {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        self.store.get(key).await
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, Error> {
        self.store.range(query).await
    }

    async fn write(&self, mut write: Write) -> Result<Written, Error> {
        write.fence = Some(self.fence.clone());
        self.store.write(write).await
    }

    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error> {
        self.store.watch(prefix, from).await
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
