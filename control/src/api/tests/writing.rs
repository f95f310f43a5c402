//! Creates, updates, patches and deletions.

use std::time::Duration;

use serde_json::{Value, json};

use super::{LIMIT, cluster, config, named, pod};
use crate::api::{Api, DeleteOptions, ObjectKey, PatchKind, WriteOptions, meta};
use crate::resource::rows::{CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PODS, SERVICE_ACCOUNTS};

#[tokio::test]
async fn create_fills_in_and_refuses_twins() {
    let cluster = cluster().await;
    let made = cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect("new");
    assert_eq!(made["kind"], "ConfigMap");
    assert!(!meta::uid(&made).is_empty());
    assert!(!meta::resource_version(&made).is_empty());
    let twin = cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect_err("taken");
    assert_eq!(twin.code, 409);
    assert_eq!(twin.message, "configmaps \"a\" already exists");
    let generated = json!({"metadata": {"generateName": "x-"}});
    let made = cluster.make(CONFIG_MAPS, generated).await.expect("new");
    assert_eq!(meta::name(&made).len(), 7);
    let nameless = cluster
        .make(CONFIG_MAPS, json!({}))
        .await
        .expect_err("no name");
    assert_eq!(
        nameless.message,
        "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required"
    );
}

#[tokio::test]
async fn objects_need_a_living_namespace() {
    let cluster = cluster().await;
    let options = WriteOptions::default();
    let make = async |namespace: &str, object: Value| {
        let namespace = Some(namespace);
        cluster
            .create(&cluster.caller, CONFIG_MAPS, namespace, object, &options)
            .await
    };
    let homeless = make("team", config("a", "1"))
        .await
        .expect_err("no namespace");
    assert_eq!(
        (homeless.code, homeless.message.as_str()),
        (404, "namespaces \"team\" not found")
    );
    let team = json!({"metadata": {"name": "team"}});
    cluster
        .create(&cluster.caller, NAMESPACES, None, team, &options)
        .await
        .expect("new");
    let mut held = config("held", "1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    make("team", held).await.expect("new");
    let key = ObjectKey {
        namespace: None,
        name: "team".to_owned(),
    };
    let going = cluster
        .delete(&cluster.caller, NAMESPACES, &key, &DeleteOptions::default())
        .await
        .expect("marked");
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = make("team", config("late", "1")).await.expect_err("going");
    assert_eq!(
        late.message,
        "configmaps \"late\" is forbidden: unable to create new content in namespace team because it is being \
         terminated"
    );
    let release = json!({"metadata": {"finalizers": null}});
    let (held, merge) = (
        ObjectKey {
            namespace: Some("team".to_owned()),
            name: "held".to_owned(),
        },
        PatchKind::Merge,
    );
    cluster
        .patch(
            &cluster.caller,
            CONFIG_MAPS,
            &held,
            None,
            merge,
            release,
            &options,
        )
        .await
        .expect("released");
    let gone = async {
        while cluster.get(&cluster.caller, NAMESPACES, &key).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, gone)
        .await
        .expect("the namespace is cleared");
}

#[tokio::test]
async fn the_cluster_s_own_namespaces_stay() {
    let cluster = cluster().await;
    let key = ObjectKey {
        namespace: None,
        name: "default".to_owned(),
    };
    let refused = cluster
        .delete(&cluster.caller, NAMESPACES, &key, &DeleteOptions::default())
        .await
        .expect_err("protected");
    assert_eq!(
        refused.message,
        "namespaces \"default\" is forbidden: this namespace may not be deleted"
    );
}

#[tokio::test]
async fn every_namespace_has_an_account() {
    let cluster = cluster().await;
    let account = async {
        while cluster
            .get(&cluster.caller, SERVICE_ACCOUNTS, &named("default"))
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, account)
        .await
        .expect("an account");
}

#[tokio::test]
async fn updates_are_guarded_by_version_and_uid() {
    let cluster = cluster().await;
    let first = cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect("new");
    let write = async |object: Value| {
        let options = WriteOptions::default();
        let key = named("a");
        cluster
            .update(&cluster.caller, CONFIG_MAPS, &key, None, object, &options)
            .await
    };
    let mut second = first.clone();
    second["data"]["key"] = json!("2");
    let written = write(second.clone()).await.expect("current");
    assert_ne!(
        meta::resource_version(&written),
        meta::resource_version(&first)
    );
    let stale = write(second).await.expect_err("stale");
    assert_eq!(
        stale.message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    let same = write(written.clone()).await.expect("no change");
    assert_eq!(
        meta::resource_version(&same),
        meta::resource_version(&written)
    );
    let mut stranger = written;
    stranger["metadata"]["uid"] = json!("other");
    assert_eq!(write(stranger).await.expect_err("another object").code, 409);
    let unconditional = write(config("a", "3")).await.expect("no version given");
    assert_eq!(unconditional["data"]["key"], "3");
}

#[tokio::test]
async fn status_and_spec_are_kept_apart() {
    let cluster = cluster().await;
    let deployment = json!({
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "demo"}]},
            },
        },
        "status": {"replicas": 9},
    });
    let made = cluster.make(DEPLOYMENTS, deployment).await.expect("new");
    assert_eq!(made.get("status"), None);
    assert_eq!(made["metadata"]["generation"], 1);
    assert_eq!(made["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    let patch = async |subresource, patch| {
        let (key, options) = (named("web"), WriteOptions::default());
        cluster
            .patch(
                &cluster.caller,
                DEPLOYMENTS,
                &key,
                subresource,
                PatchKind::Merge,
                patch,
                &options,
            )
            .await
    };
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 2}});
    let status = patch(Some("status"), both.clone()).await.expect("a status");
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(status["metadata"]["generation"], 1);
    let spec = patch(
        None,
        json!({"spec": {"replicas": 5}, "status": {"replicas": 7}}),
    )
    .await
    .expect("a spec");
    assert_eq!(
        (&spec["spec"]["replicas"], &spec["status"]["replicas"]),
        (&json!(5), &json!(2))
    );
    assert_eq!(spec["metadata"]["generation"], 2);
    let scale = patch(Some("scale"), json!({"spec": {"replicas": 4}}))
        .await
        .expect("a scale");
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(4))
    );
    assert_eq!(scale["status"]["selector"], "app=web");
    let immutable = patch(
        None,
        json!({"spec": {"selector": {"matchLabels": {"b": "c"}}}}),
    )
    .await
    .expect_err("immutable");
    assert!(
        immutable.message.contains("field is immutable"),
        "{immutable}"
    );
}

