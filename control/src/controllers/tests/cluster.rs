//! A cluster of the real engine over an embedded store, with nodes that are played.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::controllers::{
    Running, Setup,
    clock::ManualClock,
    resources::{Kind, LEASES, NAMESPACES, NODES, PODS},
    start,
};
use crate::{
    allocation::{Allocations, Ranges, admission::ServiceAdmission},
    api::{
        Api, Caller, DeleteOptions, ListOptions, ObjectKey, PatchKind, ResourceId, Status,
        WatchEvent, WriteOptions,
        classes::ClassAdmission,
        engine::{self, Engine},
    },
    scheduler::Policy,
    store::{Store, embedded::Embedded},
};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_mins(1);

pub struct Cluster {
    engine: engine::Running,
    api: Arc<Engine>,
    pub store: Arc<dyn Store>,
    pub allocations: Arc<Allocations>,
    pub clock: Arc<ManualClock>,
    caller: Caller,
    running: Option<Running>,
    shutdown: CancellationToken,
    _folder: tempfile::TempDir,
}

pub fn named(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    }
}

pub fn wide(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: None,
        name: name.to_owned(),
    }
}

impl Cluster {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Embedded::open(folder.path().join("store"))
            .await
            .expect("a store");
        let store: Arc<dyn Store> = Arc::new(store);
        let cidrs = |texts: [&str; 2]| texts.map(|text| text.parse().expect("a CIDR")).to_vec();
        let ranges = Ranges {
            service_cidrs: cidrs(["10.96.0.0/16", "fd00:10:96::/112"]),
            cluster_cidrs: cidrs(["10.244.0.0/16", "fd00:10:244::/48"]),
            node_ports: 30000..=32767,
        };
        let allocations = Allocations::new(&store, &ranges, 1);
        let admissions = vec![
            ServiceAdmission::new(Arc::clone(&allocations)) as _,
            ClassAdmission::new(Arc::clone(&store)) as _,
        ];
        let engine = Engine::start(Arc::clone(&store), admissions)
            .await
            .expect("an engine");
        let mut cluster = Self {
            api: Arc::clone(&engine.engine),
            engine,
            store,
            allocations,
            clock: ManualClock::at(jiff::Timestamp::now()),
            caller: Caller::system("test"),
            running: None,
            shutdown: CancellationToken::new(),
            _folder: folder,
        };
        cluster
            .make(NAMESPACES, None, json!({"metadata": {"name": "default"}}))
            .await
            .expect("made");
        let leases = json!({"metadata": {"name": "kube-node-lease"}});
        cluster.make(NAMESPACES, None, leases).await.expect("made");
        cluster.start().await;
        cluster
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.api
    }

    /// Starts the controllers, as a new process would.
    pub async fn start(&mut self) {
        self.start_on(Arc::clone(&self.api) as Arc<dyn Api>).await;
    }

    /// Starts the controllers on another way to the engine.
    pub async fn start_on(&mut self, api: Arc<dyn Api>) {
        self.shutdown = CancellationToken::new();
        let setup = Setup {
            api,
            kinds: Kind::followed(self.engine.engine.table()),
            allocations: Arc::clone(&self.allocations),
            clock: Arc::clone(&self.clock) as _,
            scheduling: Policy::default(),
        };
        let running = start(setup, &self.shutdown);
        tokio::time::timeout(LIMIT, running.synced())
            .await
            .expect("it syncs");
        self.running = Some(running);
    }

    /// Stops the controllers in the middle of whatever they do.
    pub async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            tokio::time::timeout(LIMIT, running.ended())
                .await
                .expect("it ends");
        }
    }

    pub async fn make(
        &self,
        kind: ResourceId,
        namespace: Option<&str>,
        object: Value,
    ) -> Result<Value, Status> {
        let options = WriteOptions::default();
        self.api
            .create(&self.caller, kind, namespace, object, &options)
            .await
    }

    pub async fn list(&self, kind: ResourceId) -> Vec<Value> {
        let options = ListOptions::default();
        let list = self.api.list(&self.caller, kind, None, &options).await;
        list.expect("a list").items
    }

    pub async fn patch(
        &self,
        kind: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        patch: Value,
    ) {
        let options = WriteOptions::default();
        self.api
            .patch(
                &self.caller,
                kind,
                key,
                subresource,
                PatchKind::Merge,
                patch,
                &options,
            )
            .await
            .expect("patched");
    }

    pub async fn delete(&self, kind: ResourceId, key: &ObjectKey, options: DeleteOptions) {
        self.api
            .delete(&self.caller, kind, key, &options)
            .await
            .expect("deleted");
    }

    /// Waits until a list of objects is as it should be, looking again at each change of its kind.
    pub async fn until(
        &self,
        kind: ResourceId,
        what: &str,
        holds: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let options = ListOptions::default();
        let waiting = async {
            loop {
                let list = self
                    .api
                    .list(&self.caller, kind, None, &options)
                    .await
                    .expect("a list");
                if holds(&list.items) {
                    return list.items;
                }
                let from = ListOptions {
                    resource_version: Some(list.resource_version),
                    ..ListOptions::default()
                };
                let mut watch = self
                    .api
                    .watch(&self.caller, kind, None, &from)
                    .await
                    .expect("a watch");
                while let Some(event) = watch.next().await {
                    if !matches!(event.expect("an event"), WatchEvent::Bookmark(_)) {
                        break;
                    }
                }
            }
        };
        match tokio::time::timeout(LIMIT, waiting).await {
            Ok(items) => items,
            Err(elapsed) => panic!("not {what}, {elapsed}: {:#?}", self.list(kind).await),
        }
    }

    /// As [`Cluster::until`], while time goes on quickly.
    pub async fn until_ticking(
        &self,
        kind: ResourceId,
        what: &str,
        holds: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let clock = Arc::clone(&self.clock);
        let ticking = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                clock.advance(Duration::from_millis(100));
            }
        }));
        let items = self.until(kind, what, holds).await;
        drop(ticking);
        items
    }

    /// Makes what is not there yet.
    pub async fn ensure(&self, kind: ResourceId, namespace: Option<&str>, object: Value) {
        if let Err(status) = self.make(kind, namespace, object).await {
            assert_eq!(status.reason, "AlreadyExists", "{status}");
        }
    }

    /// A node that beats and says that it is ready.
    pub async fn add_node(&self, name: &str) {
        let node = json!({"metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": name,
        }}});
        self.ensure(NODES, None, node).await;
        self.patch(NODES, &wide(name), Some("status"), ready_node())
            .await;
        let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}});
        self.ensure(LEASES, Some("kube-node-lease"), lease).await;
        self.beat(name).await;
    }

    /// Renews a node's lease.
    pub async fn beat(&self, node: &str) {
        use crate::controllers::clock::Clock;
        let key = ObjectKey {
            namespace: Some("kube-node-lease".to_owned()),
            name: node.to_owned(),
        };
        let now = self
            .clock
            .now()
            .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
            .to_string();
        self.patch(LEASES, &key, None, json!({"spec": {"renewTime": now}}))
            .await;
        // Until the controllers can see it: the clock must not move on before.
        let running = self.running.as_ref().expect("the controllers run");
        let leases = running.context.informers.leases.cache();
        let is_seen = || {
            let lease = leases.get(&key)?;
            let renewed = lease.spec.as_ref()?.renew_time.as_ref()?.0;
            (renewed >= self.clock.now() - jiff::SignedDuration::from_secs(1)).then_some(())
        };
        let waiting = async {
            while is_seen().is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LIMIT, waiting)
            .await
            .expect("the heartbeat is seen");
    }

    /// Plays the agents of all nodes: bound pods run and are ready, deleted ones end.
    pub fn play_agents(&self) -> tokio_util::task::AbortOnDropHandle<()> {
        let (api, caller) = (Arc::clone(&self.api), self.caller.clone());
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
            let options = ListOptions::default();
            let mut watch = api
                .watch(&caller, PODS, None, &options)
                .await
                .expect("a watch");
            let mut count = 0;
            while let Some(event) = watch.next().await {
                if let WatchEvent::Added(pod) | WatchEvent::Modified(pod) = event.expect("an event")
                {
                    count += 1;
                    play_agent(&api, &caller, &pod, count).await;
                }
            }
        }))
    }
}

