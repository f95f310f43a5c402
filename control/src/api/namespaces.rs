//! Namespaces: new objects need one that lives; one that is deleted is cleared first; each has a default service account and
//! the cluster's certificate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use serde_json::{Value, json};

use super::engine::Engine;
use super::watch::{Deliveries, Delivery};
use super::{
    Api, Caller, DeleteOptions, ListOptions, ObjectKey, ResourceId, Status, WriteOptions, account,
    meta,
};
use crate::resource::Resource;
use crate::resource::rows::{CONFIG_MAPS, NAMESPACES, SERVICE_ACCOUNTS};

/// The entry of spec.finalizers that holds a namespace until it is cleared.
const FINALIZER: &str = "kubernetes";
/// The service account that every namespace has.
const DEFAULT_ACCOUNT: &str = "default";
/// How soon a namespace that still has contents is looked at again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long after a failure the loop begins anew.
const RETRY: Duration = Duration::from_secs(1);

impl Engine {
    /// Refuses new objects where their namespace does not exist or is going.
    pub(super) async fn check_namespace(
        &self,
        row: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<(), Status> {
        let namespaces = self.row(NAMESPACES)?;
        let key = ObjectKey {
            namespace: None,
            name: namespace.to_owned(),
        };
        self.cache.catch_up().await?;
        let Some(found) = self.cached(namespaces, &key) else {
            return Err(Status::not_found(NAMESPACES, namespace));
        };
        if !meta::is_terminating(&found.value) {
            return Ok(());
        }
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut status = Status::forbidden(row.id, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(super::status::Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(status)
    }

    /// Deletes what is in a namespace; says whether nothing is left.
    async fn clear(&self, caller: &Caller, namespace: &str) -> Result<bool, Status> {
        self.cache.catch_up().await?;
        let prefix = format!("{namespace}/");
        let mut left = false;
        for row in self.table.rows().iter().filter(|row| row.namespaced) {
            let Some(kind) = self.cache.kind(row.id) else {
                continue;
            };
            for (_, stored) in kind.snapshot(&prefix).items {
                if meta::is_terminating(&stored.value) {
                    left = true;
                    continue;
                }
                let key = meta::key(&stored.value);
                let deleted = self
                    .delete_object(caller, row.id, &key, &DeleteOptions::default())
                    .await;
                match deleted {
                    Ok(_) => left = true,
                    Err(status) if status.is_not_found() => {}
                    Err(status) => return Err(status),
                }
            }
        }
        Ok(!left)
    }

    /// The namespace that an object lies in, if it is still there.
    fn namespace_of(&self, object: &Value) -> Result<Option<Arc<Value>>, Status> {
        let key = ObjectKey {
            namespace: None,
            name: meta::namespace(object).to_owned(),
        };
        let found = self.cached(self.row(NAMESPACES)?, &key);
        Ok(found.map(|stored| Arc::new(stored.value.clone())))
    }

    /// Makes what every namespace has, where it is missing.
    async fn ensure(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: &str,
        object: serde_json::Value,
    ) -> Result<(), Status> {
        let options = WriteOptions::default();
        let made = self
            .create(caller, resource, Some(namespace), object, &options)
            .await;
        match made {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        }
    }

    /// The cluster's certificate stands in each namespace, and says nothing else.
    async fn ensure_root(&self, caller: &Caller, namespace: &str) -> Result<(), Status> {
        let Some(root) = &self.root else {
            return Ok(());
        };
        let key = ObjectKey {
            namespace: Some(namespace.to_owned()),
            name: account::ROOT.to_owned(),
        };
        let data = json!({"ca.crt": root});
        let Some(found) = self.cached(self.row(CONFIG_MAPS)?, &key) else {
            let map = json!({"metadata": {"name": account::ROOT}, "data": data});
            return self.ensure(caller, CONFIG_MAPS, namespace, map).await;
        };
        if found.value["data"] == data {
            return Ok(());
        }
        let mut map = found.value.clone();
        map["data"] = data;
        let options = WriteOptions::default();
        self.update(caller, CONFIG_MAPS, &key, None, map, &options)
            .await
            .map(drop)
    }

    /// One look at a namespace: true when there is nothing more to do for it.
    async fn tend(&self, caller: &Caller, namespace: &serde_json::Value) -> Result<bool, Status> {
        let name = meta::name(namespace);
        let options = WriteOptions::default();
        if !meta::is_terminating(namespace) {
            let account = json!({"metadata": {"name": DEFAULT_ACCOUNT}});
            self.ensure(caller, SERVICE_ACCOUNTS, name, account).await?;
            self.ensure_root(caller, name).await?;
            return Ok(true);
        }
        if !self.clear(caller, name).await? {
            return Ok(false);
        }
        let mut finalized = namespace.clone();
        let left: Vec<String> = meta::list(namespace, &["spec", "finalizers"])
            .iter()
            .filter_map(|one| one.as_str())
            .filter(|one| *one != FINALIZER)
            .map(str::to_owned)
            .collect();
        finalized["spec"] = json!({"finalizers": left});
        meta::set_metadata(&mut finalized, "resourceVersion", None);
        let key = meta::key(namespace);
        let result = self
            .update(
                caller,
                NAMESPACES,
                &key,
                Some("finalize"),
                finalized,
                &options,
            )
            .await;
        match result {
            Err(status) if !status.is_not_found() => Err(status),
            _ => Ok(true),
        }
    }
}

/// Tends all namespaces, for ever.
pub(super) async fn run(engine: Arc<Engine>) {
    let caller = Caller::system("namespace-controller");
    loop {
        if let Err(status) = watch_all(&engine, &caller).await {
            tracing::warn!(%status, "the namespaces' watch ended; watching again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Namespaces that are to be looked at, by name.
type Open = BTreeMap<String, Arc<Value>>;

async fn watch_all(engine: &Engine, caller: &Caller) -> Result<(), Status> {
    let options = ListOptions::default();
    let mut namespaces = engine.follow(caller, NAMESPACES, None, &options).await?;
    let mut belongings = belongings(engine, caller).await?;
    let mut open = Open::new();
    loop {
        let again = async {
            if open.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(AGAIN).await;
        };
        tokio::select! {
            next = namespaces.next() => match next {
                Some(Ok(Delivery::Added(stored) | Delivery::Modified(stored))) => {
                    open.insert(meta::name(&stored.value).to_owned(), Arc::new(stored.value.clone()));
                }
                Some(Ok(Delivery::Deleted(stored))) => {
                    open.remove(meta::name(&stored.value));
                    continue;
                }
                Some(Ok(Delivery::Bookmark { .. })) => continue,
                Some(Err(status)) => return Err(status),
                None => return Ok(()),
            },
            next = belongings.next() => match next {
                Some(Ok(Delivery::Modified(stored) | Delivery::Deleted(stored))) => {
                    let Some(namespace) = engine.namespace_of(&stored.value)? else { continue };
                    open.insert(meta::name(&namespace).to_owned(), namespace);
                }
                Some(Ok(Delivery::Added(_) | Delivery::Bookmark { .. })) => continue,
                Some(Err(status)) => return Err(status),
                None => return Ok(()),
            },
            () = again => {}
        }
        tend_all(engine, caller, &mut open).await;
    }
}

/// What every namespace has, in all of them: who deletes or changes it gets it anew.
async fn belongings(engine: &Engine, caller: &Caller) -> Result<Deliveries, Status> {
    let named = |name: &str| ListOptions {
        field_selector: Some(format!("metadata.name={name}")),
        ..ListOptions::default()
    };
    let accounts = engine
        .follow(caller, SERVICE_ACCOUNTS, None, &named(DEFAULT_ACCOUNT))
        .await?;
    let roots = engine
        .follow(caller, CONFIG_MAPS, None, &named(account::ROOT))
        .await?;
    Ok(stream::select(accounts, roots).boxed())
}

async fn tend_all(engine: &Engine, caller: &Caller, open: &mut Open) {
    let mut done = Vec::new();
    for (name, namespace) in &*open {
        match engine.tend(caller, namespace).await {
            Ok(true) => done.push(name.clone()),
            Ok(false) => {}
            Err(status) => {
                tracing::warn!(namespace = name, %status, "a namespace can't be tended; trying again");
            }
        }
    }
    for name in done {
        open.remove(&name);
    }
}
