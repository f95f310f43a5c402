//! The API as everything inside the control plane sees it: controllers, scheduler, HTTP and gRPC all call this trait,
//! so that every write goes through one path: authorize, default, validate, admit, compare-and-swap in the store.
//!
//! Objects are JSON values; `k8s-openapi` types are parsed at the edges that want them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;

pub mod account;
pub mod admission;
mod apply;
mod authorize;
mod cache;
pub mod classes;
mod create;
mod delete;
pub mod engine;
mod eviction;
mod history;
pub mod managed;
pub mod meta;
pub mod namespaces;
mod object;
pub mod patch;
pub mod rbac;
mod read;
pub mod reviews;
pub mod selector;
pub mod status;
mod subresource;
pub mod tokens;
mod watch;
mod write;

pub use status::Status;

/// The resource that a request is about, as its URL names it: group ("" for core), version and plural.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId {
    /// "" for the core group.
    pub group: &'static str,
    /// "v1".
    pub version: &'static str,
    /// "pods".
    pub plural: &'static str,
}

impl ResourceId {
    /// "deployments.apps" or, in the core group, "pods"; as messages name it.
    pub fn qualified(&self) -> String {
        status::qualified(self.plural, self.group)
    }

    /// "v1" or "apps/v1", as objects name it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Who asks. In-process callers use [`Caller::system`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// "system:node:n1", "kubernetes-admin".
    pub user: String,
    /// "system:masters", "system:nodes".
    pub groups: Vec<String>,
    /// Tells it from others of the name, where it is an account.
    pub uid: String,
    /// What else its credentials say.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// A part of the control plane itself, for example "system:kube-scheduler".
    pub fn system(component: &str) -> Self {
        Self {
            user: format!("system:{component}"),
            groups: vec!["system:masters".to_owned()],
            ..Self::default()
        }
    }
}

/// Where an object lives; `namespace` is `None` for cluster-scoped kinds and for lists over all namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace, if the kind has one.
    pub namespace: Option<String>,
    /// metadata.name.
    pub name: String,
}

/// A list with the resourceVersion that a watch goes on from.
#[derive(Clone, Debug)]
pub struct ObjectList {
    /// The objects, by namespace and name.
    pub items: Vec<Value>,
    /// metadata.resourceVersion of the list.
    pub resource_version: String,
    /// metadata.continue, when there are more.
    pub continue_token: Option<String>,
    /// metadata.remainingItemCount, when there are more.
    pub remaining: Option<u64>,
}

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Kubernetes' label selector text.
    pub label_selector: Option<String>,
    /// Kubernetes' field selector text.
    pub field_selector: Option<String>,
    /// Page size.
    pub limit: Option<usize>,
    /// Where the next page begins.
    pub continue_token: Option<String>,
    /// A list: exactly or at least this version. A watch: what comes after it.
    pub resource_version: Option<String>,
    /// A list: "Exact" or "`NotOlderThan`" (the default).
    pub resource_version_match: Option<String>,
    /// A watch: also yield bookmarks now and then.
    pub allow_bookmarks: bool,
    /// A watch: begin with the objects that there are, then a bookmark, also where a version is given.
    pub send_initial_events: bool,
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Do everything but the write.
    pub dry_run: bool,
    /// "Strict", "Warn" or "Ignore"; absent: "Warn".
    pub field_validation: Option<String>,
    /// Who owns the fields written; absent: the caller.
    pub field_manager: Option<String>,
    /// An apply takes the fields that others own.
    pub force: bool,
    /// What the reader of the body found: `duplicate field "spec.replicas"`.
    pub duplicate_fields: Vec<String>,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds that a pod has to end; 0 removes the object at once.
    pub grace_period_seconds: Option<i64>,
    /// "Background" (the default), "Foreground" or "Orphan".
    pub propagation_policy: Option<String>,
    /// Only if the object has this uid.
    pub uid: Option<String>,
    /// Only if the object is at this version.
    pub resource_version: Option<String>,
    /// Do everything but the write.
    pub dry_run: bool,
}

/// The media types of a PATCH body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' merge that knows the keys of lists.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// What a watch yields.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// An object that now matches.
    Added(Value),
    /// An object that matched before and still does.
    Modified(Value),
    /// An object that is gone or no longer matches, in its last state, at the version of its end.
    Deleted(Value),
    /// Everything up to this resourceVersion has been seen.
    Bookmark(String),
}

/// A running watch; it ends with a Status (410 Gone after compaction), never silently.
pub type ObjectWatch = BoxStream<'static, Result<WatchEvent, Status>>;

/// The API. `subresource` is `None`, or "status", "scale", "binding", "eviction" where the resource has it.
#[async_trait]
pub trait Api: Send + Sync + 'static {
    /// Reads one object.
    async fn get(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
    ) -> Result<Value, Status>;

    /// Reads a page of objects; `namespace: None` is every namespace.
    async fn list(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectList, Status>;

    /// Follows a list.
    async fn watch(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectWatch, Status>;

    /// Creates an object and returns it as stored.
    async fn create(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status>;

    /// Replaces an object (or its subresource); metadata.resourceVersion, where given, must be current.
    async fn update(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status>;

    /// Patches an object (or its subresource).
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a part of the request line"
    )]
    async fn patch(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        kind: PatchKind,
        patch: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status>;

    /// Deletes an object: at once, or by marking it where finalizers or a grace period hold it.
    async fn delete(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Value, Status>;
}

#[cfg(test)]
mod tests;