pub fn ready_node() -> Value {
    json!({"status": {
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
        "capacity": {"cpu": "4", "memory": "4Gi", "pods": "110"},
    }})
}

async fn play_agent(api: &Engine, caller: &Caller, pod: &Value, count: usize) {
    let metadata = &pod["metadata"];
    let key = ObjectKey {
        namespace: metadata["namespace"].as_str().map(str::to_owned),
        name: metadata["name"].as_str().unwrap_or_default().to_owned(),
    };
    if !metadata["deletionTimestamp"].is_null() {
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: metadata["uid"].as_str().map(str::to_owned),
            ..DeleteOptions::default()
        };
        if let Err(status) = api.delete(caller, PODS, &key, &options).await {
            assert_eq!(status.code, 404, "{status}");
        }
    } else if pod["spec"]["nodeName"].is_string() && pod["status"]["phase"] == "Pending" {
        let ip = format!("10.244.9.{count}");
        let phase = match pod["spec"]["restartPolicy"].as_str() {
            Some("Never") => "Succeeded",
            _ => "Running",
        };
        let patch = json!({"status": {
            "phase": phase, "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
        }});
        let options = WriteOptions::default();
        let patched = api
            .patch(
                caller,
                PODS,
                &key,
                Some("status"),
                PatchKind::Merge,
                patch,
                &options,
            )
            .await;
        if let Err(status) = patched {
            assert_eq!(status.code, 404, "{status}");
        }
    }
}
