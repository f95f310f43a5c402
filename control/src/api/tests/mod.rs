//! The engine on the embedded store.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::admission::Admission;
use super::engine::{Engine, Running};
use super::{Api, Caller, ObjectKey, Status, WriteOptions};
use crate::resource::rows::{NAMESPACES, PODS};
use crate::store::Store;
use crate::store::embedded::Embedded;

mod admitting;
mod classes;
mod namespaces;
mod reading;
mod writing;

/// How long anything here may take.
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Cluster {
    running: Running,
    store: Arc<dyn Store>,
    pub caller: Caller,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Cluster {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.running.engine
    }
}

pub async fn cluster() -> Cluster {
    cluster_with(Vec::new()).await
}

pub async fn cluster_with(admissions: Vec<Arc<dyn Admission>>) -> Cluster {
    cluster_of(|_| admissions, None).await
}

/// A cluster whose admissions read its store, with the certificate that every namespace is to have.
pub async fn cluster_of(
    admissions: impl FnOnce(&Arc<dyn Store>) -> Vec<Arc<dyn Admission>>,
    root: Option<String>,
) -> Cluster {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open(folder.path().join("store"))
        .await
        .expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let running = Engine::start_with(store.clone(), admissions(&store), root)
        .await
        .expect("an engine");
    let cluster = Cluster {
        running,
        store,
        caller: Caller::system("test"),
        _folder: folder,
    };
    let namespace = json!({"metadata": {"name": "default"}});
    cluster
        .create(
            &cluster.caller,
            NAMESPACES,
            None,
            namespace,
            &WriteOptions::default(),
        )
        .await
        .expect("a namespace");
    cluster
}

pub fn named(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    }
}

pub fn config(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"key": value}})
}

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "demo:1"}]}})
}

impl Cluster {
    /// Another engine over the same store, as after a restart.
    pub async fn restarted(self) -> Self {
        let running = Engine::start(self.store.clone(), Vec::new())
            .await
            .expect("an engine");
        Self { running, ..self }
    }

    pub async fn make(&self, resource: super::ResourceId, object: Value) -> Result<Value, Status> {
        self.create(
            &self.caller,
            resource,
            Some("default"),
            object,
            &WriteOptions::default(),
        )
        .await
    }

    pub async fn bind(&self, name: &str) {
        let binding = json!({"target": {"kind": "Node", "name": "n1"}});
        self.update(
            &self.caller,
            PODS,
            &named(name),
            Some("binding"),
            binding,
            &WriteOptions::default(),
        )
        .await
        .expect("a free pod");
    }
}
