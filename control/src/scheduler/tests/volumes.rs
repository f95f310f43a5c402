//! Pods go where their volumes are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::{cluster, node, pod, text, wait};
use crate::{
    api::ObjectKey,
    scheduler::{demand::Demand, snapshot::Snapshot},
};

fn add_volume(snapshot: &mut Snapshot, name: &str, node: &str, change: &Value) {
    let mut object = json!({"metadata": {"name": name}, "spec": {
        "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "local": {"path": "/v"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
    json_patch::merge(&mut object, change);
    let volume = serde_json::from_value(object).expect("a volume");
    snapshot.volumes.set_volume(&Arc::new(volume));
}

fn add_claim(snapshot: &mut Snapshot, name: &str, change: &Value) {
    let mut object = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "1Gi"}}}});
    json_patch::merge(&mut object, change);
    let key = ObjectKey {
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    };
    let claim = serde_json::from_value(object).expect("a claim");
    snapshot.volumes.claims.insert(key, Arc::new(claim));
}

fn user(name: &str, claims: &[&str]) -> Pod {
    let volumes: Vec<_> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    pod(name, &json!({"spec": {"volumes": volumes}}))
}

fn two_nodes(mode: &str) -> Snapshot {
    let mut snapshot = cluster(&[node("n1", &json!({})), node("n2", &json!({}))]);
    let class = json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": mode});
    let class = serde_json::from_value(class).expect("a class");
    let classes = &mut snapshot.volumes.classes;
    classes.insert("local".to_owned(), Arc::new(class));
    snapshot
}

fn bound(volume: &str) -> Value {
    json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": volume}})
}

#[test]
fn unbound_claims_choose_among_the_volumes_of_a_node() {
    let mut snapshot = two_nodes("WaitForFirstConsumer");
    add_volume(&mut snapshot, "v1", "n2", &json!({}));
    for claim in ["a", "b"] {
        add_claim(&mut snapshot, claim, &json!({}));
    }
    wait(&mut snapshot, &[user("p", &["a"]), user("q", &["b"])]);
    assert_eq!(
        text(&snapshot),
        "p -> n2 when a = v1\n\
         q -> 0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind. preemption: 0/2 \
         nodes are available: 2 Preemption is not helpful for scheduling.\n"
    );
    // Both claims of one pod have to find one on the same node.
    snapshot.remove_pending(&Demand::of(&user("p", &[])).key);
    snapshot.remove_pending(&Demand::of(&user("q", &[])).key);
    add_volume(&mut snapshot, "v2", "n1", &json!({}));
    wait(&mut snapshot, &[user("both", &["a", "b"])]);
    assert!(text(&snapshot).contains("2 node(s) didn't find available persistent volumes"));
    let large = json!({"spec": {"capacity": {"storage": "9Gi"}}});
    add_volume(&mut snapshot, "v3", "n1", &large);
    assert_eq!(text(&snapshot), "both -> n1 when a = v2, b = v3\n");
    snapshot
        .volumes
        .assumed
        .insert("v2".to_owned(), Demand::of(&user("other", &[])).key);
    assert!(text(&snapshot).contains("2 node(s) didn't find available persistent volumes"));
}

#[test]
fn bound_claims_bring_a_pod_to_their_volume() {
    let mut snapshot = two_nodes("Immediate");
    add_volume(&mut snapshot, "v1", "n2", &json!({}));
    add_claim(&mut snapshot, "a", &bound("v1"));
    wait(&mut snapshot, &[user("p", &["a"])]);
    assert_eq!(text(&snapshot), "p -> n2\n");
    snapshot.remove_node("n2");
    assert_eq!(
        text(&snapshot),
        "p -> 0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity. preemption: 0/1 nodes \
         are available: 1 Preemption is not helpful for scheduling.\n"
    );
    add_claim(&mut snapshot, "a", &bound("v9"));
    assert!(
        text(&snapshot).contains(
            "1 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
        )
    );
    add_claim(&mut snapshot, "a", &json!({}));
    assert_eq!(
        text(&snapshot),
        "p -> 0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. preemption: 0/1 nodes are \
         available: 1 Preemption is not helpful for scheduling.\n"
    );
}
