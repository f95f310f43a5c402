//! Classes: pods get their priority, claims their storage class; a node's agent reads its pods' claims only.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Cluster, cluster_of, named, pod};
use crate::api::classes::ClassAdmission;
use crate::api::{Api, Caller, ListOptions, ObjectKey, ResourceId, Status, WriteOptions};
use crate::resource::rows::{
    PERSISTENT_VOLUMES, PODS, PRIORITY_CLASSES, STORAGE_CLASSES, VOLUME_CLAIMS,
};

async fn with_classes() -> Cluster {
    cluster_of(
        |store| vec![ClassAdmission::new(Arc::clone(store)) as _],
        None,
    )
    .await
}

impl Cluster {
    async fn make_wide(&self, resource: ResourceId, object: Value) -> Result<Value, Status> {
        let options = WriteOptions::default();
        self.create(&self.caller, resource, None, object, &options)
            .await
    }
}

fn class(name: &str, value: i64, is_default: bool) -> Value {
    json!({"metadata": {"name": name}, "value": value, "globalDefault": is_default})
}

fn of_class(name: &str, class: &str) -> Value {
    let mut pod = pod(name);
    pod["spec"]["priorityClassName"] = json!(class);
    pod
}

#[tokio::test]
async fn pods_get_the_priority_of_their_class() {
    let cluster = with_classes().await;
    let plain = cluster.make(PODS, pod("plain")).await.expect("made");
    assert_eq!(plain["spec"]["priority"], 0);
    assert_eq!(plain["spec"].get("priorityClassName"), None);
    let refused = cluster.make(PODS, of_class("a", "high")).await;
    let refused = refused.expect_err("no such class");
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message,
        "pods \"a\" is forbidden: no PriorityClass with name high was found"
    );
    let mut high = class("high", 1000, false);
    high["preemptionPolicy"] = json!("Never");
    let high = cluster.make_wide(PRIORITY_CLASSES, high).await;
    high.expect("made");
    let made = cluster.make(PODS, of_class("a", "high")).await;
    let made = made.expect("made");
    assert_eq!(made["spec"]["priority"], 1000);
    assert_eq!(made["spec"]["preemptionPolicy"], "Never");
    let mut own = of_class("b", "high");
    own["spec"]["priority"] = json!(5);
    let refused = cluster.make(PODS, own).await.expect_err("not its own");
    assert!(
        refused
            .message
            .contains("the integer value of priority (5) must not be provided in pod spec"),
        "{}",
        refused.message
    );
    let usual = cluster.make_wide(PRIORITY_CLASSES, class("usual", 7, true));
    usual.await.expect("made");
    let second = cluster.make_wide(PRIORITY_CLASSES, class("second", 8, true));
    assert_eq!(
        second.await.expect_err("there is one").message,
        "priorityclasses.scheduling.k8s.io \"second\" is forbidden: PriorityClass usual is already marked as default. \
         Only one default can exist"
    );
    let made = cluster.make(PODS, pod("c")).await.expect("made");
    assert_eq!(made["spec"]["priority"], 7);
    assert_eq!(made["spec"]["priorityClassName"], "usual");
}

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
}

#[tokio::test]
async fn claims_without_a_class_get_the_default_one() {
    let cluster = with_classes().await;
    let none = cluster.make(VOLUME_CLAIMS, claim("a")).await;
    let none = none.expect("made");
    assert_eq!(none["spec"].get("storageClassName"), None);
    assert_eq!(
        none["metadata"]["finalizers"],
        json!(["kubernetes.io/pvc-protection"])
    );
    let class = json!({
        "metadata": {
            "name": "local",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
    });
    let class = cluster.make_wide(STORAGE_CLASSES, class).await;
    class.expect("made");
    let made = cluster.make(VOLUME_CLAIMS, claim("b")).await;
    assert_eq!(made.expect("made")["spec"]["storageClassName"], "local");
    let mut own = claim("c");
    own["spec"]["storageClassName"] = json!("");
    let made = cluster.make(VOLUME_CLAIMS, own).await;
    assert_eq!(made.expect("made")["spec"]["storageClassName"], "");
}

#[tokio::test]
async fn a_nodes_agent_reads_its_pods_claims_and_volumes_only() {
    let cluster = with_classes().await;
    for name in ["used", "other"] {
        let mut claim = claim(name);
        claim["spec"]["volumeName"] = json!(format!("of-{name}"));
        cluster.make(VOLUME_CLAIMS, claim).await.expect("made");
        let volume = json!({"metadata": {"name": format!("of-{name}")}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/v"},
            "claimRef": {"namespace": "default", "name": name}}});
        let volume = cluster.make_wide(PERSISTENT_VOLUMES, volume).await;
        volume.expect("made");
    }
    let mut mounting = pod("user");
    mounting["spec"]["volumes"] =
        json!([{"name": "v", "persistentVolumeClaim": {"claimName": "used"}}]);
    cluster.make(PODS, mounting).await.expect("made");
    cluster.bind("user").await;
    // A list is of now, and with it what authorization looks at.
    let options = ListOptions::default();
    let listed = cluster.list(&cluster.caller, PODS, None, &options).await;
    listed.expect("pods");
    let wide = |name: &str| ObjectKey {
        namespace: None,
        name: name.to_owned(),
    };
    for (node, may) in [("n1", true), ("n2", false)] {
        let agent = Caller {
            user: format!("system:node:{node}"),
            groups: vec!["system:nodes".to_owned()],
            ..Caller::system("agent")
        };
        let claim = cluster.get(&agent, VOLUME_CLAIMS, &named("used")).await;
        assert_eq!(claim.is_ok(), may, "{node}: {claim:?}");
        let (used, other) = (wide("of-used"), wide("of-other"));
        let volume = cluster.get(&agent, PERSISTENT_VOLUMES, &used);
        assert_eq!(volume.await.is_ok(), may, "{node}");
        let claim = cluster.get(&agent, VOLUME_CLAIMS, &named("other")).await;
        assert_eq!(claim.expect_err("not its pod's").code, 403);
        let volume = cluster.get(&agent, PERSISTENT_VOLUMES, &other);
        assert_eq!(volume.await.expect_err("not its pod's").code, 403);
    }
}
