//! Informers: a list, then a watch from its version, resumed where it broke off and begun anew after 410 Gone. Each keeps
//! one [`Cache`] of typed objects and tells its handlers of every change, in order, after the cache shows it.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    cache::{Cache, Change, Index, Object, key_of, revision_of},
    clock::Clock,
    queue::Backoff,
};
use crate::api::{Api, Caller, ListOptions, ResourceId, Status, WatchEvent};

const PAGE: usize = 500;

type Handler<T> = Box<dyn Fn(&Change<T>) + Send + Sync>;

/// Hears the metadata of an object before and after each change.
pub type MetadataHandler =
    Box<dyn Fn(ResourceId, Option<&ObjectMeta>, Option<&ObjectMeta>) + Send + Sync>;

/// See the file's front page.
pub struct Informer<T> {
    resource: ResourceId,
    api: Arc<dyn Api>,
    caller: Caller,
    clock: Arc<dyn Clock>,
    cache: Cache<T>,
    handlers: Mutex<Vec<Handler<T>>>,
    synced: watch::Sender<bool>,
}

/// An informer whatever its objects are.
#[async_trait]
pub trait AnyInformer: Send + Sync {
    /// Which resource it follows.
    fn resource(&self) -> ResourceId;

    /// Follows the resource until shut down.
    async fn run(self: Arc<Self>, shutdown: CancellationToken);

    /// Completes when the first list is in the cache.
    async fn synced(&self);

    /// Calls the handler on each change; only before [`AnyInformer::run`].
    fn on_metadata(&self, handler: MetadataHandler);
}

impl<T: Object> Informer<T> {
    /// An informer of a resource; it starts with [`AnyInformer::run`].
    pub fn new(
        resource: ResourceId,
        api: Arc<dyn Api>,
        clock: Arc<dyn Clock>,
        indexes: Vec<Index<T>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            resource,
            api,
            caller: Caller::system("kube-controller-manager"),
            clock,
            cache: Cache::new(indexes),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// What it knows.
    pub fn cache(&self) -> &Cache<T> {
        &self.cache
    }

    /// Calls the handler on each change, in order; it must be quick. Only before [`AnyInformer::run`].
    pub fn on_change(&self, handler: impl Fn(&Change<T>) + Send + Sync + 'static) {
        self.handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(handler));
    }

    fn tell(&self, change: &Change<T>) {
        if change.old.is_none() && change.new.is_none() {
            return;
        }
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for handler in handlers.iter() {
            handler(change);
        }
    }

    /// Parses an object; one that does not parse is reported and left out, as no controller could act on it.
    fn parse(&self, mut value: Value) -> Option<T> {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            // Half of an object's bytes, and no controller looks at them.
            metadata.remove("managedFields");
        }
        match serde_json::from_value(value) {
            Ok(object) => Some(object),
            Err(cause) => {
                error!(resource = self.resource.plural, %cause, "an object does not parse");
                None
            }
        }
    }

    fn put(&self, value: Value) {
        if let Some(object) = self.parse(value) {
            let change = self.cache.put(object);
            self.tell(&change);
        }
    }

    /// Reads the whole list and brings the cache to it; returns the version to watch from.
    async fn list(&self) -> Result<String, Status> {
        let mut options = ListOptions {
            limit: Some(PAGE),
            ..ListOptions::default()
        };
        let mut present = BTreeSet::new();
        loop {
            let page = self
                .api
                .list(&self.caller, self.resource, None, &options)
                .await?;
            for value in page.items {
                let Some(object) = self.parse(value) else {
                    continue;
                };
                let key = key_of(object.metadata());
                let known = self.cache.get(&key);
                let unchanged = known.is_some_and(|known| {
                    known.metadata().resource_version == object.metadata().resource_version
                        && known.metadata().uid == object.metadata().uid
                });
                present.insert(key);
                if !unchanged {
                    let change = self.cache.put(object);
                    self.tell(&change);
                }
            }
            if page.continue_token.is_some() {
                options.continue_token = page.continue_token;
                continue;
            }
            let revision = page.resource_version.parse().unwrap_or(0);
            for key in self.cache.keys() {
                if !present.contains(&key) {
                    let change = self.cache.remove(&key, revision);
                    self.tell(&change);
                }
            }
            self.cache.seen(revision);
            return Ok(page.resource_version);
        }
    }

    /// Follows the resource from a version, which moves along; returns why it broke off.
    async fn follow(&self, version: &mut String) -> Result<Infallible, Status> {
        let options = ListOptions {
            resource_version: Some(version.clone()),
            allow_bookmarks: true,
            ..ListOptions::default()
        };
        let mut events = self
            .api
            .watch(&self.caller, self.resource, None, &options)
            .await?;
        loop {
            let Some(event) = events.next().await else {
                return Err(broken_off(self.resource));
            };
            match event? {
                WatchEvent::Added(value) | WatchEvent::Modified(value) => {
                    advance(version, &value);
                    self.put(value);
                }
                WatchEvent::Deleted(value) => {
                    advance(version, &value);
                    if let Some(object) = self.parse(value) {
                        let metadata = object.metadata();
                        let change = self.cache.remove(&key_of(metadata), revision_of(metadata));
                        self.tell(&change);
                    }
                }
                WatchEvent::Bookmark(bookmark) => {
                    self.cache.seen(bookmark.parse().unwrap_or(0));
                    *version = bookmark;
                }
            }
        }
    }

    async fn follow_for_good(&self) {
        let backoff = Backoff {
            first: Duration::from_millis(50),
            most: Duration::from_secs(10),
        };
        let mut random = fastrand::Rng::with_seed(self.resource.plural.len() as u64);
        let mut failures = 0;
        let mut version: Option<String> = None;
        loop {
            let result = match &mut version {
                None => self.list().await.map(Some),
                Some(version) => {
                    let before = version.clone();
                    let broken_off = self.follow(version).await;
                    if *version != before {
                        failures = 0;
                    }
                    broken_off.map(|never| match never {})
                }
            };
            let resource = self.resource.plural;
            match result {
                Ok(listed) => {
                    version = listed;
                    self.synced.send_replace(true);
                }
                Err(status) if status.code == 410 => {
                    debug!(resource, %status, "listing again");
                    version = None;
                }
                Err(status) => {
                    failures += 1;
                    let delay = backoff.delay(failures, &mut random);
                    warn!(resource, %status, ?delay, "can't follow; trying again");
                    self.clock.sleep(delay).await;
                }
            }
        }
    }
}

/// A watch ends with a reason; one that ends without is told apart from a refusal by its words.
fn broken_off(resource: ResourceId) -> Status {
    Status {
        code: 500,
        reason: "InternalError".to_owned(),
        message: format!("the watch of {} ended without a reason", resource.plural),
        details: None,
    }
}

fn advance(version: &mut String, object: &Value) {
    if let Some(new) = object["metadata"]["resourceVersion"].as_str() {
        new.clone_into(version);
    }
}

#[async_trait]
impl<T: Object> AnyInformer for Informer<T> {
    fn resource(&self) -> ResourceId {
        self.resource
    }

    async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(self.follow_for_good()).await;
    }

    async fn synced(&self) {
        let mut synced = self.synced.subscribe();
        synced
            .wait_for(|synced| *synced)
            .await
            .expect("the sender lives as long as the informer");
    }

    fn on_metadata(&self, handler: MetadataHandler) {
        let resource = self.resource;
        self.on_change(move |change| {
            handler(
                resource,
                change.old.as_deref().map(Object::metadata),
                change.new.as_deref().map(Object::metadata),
            );
        });
    }
}