#[tokio::test]
async fn pods_end_gracefully() {
    let cluster = cluster().await;
    let delete = async |grace: Option<i64>| {
        let options = DeleteOptions {
            grace_period_seconds: grace,
            ..DeleteOptions::default()
        };
        let key = named("p");
        cluster.delete(&cluster.caller, PODS, &key, &options).await
    };
    let made = cluster.make(PODS, pod("p")).await.expect("new");
    assert_eq!(
        made["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    delete(None).await.expect("unbound pods go at once");
    assert_eq!(
        delete(None).await.expect_err("gone").message,
        "pods \"p\" not found"
    );
    cluster.make(PODS, pod("p")).await.expect("new");
    cluster.bind("p").await;
    let marked = delete(None).await.expect("marked");
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = delete(Some(5)).await.expect("marked");
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let longer = delete(Some(60)).await.expect("unchanged");
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 5);
    delete(Some(0)).await.expect("the agent's word");
    assert!(delete(Some(0)).await.expect_err("gone").is_not_found());
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let cluster = cluster().await;
    cluster.make(PODS, pod("p")).await.expect("new");
    cluster.bind("p").await;
    let bound = cluster
        .get(&cluster.caller, PODS, &named("p"))
        .await
        .expect("there");
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let binding = json!({"target": {"kind": "Node", "name": "n2"}});
    let (key, options) = (named("p"), WriteOptions::default());
    let again = cluster
        .update(
            &cluster.caller,
            PODS,
            &key,
            Some("binding"),
            binding,
            &options,
        )
        .await
        .expect_err("taken");
    assert_eq!(
        again.message,
        "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
    );
}

#[tokio::test]
async fn strict_bodies_are_checked() {
    let cluster = cluster().await;
    let strict = WriteOptions {
        field_validation: Some("Strict".to_owned()),
        ..WriteOptions::default()
    };
    let mut unknown = pod("p");
    unknown["spec"]["containers"][0]["imagex"] = json!("y");
    let refused = cluster
        .create(&cluster.caller, PODS, Some("default"), unknown, &strict)
        .await
        .expect_err("unknown field");
    assert_eq!(
        (refused.code, refused.message.as_str()),
        (
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \
             \"spec.containers[0].imagex\""
        )
    );
    let mut mistyped = pod("p");
    mistyped["spec"]["containers"][0]["name"] = json!(5);
    let refused = cluster.make(PODS, mistyped).await.expect_err("a number");
    assert_eq!(
        refused.message,
        "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field \
         Container.spec.containers.name of type string"
    );
}

#[tokio::test]
async fn dry_runs_leave_nothing() {
    let cluster = cluster().await;
    let dry = WriteOptions {
        dry_run: true,
        ..WriteOptions::default()
    };
    let object = config("a", "1");
    cluster
        .create(&cluster.caller, CONFIG_MAPS, Some("default"), object, &dry)
        .await
        .expect("could be");
    let found = cluster.get(&cluster.caller, CONFIG_MAPS, &named("a")).await;
    assert!(found.expect_err("not there").is_not_found());
}
