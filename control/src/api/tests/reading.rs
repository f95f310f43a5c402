//! Lists, watches and what nodes may see.

use futures::StreamExt;
use serde_json::json;

use super::{LIMIT, cluster, config, named, pod};
use crate::api::{Api, Caller, ListOptions, PatchKind, WatchEvent, WriteOptions, meta};
use crate::resource::rows::{CONFIG_MAPS, PODS};

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
async fn a_list_whose_revision_is_forgotten_may_go_on_with_what_there_is() {
    let cluster = cluster().await;
    for name in ["a", "b", "c"] {
        let made = cluster.make(CONFIG_MAPS, config(name, "1")).await;
        made.expect("new");
    }
    let list = async |continue_token: Option<String>| {
        let options = ListOptions {
            limit: Some(1),
            continue_token,
            ..ListOptions::default()
        };
        cluster
            .list(&cluster.caller, CONFIG_MAPS, Some("default"), &options)
            .await
    };
    let first = list(None).await.expect("a page");
    cluster
        .make(CONFIG_MAPS, config("b-late", "1"))
        .await
        .expect("new");
    let now = cluster.store.revision().await.expect("a revision");
    cluster.store.compact(now).await.expect("forgotten");
    let expired = list(first.continue_token).await.expect_err("too old");
    assert_eq!((expired.code, expired.reason.as_str()), (410, "Expired"));
    let body = expired.to_value();
    let mut token = body["metadata"]["continue"].as_str().map(str::to_owned);
    assert!(token.is_some(), "{body}");
    let mut names = Vec::new();
    while token.is_some() {
        let page = list(token).await.expect("what there is now");
        names.extend(page.items.iter().map(|item| meta::name(item).to_owned()));
        token = page.continue_token;
    }
    assert_eq!(names, ["b", "b-late", "c"]);
    let exact = ListOptions {
        resource_version: Some("1".to_owned()),
        resource_version_match: Some("Exact".to_owned()),
        ..ListOptions::default()
    };
    let listed = cluster.list(&cluster.caller, CONFIG_MAPS, None, &exact);
    assert_eq!(listed.await.expect_err("forgotten").code, 410);
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
async fn a_watch_goes_on_from_a_version_or_is_told_to_list_anew() {
    let cluster = cluster().await;
    let first = cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect("new");
    cluster
        .make(CONFIG_MAPS, config("b", "1"))
        .await
        .expect("new");
    let options = ListOptions {
        resource_version: Some(meta::resource_version(&first).to_owned()),
        ..ListOptions::default()
    };
    let next = async |cluster: &super::Cluster| {
        let watch = cluster.watch(&cluster.caller, CONFIG_MAPS, None, &options);
        let mut watch = watch.await.expect("a watch");
        let next = tokio::time::timeout(LIMIT, watch.next()).await;
        next.expect("in time").expect("never ends silently")
    };
    let WatchEvent::Added(second) = next(&cluster).await.expect("it is remembered") else {
        panic!("the second object comes next");
    };
    assert_eq!(meta::name(&second), "b");
    let cluster = cluster.restarted().await;
    let forgotten = next(&cluster)
        .await
        .expect_err("a new server has no history");
    assert_eq!(
        (forgotten.code, forgotten.reason.as_str()),
        (410, "Expired")
    );
}

#[tokio::test]
async fn nodes_may_only_what_they_need() {
    let cluster = cluster().await;
    let node = Caller {
        user: "system:node:n1".to_owned(),
        groups: vec!["system:nodes".to_owned()],
        ..Caller::default()
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
