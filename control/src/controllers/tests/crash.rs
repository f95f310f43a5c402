//! Controllers that die after each of their writes: whoever takes over ends in the same state.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{
    super::resources::{DEPLOYMENTS, ENDPOINT_SLICES, EVENTS, NODES, PODS, REPLICA_SETS, SERVICES},
    are_untainted,
    cluster::{Cluster, named},
    deployment, is_rolled_out, ready_endpoints, service,
};
use crate::api::{
    Api, Caller, DeleteOptions, ListOptions, ObjectKey, ObjectList, ObjectWatch, PatchKind,
    ResourceId, Status, WriteOptions, engine::Engine,
};

/// An API whose caller dies after a number of writes: the last one takes place, but nobody hears of it.
pub struct Mortal {
    engine: Arc<Engine>,
    left: AtomicI64,
    /// Told when the last write is done.
    pub died: Notify,
}

impl Mortal {
    pub fn new(engine: &Arc<Engine>, writes: i64) -> Arc<Self> {
        Arc::new(Self {
            engine: Arc::clone(engine),
            left: AtomicI64::new(writes),
            died: Notify::new(),
        })
    }

    /// Lets a write take place, unless its caller is dead already, or dies of it.
    async fn write(
        &self,
        write: impl Future<Output = Result<Value, Status>>,
    ) -> Result<Value, Status> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            let result = write.await;
            if left > 1 {
                return result;
            }
            self.died.notify_one();
        }
        std::future::pending().await
    }
}

#[async_trait]
impl Api for Mortal {
    async fn get(
        &self,
        caller: &Caller,
        kind: ResourceId,
        key: &ObjectKey,
    ) -> Result<Value, Status> {
        self.engine.get(caller, kind, key).await
    }

    async fn list(
        &self,
        caller: &Caller,
        kind: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectList, Status> {
        self.engine.list(caller, kind, namespace, options).await
    }

    async fn watch(
        &self,
        caller: &Caller,
        kind: ResourceId,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<ObjectWatch, Status> {
        self.engine.watch(caller, kind, namespace, options).await
    }

    async fn create(
        &self,
        caller: &Caller,
        kind: ResourceId,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let made = self.engine.create(caller, kind, namespace, object, options);
        if kind == EVENTS {
            // Events change nothing that is checked here.
            return made.await;
        }
        self.write(made).await
    }

    async fn update(
        &self,
        caller: &Caller,
        kind: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        self.write(
            self.engine
                .update(caller, kind, key, subresource, object, options),
        )
        .await
    }

    async fn patch(
        &self,
        caller: &Caller,
        kind: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        patch_kind: PatchKind,
        patch: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let patched = self
            .engine
            .patch(caller, kind, key, subresource, patch_kind, patch, options);
        self.write(patched).await
    }

    async fn delete(
        &self,
        caller: &Caller,
        kind: ResourceId,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Value, Status> {
        self.write(self.engine.delete(caller, kind, key, options))
            .await
    }
}

/// More than the whole story takes.
const WRITES: i64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_over_after_any_write_ends_in_the_same_state() {
    let survived = futures::stream::iter(1..=WRITES)
        .map(live_and_die)
        .buffered(4)
        .take_while(|has_died| std::future::ready(*has_died))
        .count()
        .await;
    let survived = i64::try_from(survived).expect("a small number");
    assert!(survived > 20, "the story took only {survived} writes");
    assert!(survived < WRITES, "the story has no end");
}

/// Plays the story with controllers that die after so many writes; whether they did.
async fn live_and_die(writes: i64) -> bool {
    let mut cluster = Cluster::new().await;
    cluster.stop().await;
    let mortal = Mortal::new(cluster.engine(), writes);
    cluster.start_on(Arc::clone(&mortal) as _).await;
    let agents = cluster.play_agents();
    let story = async {
        play(&cluster).await;
        rolled_out_and_updated(&cluster).await;
    };
    let has_died = tokio::select! {
        () = mortal.died.notified() => true,
        () = story => false,
    };
    cluster.stop().await;
    cluster.start().await;
    if has_died {
        play(&cluster).await;
        rolled_out_and_updated(&cluster).await;
    }
    check(&cluster, writes).await;
    drop(agents);
    cluster.stop().await;
    has_died
}

/// What users do; done again by one who was cut off, it changes nothing.
async fn play(cluster: &Cluster) {
    for node in ["n1", "n2"] {
        cluster.add_node(node).await;
    }
    for (kind, object) in [
        (SERVICES, service()),
        (DEPLOYMENTS, deployment(2, "demo:1")),
    ] {
        cluster.ensure(kind, Some("default"), object).await;
    }
}

async fn rolled_out_and_updated(cluster: &Cluster) {
    let is_updated =
        |all: &[Value]| all[0]["spec"]["template"]["spec"]["containers"][0]["image"] == "demo:2";
    if !is_updated(&cluster.list(DEPLOYMENTS).await) {
        cluster
            .until_ticking(DEPLOYMENTS, "rolled out", |all| is_rolled_out(all, 2, "1"))
            .await;
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "demo:2"}]}}}});
        cluster.patch(DEPLOYMENTS, &named("web"), None, patch).await;
    }
    cluster
        .until_ticking(DEPLOYMENTS, "updated", |all| is_rolled_out(all, 2, "2"))
        .await;
}

async fn check(cluster: &Cluster, writes: i64) {
    let pods = cluster
        .until_ticking(PODS, "two", |all| all.len() == 2)
        .await;
    let is_new = |pod: &Value| pod["spec"]["containers"][0]["image"] == "demo:2";
    assert!(pods.iter().all(is_new), "after {writes} writes");
    assert_eq!(
        cluster.list(REPLICA_SETS).await.len(),
        2,
        "after {writes} writes"
    );
    let slices = cluster
        .until_ticking(ENDPOINT_SLICES, "one with two endpoints", |all| {
            all.len() == 1 && ready_endpoints(all).len() == 2
        })
        .await;
    assert_eq!(
        slices[0]["metadata"]["labels"]["kubernetes.io/service-name"],
        "web"
    );
    let nodes = cluster
        .until_ticking(NODES, "without taints", are_untainted)
        .await;
    let ranges: Vec<_> = nodes
        .iter()
        .map(|node| node["spec"]["podCIDR"].clone())
        .collect();
    assert!(
        ranges.iter().all(Value::is_string),
        "after {writes} writes: {ranges:?}"
    );
    assert_ne!(ranges[0], ranges[1], "after {writes} writes");
}
