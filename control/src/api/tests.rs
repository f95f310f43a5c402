//! The engine on the embedded store.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};

use super::engine::{Engine, Running};
use super::{
    Api, Caller, DeleteOptions, ListOptions, ObjectKey, PatchKind, Status, WatchEvent,
    WriteOptions, meta,
};
use crate::resource::rows::{CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PODS, SERVICE_ACCOUNTS};
use crate::store::Store;
use crate::store::embedded::Embedded;

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(20);

struct Cluster {
    running: Running,
    caller: Caller,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Cluster {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.running.engine
    }
}

async fn cluster() -> Cluster {
    let folder = tempfile::tempdir().expect("a folder");
    let store = Embedded::open(folder.path().join("store"))
        .await
        .expect("a store");
    let store: Arc<dyn Store> = Arc::new(store);
    let running = Engine::start(store, Vec::new()).await.expect("an engine");
    let cluster = Cluster {
        running,
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

fn named(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: Some("default".to_owned()),
        name: name.to_owned(),
    }
}

fn config(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"v": value}}, "data": {"key": value}})
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "demo:1"}]}})
}

impl Cluster {
    async fn make(&self, resource: super::ResourceId, object: Value) -> Result<Value, Status> {
        self.create(
            &self.caller,
            resource,
            Some("default"),
            object,
            &WriteOptions::default(),
        )
        .await
    }

    async fn bind(&self, name: &str) {
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
    let homeless = cluster
        .create(
            &cluster.caller,
            CONFIG_MAPS,
            Some("nowhere"),
            config("a", "1"),
            &options,
        )
        .await
        .expect_err("no namespace");
    assert_eq!(
        (homeless.code, homeless.message.as_str()),
        (404, "namespaces \"nowhere\" not found")
    );
    let mut held = config("held", "1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.make(CONFIG_MAPS, held).await.expect("new");
    let key = ObjectKey {
        namespace: None,
        name: "default".to_owned(),
    };
    let going = cluster
        .delete(&cluster.caller, NAMESPACES, &key, &DeleteOptions::default())
        .await
        .expect("marked");
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = cluster
        .make(CONFIG_MAPS, config("late", "1"))
        .await
        .expect_err("going");
    assert_eq!(
        late.message,
        "configmaps \"late\" is forbidden: unable to create new content in namespace default because it is being \
         terminated"
    );
    let release = json!({"metadata": {"finalizers": null}});
    cluster
        .patch(
            &cluster.caller,
            CONFIG_MAPS,
            &named("held"),
            None,
            PatchKind::Merge,
            release,
            &options,
        )
        .await
        .ok();
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
async fn lists_page_at_one_revision() {
    let cluster = cluster().await;
    for number in 0..5 {
        cluster
            .make(CONFIG_MAPS, config(&format!("c{number}"), "1"))
            .await
            .expect("new");
    }
    let mut options = ListOptions {
        limit: Some(2),
        ..ListOptions::default()
    };
    let mut names = Vec::new();
    let mut versions = Vec::new();
    loop {
        let page = cluster
            .list(&cluster.caller, CONFIG_MAPS, Some("default"), &options)
            .await
            .expect("a page");
        names.extend(page.items.iter().map(|item| meta::name(item).to_owned()));
        versions.push(page.resource_version);
        // What is made between the pages is not seen.
        let late = format!("c0-late-{}", names.len());
        cluster
            .make(CONFIG_MAPS, config(&late, "1"))
            .await
            .expect("new");
        match page.continue_token {
            Some(token) => options.continue_token = Some(token),
            None => break,
        }
    }
    assert_eq!(names, ["c0", "c1", "c2", "c3", "c4"]);
    versions.dedup();
    assert_eq!(versions.len(), 1);
}

#[tokio::test]
async fn watches_follow_what_their_selector_sees() {
    let cluster = cluster().await;
    let options = ListOptions {
        label_selector: Some("v=1".to_owned()),
        ..ListOptions::default()
    };
    let mut watch = cluster
        .watch(&cluster.caller, CONFIG_MAPS, Some("default"), &options)
        .await
        .expect("a watch");
    let set = async |value: &str| {
        let (key, options) = (named("a"), WriteOptions::default());
        let patch = json!({"metadata": {"labels": {"v": value}}});
        cluster
            .patch(
                &cluster.caller,
                CONFIG_MAPS,
                &key,
                None,
                PatchKind::Merge,
                patch,
                &options,
            )
            .await
            .expect("a label")
    };
    cluster
        .make(CONFIG_MAPS, config("a", "0"))
        .await
        .expect("new");
    set("1").await;
    let touch = json!({"data": {"key": "touched"}});
    let (key, write) = (named("a"), WriteOptions::default());
    cluster
        .patch(
            &cluster.caller,
            CONFIG_MAPS,
            &key,
            None,
            PatchKind::Merge,
            touch,
            &write,
        )
        .await
        .expect("a change");
    let last = set("2").await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let next = tokio::time::timeout(LIMIT, watch.next())
            .await
            .expect("in time");
        seen.push(match next.expect("goes on").expect("no error") {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(object) => {
                assert_eq!(object["metadata"]["labels"]["v"], "1");
                assert_eq!(
                    meta::resource_version(&object),
                    meta::resource_version(&last)
                );
                "deleted"
            }
            WatchEvent::Bookmark(_) => continue,
        });
    }
    assert_eq!(seen, ["added", "modified", "deleted"]);
}

#[tokio::test]
async fn a_watch_from_the_forgotten_past_is_told_so() {
    let cluster = cluster().await;
    let options = ListOptions {
        resource_version: Some("1".to_owned()),
        ..ListOptions::default()
    };
    let mut watch = cluster
        .watch(&cluster.caller, CONFIG_MAPS, None, &options)
        .await
        .expect("a watch");
    // The engine began with an empty store at revision 1, so this is within its history; one before is not.
    cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect("new");
    let first = tokio::time::timeout(LIMIT, watch.next())
        .await
        .expect("in time");
    assert!(matches!(first, Some(Ok(WatchEvent::Added(_)))), "{first:?}");
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

#[tokio::test]
async fn nodes_may_only_what_they_need() {
    let cluster = cluster().await;
    let node = Caller {
        user: "system:node:n1".to_owned(),
        groups: vec!["system:nodes".to_owned()],
    };
    cluster.make(PODS, pod("mine")).await.expect("new");
    cluster.make(PODS, pod("other")).await.expect("new");
    cluster.bind("mine").await;
    let own = ListOptions {
        field_selector: Some("spec.nodeName=n1".to_owned()),
        ..ListOptions::default()
    };
    let pods = cluster
        .list(&node, PODS, None, &own)
        .await
        .expect("its own");
    assert_eq!(pods.items.len(), 1);
    let all = cluster
        .list(&node, PODS, None, &ListOptions::default())
        .await
        .expect_err("all");
    assert_eq!(
        all.message,
        "pods is forbidden: User \"system:node:n1\" cannot list resource \"pods\" in API group \"\" at the cluster scope"
    );
    let patch = json!({"status": {"phase": "Running"}});
    for (name, allowed) in [("mine", true), ("other", false)] {
        let (key, options) = (named(name), WriteOptions::default());
        let result = cluster
            .patch(
                &node,
                PODS,
                &key,
                Some("status"),
                PatchKind::Merge,
                patch.clone(),
                &options,
            )
            .await;
        assert_eq!(result.is_ok(), allowed, "{name}");
    }
}
