//! The engine: one implementation of the API for all kinds, over JSON values and the table of resources.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::admission::Admission;
use super::cache::Cache;
use super::write::Outcome;
use super::{
    Api, Caller, DeleteOptions, ListOptions, ObjectKey, ObjectList, ObjectWatch, PatchKind,
    ResourceId, Status, WriteOptions, namespaces,
};
use crate::pki::TokenKey;
use crate::resource::{Resource, Table, Verb};
use crate::store::Store;

pub use super::history::{Snapshot, Stored};
pub use super::read::Page;
pub use super::watch::{Deliveries, Delivery};

/// The API server's core.
pub struct Engine {
    pub(super) store: Arc<dyn Store>,
    pub(super) table: Arc<Table>,
    pub(super) cache: Arc<Cache>,
    pub(super) admissions: Vec<Arc<dyn Admission>>,
    pub(super) tokens: Arc<TokenKey>,
    /// The cluster's certificate, which every namespace holds for its pods.
    pub(super) root: Option<String>,
    pub(super) clock: fn() -> Timestamp,
}

/// The engine with the work that it does by itself; dropping it ends that work.
pub struct Running {
    /// The engine.
    pub engine: Arc<Engine>,
    _namespaces: AbortOnDropHandle<()>,
}

impl Engine {
    /// Starts an engine of the built-in kinds over a store.
    pub async fn start(
        store: Arc<dyn Store>,
        admissions: Vec<Arc<dyn Admission>>,
    ) -> Result<Running, Status> {
        Self::start_with(store, admissions, None).await
    }

    /// The same, with the cluster's certificate in PEM for every namespace.
    pub async fn start_with(
        store: Arc<dyn Store>,
        admissions: Vec<Arc<dyn Admission>>,
        root: Option<String>,
    ) -> Result<Running, Status> {
        let engine = Self::open(store, admissions, root).await?;
        let namespaces = tokio::spawn(Arc::clone(&engine).tend_namespaces());
        Ok(Running {
            engine,
            _namespaces: AbortOnDropHandle::new(namespaces),
        })
    }

    /// An engine that does nothing by itself: of several servers only the leader tends the namespaces.
    pub async fn open(
        store: Arc<dyn Store>,
        admissions: Vec<Arc<dyn Admission>>,
        root: Option<String>,
    ) -> Result<Arc<Self>, Status> {
        let table = Arc::new(Table::built_in());
        let cache = Arc::new(Cache::start(store.clone(), &table).await?);
        let tokens = TokenKey::load(&*store)
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Arc::new(Self {
            store,
            table,
            cache,
            admissions,
            tokens: Arc::new(tokens),
            root,
            clock: Timestamp::now,
        }))
    }

    /// The same engine over another way into the same store: a leader's, whose writes are fenced.
    pub fn over(&self, store: Arc<dyn Store>, admissions: Vec<Arc<dyn Admission>>) -> Arc<Self> {
        Arc::new(Self {
            store,
            table: Arc::clone(&self.table),
            cache: Arc::clone(&self.cache),
            admissions,
            tokens: Arc::clone(&self.tokens),
            root: self.root.clone(),
            clock: self.clock,
        })
    }

    /// Gives every namespace what it must have, and clears those that are deleted, for ever.
    pub async fn tend_namespaces(self: Arc<Self>) {
        namespaces::run(self).await;
    }

    /// What is served.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// Whether the store answers.
    pub async fn check_store(&self) -> Result<(), Status> {
        self.store.revision().await?;
        Ok(())
    }

    pub(super) fn row(&self, id: ResourceId) -> Result<&Arc<Resource>, Status> {
        self.table.get(id).ok_or_else(Status::no_such_path)
    }

    /// The row, if it has the verb and the caller may use it.
    pub(super) fn permitted(
        &self,
        caller: &Caller,
        id: ResourceId,
        verb: Verb,
        key: (Option<&str>, Option<&str>),
        subresource: Option<&str>,
    ) -> Result<&Arc<Resource>, Status> {
        let row = self.row(id)?;
        let verbs = match subresource {
            None => row.verbs,
            Some(name) => {
                row.subresource(name)
                    .ok_or_else(Status::no_such_path)?
                    .verbs
            }
        };
        // Callers inside the process update what HTTP posts to (binding).
        let posted = verb == Verb::Update && verbs.contains(&Verb::Create) && subresource.is_some();
        if !verbs.contains(&verb) && !posted {
            return Err(Status::method_not_allowed());
        }
        self.authorize(caller, row, verb, key.0, key.1, subresource)?;
        Ok(row)
    }

    /// The key of an object in its kind's history.
    pub(super) fn cache_key(key: &ObjectKey) -> String {
        match &key.namespace {
            Some(namespace) => format!("{namespace}/{}", key.name),
            None => key.name.clone(),
        }
    }

    /// The key of an object in the store.
    pub(super) fn store_key(row: &Resource, key: &ObjectKey) -> String {
        format!("{}{}", row.prefix(), Self::cache_key(key))
    }
}

#[async_trait]
impl Api for Engine {
    async fn get(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
    ) -> Result<Value, Status> {
        let found = self.read(caller, resource, key).await?;
        Ok(found.value.clone())
    }

    async fn list(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectList, Status> {
        let page = self.page(caller, resource, namespace, options).await?;
        Ok(ObjectList {
            items: page.items.iter().map(|item| item.value.clone()).collect(),
            resource_version: page.revision.to_string(),
            continue_token: page.continue_token,
            remaining: page.remaining,
        })
    }

    async fn watch(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectWatch, Status> {
        let deliveries = self.follow(caller, resource, namespace, options).await?;
        Ok(deliveries.map(|next| next.map(Into::into)).boxed())
    }

    async fn create(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let outcome = self
            .create_object(caller, resource, namespace, object, options)
            .await?;
        Ok(outcome.object)
    }

    async fn update(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let outcome: Outcome = self
            .update_object(caller, resource, key, subresource, object, options)
            .await?;
        Ok(outcome.object)
    }

    async fn patch(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let outcome = self
            .patch_object(caller, resource, key, subresource, (kind, patch), options)
            .await?;
        Ok(outcome.object)
    }

    async fn delete(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Value, Status> {
        self.delete_object(caller, resource, key, options).await
    }
}
