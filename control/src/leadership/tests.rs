//! Servers that share a store: one leads at a time, and a deposed one writes nothing.

use serde_json::{Value, json};

use super::*;
use crate::allocation::Ranges;
use crate::api::{Caller, DeleteOptions, ListOptions, ObjectKey, WriteOptions};
use crate::controllers::resources::{DEPLOYMENTS, REPLICA_SETS};
use crate::resource::rows::{CONFIG_MAPS, ENDPOINT_SLICES, LEASES, NAMESPACES};
use crate::store::{Embedded, Guard, RangeQuery};

const PATIENCE: Duration = Duration::from_mins(1);

/// A server without ports: an engine of its own, with its own caches, and its part in the election.
struct Server {
    engine: Arc<Engine>,
    role: watch::Receiver<Role>,
    leader: watch::Receiver<Option<String>>,
    shutdown: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

async fn server(store: &Arc<dyn Store>, number: u8) -> Server {
    let ranges = Ranges {
        service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        node_ports: 30000..=32767,
    };
    let allocations = Allocations::new(store, &ranges, 1);
    let admissions = admissions(store, &allocations);
    let engine = Engine::open(Arc::clone(store), admissions, None).await;
    let engine = engine.unwrap();
    let candidate = Candidate::new(Arc::clone(store), format!("server{number}"));
    let leader = candidate.leader();
    let (role, roles) = watch::channel(Role::Unknown);
    let registration = Registration {
        addresses: vec![format!("10.0.0.{number}").parse().unwrap()],
        port: 6443,
    };
    let shutdown = CancellationToken::new();
    tokio::spawn(servers::register(
        Arc::clone(store),
        candidate.name().to_owned(),
        registration.clone(),
        shutdown.clone(),
    ));
    let leadership = Leadership {
        store: Arc::clone(store),
        sealed: None,
        engine: Arc::clone(&engine),
        ranges,
        seed: 1,
        candidate,
        registration,
    };
    Server {
        engine,
        role: roles,
        leader,
        ended: tokio::spawn(leadership.run(role, shutdown.clone())),
        shutdown,
    }
}

impl Server {
    async fn becomes(&mut self, role: Role) {
        let became = self.role.wait_for(|now| *now == role);
        tokio::time::timeout(PATIENCE, became)
            .await
            .unwrap()
            .unwrap();
    }

    async fn make(&self, resource: crate::api::ResourceId, namespace: Option<&str>, object: Value) {
        let options = WriteOptions::default();
        let caller = Caller::system("test");
        let made = self
            .engine
            .create(&caller, resource, namespace, object, &options);
        made.await.unwrap();
    }

    async fn get(
        &self,
        resource: crate::api::ResourceId,
        namespace: &str,
        name: &str,
    ) -> Option<Value> {
        let key = ObjectKey {
            namespace: Some(namespace.to_owned()),
            name: name.to_owned(),
        };
        self.engine
            .get(&Caller::system("test"), resource, &key)
            .await
            .ok()
    }

    /// Waits until a deployment has its replica set, which only a leader's controller makes.
    async fn deploys(&self, name: &str) {
        let deployment = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        });
        self.make(DEPLOYMENTS, Some("default"), deployment).await;
        let made = async {
            loop {
                let list = self
                    .engine
                    .list(
                        &Caller::system("test"),
                        REPLICA_SETS,
                        Some("default"),
                        &ListOptions::default(),
                    )
                    .await
                    .unwrap();
                if list
                    .items
                    .iter()
                    .any(|set| set["metadata"]["labels"]["app"] == *name)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, made).await.unwrap();
    }

