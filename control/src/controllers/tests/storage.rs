//! Volumes find their claims, and pods their volumes.

use std::sync::Arc;

use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    super::resources::{
        EVENTS, PERSISTENT_VOLUMES, PODS, STATEFUL_SETS, STORAGE_CLASSES, VOLUME_CLAIMS,
    },
    cluster::{Cluster, named, wide},
    crash::Mortal,
};
use crate::api::DeleteOptions;

fn class() -> Value {
    json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"})
}

fn volume(name: &str, class: &str, size: &str, change: &Value) -> Value {
    let mut volume = json!({"metadata": {"name": name}, "spec": {
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "hostPath": {"path": format!("/{name}")}}});
    json_patch::merge(&mut volume, change);
    volume
}

/// A change that puts a volume on a node.
fn on(node: &str) -> Value {
    json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn claim(name: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": "2Gi"}}}})
}

fn user(name: &str, claim: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "containers": [{"name": "c", "image": "demo:1"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

pub fn phase<'a>(all: &'a [Value], name: &str) -> &'a str {
    let mut all = all.iter();
    let found = all.find(|one| one["metadata"]["name"] == name);
    found
        .and_then(|one| one["status"]["phase"].as_str())
        .unwrap_or("gone")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_gets_the_smallest_volume_that_does() {
    let mut cluster = Cluster::new().await;
    let delete = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    for object in [
        volume("small", "", "1Gi", &json!({})),
        volume("right", "", "3Gi", &json!({})),
        volume("large", "", "9Gi", &delete),
    ] {
        let made = cluster.make(PERSISTENT_VOLUMES, None, object).await;
        made.expect("made");
    }
    for name in ["a", "b", "c"] {
        let made = cluster.make(VOLUME_CLAIMS, Some("default"), claim(name, ""));
        made.await.expect("made");
        let waits = name == "c";
        cluster
            .until(VOLUME_CLAIMS, "bound, but for the last", |all| {
                waits || phase(all, name) == "Bound"
            })
            .await;
    }
    let claims = cluster.list(VOLUME_CLAIMS).await;
    assert_eq!(claims[0]["spec"]["volumeName"], "right");
    assert_eq!(claims[0]["status"]["capacity"]["storage"], "3Gi");
    assert_eq!(claims[1]["spec"]["volumeName"], "large");
    assert_eq!(claims[2]["status"]["phase"], "Pending");
    cluster
        .until(EVENTS, "told", |all| {
            all.iter().any(|event| {
                event["message"]
                    == "no persistent volumes available for this claim and no storage class is set"
            })
        })
        .await;
    cluster
        .until(PERSISTENT_VOLUMES, "bound", |all| {
            phase(all, "right") == "Bound"
                && phase(all, "large") == "Bound"
                && phase(all, "small") == "Available"
        })
        .await;
    for name in ["a", "b"] {
        let options = DeleteOptions::default();
        cluster.delete(VOLUME_CLAIMS, &named(name), options).await;
    }
    cluster
        .until(PERSISTENT_VOLUMES, "kept and gone", |all| {
            phase(all, "right") == "Released" && phase(all, "large") == "gone"
        })
        .await;
    // The administrator gives it free.
    let free = json!({"spec": {"claimRef": null}});
    cluster
        .patch(PERSISTENT_VOLUMES, &wide("right"), None, free)
        .await;
    cluster
        .until(VOLUME_CLAIMS, "the next one's", |all| {
            phase(all, "c") == "Bound"
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_goes_where_its_volume_is_and_keeps_its_claim() {
    let mut cluster = Cluster::new().await;
    for node in ["n1", "n2"] {
        cluster.add_node(node).await;
    }
    let made = cluster.make(STORAGE_CLASSES, None, class()).await;
    made.expect("made");
    let object = volume("v", "local", "2Gi", &on("n2"));
    let made = cluster.make(PERSISTENT_VOLUMES, None, object).await;
    made.expect("made");
    let made = cluster.make(VOLUME_CLAIMS, Some("default"), claim("data", "local"));
    made.await.expect("made");
    cluster
        .until(EVENTS, "waiting", |all| {
            all.iter()
                .any(|event| event["reason"] == "WaitForFirstConsumer")
        })
        .await;
    let made = cluster.make(PODS, Some("default"), user("p", "data"));
    made.await.expect("made");
    let agents = cluster.play_agents();
    let pods = cluster
        .until_ticking(PODS, "running", |all| phase(all, "p") == "Running")
        .await;
    assert_eq!(pods[0]["spec"]["nodeName"], "n2");
    assert_eq!(phase(&cluster.list(VOLUME_CLAIMS).await, "data"), "Bound");

    let made = cluster.make(PODS, Some("default"), user("q", "none"));
    made.await.expect("made");
    cluster
        .until(PODS, "told", |all| {
            all.iter().any(|pod| {
                pod["status"]["conditions"][0]["message"]
                    == "0/2 nodes are available: persistentvolumeclaim \"none\" not found. preemption: 0/2 nodes are \
                        available: 2 Preemption is not helpful for scheduling."
            })
        })
        .await;

    // A claim in use stays until its pod is gone.
    let options = DeleteOptions::default;
    cluster
        .delete(VOLUME_CLAIMS, &named("data"), options())
        .await;
    let claims = cluster.list(VOLUME_CLAIMS).await;
    assert!(!claims[0]["metadata"]["deletionTimestamp"].is_null());
    cluster.delete(PODS, &named("p"), options()).await;
    cluster
        .until(VOLUME_CLAIMS, "gone", <[Value]>::is_empty)
        .await;
    cluster
        .until(PERSISTENT_VOLUMES, "released", |all| {
            phase(all, "v") == "Released"
        })
        .await;
    drop(agents);
    cluster.stop().await;
}

fn set_with_claims(policy: &Value) -> Value {
    json!({"metadata": {"name": "db"}, "spec": {
        "serviceName": "db", "replicas": 2,
        "selector": {"matchLabels": {"app": "db"}},
        "persistentVolumeClaimRetentionPolicy": policy,
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [
            {"name": "c", "image": "demo:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim("data", "local")["spec"]}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_sets_pods_keep_their_claims() {
    let mut cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    let made = cluster.make(STORAGE_CLASSES, None, class()).await;
    made.expect("made");
    for name in ["v0", "v1"] {
        let object = volume(name, "local", "2Gi", &on("n1"));
        let made = cluster.make(PERSISTENT_VOLUMES, None, object).await;
        made.expect("made");
    }
    let agents = cluster.play_agents();
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    let made = cluster.make(STATEFUL_SETS, Some("default"), set_with_claims(&policy));
    made.await.expect("made");
    let are_running =
        |all: &[Value]| phase(all, "db-0") == "Running" && phase(all, "db-1") == "Running";
    let pods = cluster.until_ticking(PODS, "running", are_running).await;
    assert_eq!(
        pods[0]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "data-db-0"
    );
    let of_first = |claims: &[Value]| claims[0]["spec"]["volumeName"].clone();
    let before = of_first(&cluster.list(VOLUME_CLAIMS).await);
    let old = pods[0]["metadata"]["uid"].clone();
    let options = DeleteOptions::default;
    cluster.delete(PODS, &named("db-0"), options()).await;
    cluster
        .until_ticking(PODS, "made anew", |all| {
            are_running(all) && all[0]["metadata"]["uid"] != old
        })
        .await;
    assert_eq!(of_first(&cluster.list(VOLUME_CLAIMS).await), before);
    let one = json!({"spec": {"replicas": 1}});
    cluster
        .patch(STATEFUL_SETS, &named("db"), Some("scale"), one)
        .await;
    cluster
        .until_ticking(VOLUME_CLAIMS, "less by the last", |all| {
            all.len() == 1 && phase(all, "data-db-0") == "Bound"
        })
        .await;
    cluster.delete(STATEFUL_SETS, &named("db"), options()).await;
    cluster
        .until_ticking(PODS, "gone", <[Value]>::is_empty)
        .await;
    assert_eq!(cluster.list(VOLUME_CLAIMS).await.len(), 1, "it is retained");
    drop(agents);
    cluster.stop().await;
}

/// More than binding two claims of a set takes.
const WRITES: i64 = 80;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_over_binds_what_was_begun() {
    let survived = futures::stream::iter(1..=WRITES)
        .map(bind_and_die)
        .buffered(4)
        .take_while(|has_died| std::future::ready(*has_died))
        .count()
        .await;
    let survived = i64::try_from(survived).expect("a small number");
    assert!(survived > 10, "the story took only {survived} writes");
    assert!(survived < WRITES, "the story has no end");
}

/// Plays the story of a set with claims under controllers that die after so many writes; whether they did.
async fn bind_and_die(writes: i64) -> bool {
    let mut cluster = Cluster::new().await;
    cluster.stop().await;
    let mortal = Mortal::new(cluster.engine(), writes);
    cluster.start_on(Arc::clone(&mortal) as _).await;
    let agents = cluster.play_agents();
    let story = async {
        begin(&cluster).await;
        until_bound(&cluster).await;
    };
    let has_died = tokio::select! {
        () = mortal.died.notified() => true,
        () = story => false,
    };
    cluster.stop().await;
    cluster.start().await;
    begin(&cluster).await;
    until_bound(&cluster).await;
    let claims = cluster.list(VOLUME_CLAIMS).await;
    let volume = |claim: &Value| claim["spec"]["volumeName"].clone();
    assert_eq!(claims.len(), 2, "after {writes} writes");
    assert_ne!(
        volume(&claims[0]),
        volume(&claims[1]),
        "after {writes} writes"
    );
    drop(agents);
    cluster.stop().await;
    has_died
}

async fn begin(cluster: &Cluster) {
    cluster.add_node("n1").await;
    cluster.ensure(STORAGE_CLASSES, None, class()).await;
    for name in ["v0", "v1"] {
        let volume = volume(name, "local", "2Gi", &on("n1"));
        cluster.ensure(PERSISTENT_VOLUMES, None, volume).await;
    }
    let retain = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
    let set = set_with_claims(&retain);
    cluster.ensure(STATEFUL_SETS, Some("default"), set).await;
}

async fn until_bound(cluster: &Cluster) {
    cluster
        .until_ticking(PODS, "running", |all| {
            phase(all, "db-0") == "Running" && phase(all, "db-1") == "Running"
        })
        .await;
    cluster
        .until_ticking(VOLUME_CLAIMS, "bound", |all| {
            phase(all, "data-db-0") == "Bound" && phase(all, "data-db-1") == "Bound"
        })
        .await;
    cluster
        .until_ticking(PERSISTENT_VOLUMES, "bound", |all| {
            phase(all, "v0") == "Bound" && phase(all, "v1") == "Bound"
        })
        .await;
}