    async fn endpoints(&self) -> Vec<String> {
        let Some(slice) = self.get(ENDPOINT_SLICES, "default", "kubernetes").await else {
            return Vec::new();
        };
        let endpoints = slice["endpoints"].as_array().cloned().unwrap_or_default();
        endpoints
            .iter()
            .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until the Lease names a leader, and says how often the lead has changed hands.
    async fn shows_leader(&self, name: &str) -> Value {
        let shown = async {
            loop {
                let lease = self.get(LEASES, "kube-system", "portolan-control").await;
                if let Some(lease) = lease
                    && lease["spec"]["holderIdentity"] == *name
                {
                    return lease["spec"]["leaseTransitions"].clone();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, shown).await.unwrap()
    }

    async fn endpoints_become(&self, expected: &[&str]) {
        let became = async {
            while self.endpoints().await != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, became).await.unwrap();
    }
}

async fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(folder.path().join("store")).await.unwrap();
    (folder, Arc::new(store))
}

async fn two_servers(store: &Arc<dyn Store>) -> (Server, Server) {
    let mut first = server(store, 1).await;
    for name in ["default", "kube-system"] {
        let namespace = json!({"metadata": {"name": name}});
        first.make(NAMESPACES, None, namespace).await;
    }
    first.becomes(Role::Leading).await;
    let mut second = server(store, 2).await;
    second.becomes(Role::Standby).await;
    (first, second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_at_once_when_the_leader_ends() {
    let (_folder, store) = store().await;
    let (first, mut second) = two_servers(&store).await;
    second.deploys("before").await;
    first.endpoints_become(&["10.0.0.1", "10.0.0.2"]).await;
    assert_eq!(second.leader.borrow().as_deref(), Some("server1"));
    assert_eq!(second.shows_leader("server1").await, 0);
    first.shutdown.cancel();
    first.ended.await.unwrap();
    // Not after the lease has expired: the key is gone with the leader.
    assert!(
        store
            .get(election::LEADER_KEY)
            .await
            .unwrap()
            .is_none_or(|leader| leader.value == "server2")
    );
    second.becomes(Role::Leading).await;
    second.deploys("after").await;
    second.endpoints_become(&["10.0.0.2"]).await;
    let transitions = second.shows_leader("server2").await;
    assert_eq!(transitions, 1);
    second.shutdown.cancel();
    second.ended.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_when_the_leader_dies() {
    let (_folder, store) = store().await;
    let (first, mut second) = two_servers(&store).await;
    // All of it stops where it is, as in a kill.
    first.ended.abort();
    second.becomes(Role::Leading).await;
    second.deploys("after").await;
    second.shutdown.cancel();
    second.ended.await.unwrap();
}

/// A leader that has been away does not know that its term is over. Nothing it writes takes place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_writes_nothing() {
    let (_folder, store) = store().await;
    let engine = Engine::open(Arc::clone(&store), Vec::new(), None)
        .await
        .unwrap();
    let caller = Caller::system("test");
    let options = WriteOptions::default();
    let namespace = json!({"metadata": {"name": "default"}});
    engine
        .create(&caller, NAMESPACES, None, namespace, &options)
        .await
        .unwrap();
    let candidate = Candidate::new(Arc::clone(&store), "old".to_owned());
    let term = candidate.campaign().await;
    let fenced: Arc<dyn Store> = Arc::new(Fenced::new(Arc::clone(&store), term.fence.clone()));
    let leader = engine.over(fenced, Vec::new());
    let map = |name: &str| json!({"metadata": {"name": name}, "data": {"by": "leader"}});
    let key = ObjectKey {
        namespace: Some("default".to_owned()),
        name: "a".to_owned(),
    };
    leader
        .create(&caller, CONFIG_MAPS, Some("default"), map("a"), &options)
        .await
        .unwrap();
    // The term ends while the old leader sleeps, and another begins.
    election::clear(&*store, election::LEADER_KEY)
        .await
        .unwrap();
    let successor = Candidate::new(Arc::clone(&store), "new".to_owned());
    successor.campaign().await;
    let before = store.range(registry()).await.unwrap().items;
    let created = leader
        .create(&caller, CONFIG_MAPS, Some("default"), map("b"), &options)
        .await;
    let mut changed = map("a");
    changed["data"]["by"] = json!("nobody");
    let updated = leader
        .update(&caller, CONFIG_MAPS, &key, None, changed, &options)
        .await;
    let deleted = leader
        .delete(&caller, CONFIG_MAPS, &key, &DeleteOptions::default())
        .await;
    for refused in [created, updated, deleted] {
        let status = refused.unwrap_err();
        assert_eq!(
            (status.code, status.reason.as_str()),
            (503, "ServiceUnavailable")
        );
    }
    assert_eq!(store.range(registry()).await.unwrap().items, before);
    // It finds out by itself.
    tokio::time::timeout(PATIENCE, candidate.hold(&term))
        .await
        .unwrap();
}

fn registry() -> RangeQuery {
    RangeQuery {
        prefix: "/registry/".into(),
        ..RangeQuery::default()
    }
}

#[tokio::test]
async fn an_only_server_waits_for_no_earlier_life() {
    let (_folder, store) = store().await;
    Candidate::new(Arc::clone(&store), "a".to_owned())
        .campaign()
        .await;
    let stale = store.get(election::LEADER_KEY).await.unwrap().unwrap();
    election::clear(&*store, election::LEADER_KEY)
        .await
        .unwrap();
    let next = Candidate::new(Arc::clone(&store), "b".to_owned());
    let term = next.campaign().await;
    assert!(term.fence.create_revision > stale.mod_revision);
    let holding = async { next.hold(&term).await };
    // The old lease ends later, and must not take the new key along: by then a lease that is younger has ended too.
    let expired = async {
        let lease = store.lease_grant(election::TTL).await.unwrap();
        let put = store.put(b"/young", "1".into(), Guard::Any, Some(lease));
        put.await.unwrap();
        while store.get(b"/young").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = holding => panic!("the term is over"),
        () = expired => {}
    }
    let leader = store.get(election::LEADER_KEY).await.unwrap().unwrap();
    assert_eq!(leader.create_revision, term.fence.create_revision);
}
