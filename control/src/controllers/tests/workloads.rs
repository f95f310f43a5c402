//! Daemon sets and Jobs whose controllers die after each of their writes: each node ends with one pod, each index is done
//! once.

use std::sync::Arc;

use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    super::resources::{CONTROLLER_REVISIONS, DAEMON_SETS, JOBS, PODS},
    cluster::{Cluster, named},
    crash::Mortal,
};

/// More than the whole story takes.
const WRITES: i64 = 100;

fn daemon(image: &str) -> Value {
    json!({
        "metadata": {"name": "daemon"},
        "spec": {
            "selector": {"matchLabels": {"app": "daemon"}},
            "template": {
                "metadata": {"labels": {"app": "daemon"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

fn work() -> Value {
    json!({
        "metadata": {"name": "work"},
        "spec": {
            "completions": 2,
            "completionMode": "Indexed",
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "demo:1"}]}},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemons_and_jobs_end_in_the_same_state_after_any_write() {
    let survived = futures::stream::iter(1..=WRITES)
        .map(live_and_die)
        .buffered(4)
        .take_while(|has_died| std::future::ready(*has_died))
        .count()
        .await;
    let survived = i64::try_from(survived).expect("a small number");
    assert!(survived > 15, "the story took only {survived} writes");
    assert!(survived < WRITES, "the story has no end");
}

async fn live_and_die(writes: i64) -> bool {
    let mut cluster = Cluster::new().await;
    cluster.stop().await;
    let mortal = Mortal::new(cluster.engine(), writes);
    cluster.start_on(Arc::clone(&mortal) as _).await;
    let agents = cluster.play_agents();
    let has_died = tokio::select! {
        () = mortal.died.notified() => true,
        () = play(&cluster) => false,
    };
    cluster.stop().await;
    cluster.start().await;
    if has_died {
        play(&cluster).await;
    }
    check(&cluster, writes).await;
    drop(agents);
    cluster.stop().await;
    has_died
}

fn is_spread(all: &[Value], updated: i64) -> bool {
    let number = |field: &str| all[0]["status"][field].as_i64().unwrap_or(0);
    all[0]["status"]["observedGeneration"] == all[0]["metadata"]["generation"]
        && number("numberAvailable") == 2
        && number("updatedNumberScheduled") == updated
}

async fn play(cluster: &Cluster) {
    for node in ["n1", "n2"] {
        cluster.add_node(node).await;
    }
    cluster.ensure(JOBS, Some("default"), work()).await;
    cluster
        .ensure(DAEMON_SETS, Some("default"), daemon("demo:1"))
        .await;
    let image =
        |all: &[Value]| all[0]["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    if image(&cluster.list(DAEMON_SETS).await) != "demo:2" {
        cluster
            .until_ticking(DAEMON_SETS, "on both nodes", |all| is_spread(all, 2))
            .await;
        let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "demo:2"}]}}}});
        cluster
            .patch(DAEMON_SETS, &named("daemon"), None, patch)
            .await;
    }
    cluster
        .until_ticking(DAEMON_SETS, "updated", |all| is_spread(all, 2))
        .await;
    cluster
        .until_ticking(JOBS, "complete", |all| {
            !all[0]["status"]["completionTime"].is_null()
        })
        .await;
}

async fn check(cluster: &Cluster, writes: i64) {
    let pods = cluster
        .until_ticking(PODS, "two of each", |all| all.len() == 4)
        .await;
    let (done, daemons): (Vec<&Value>, Vec<&Value>) = pods
        .iter()
        .partition(|pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!((done.len(), daemons.len()), (2, 2), "after {writes} writes");
    let mut nodes: Vec<&Value> = daemons.iter().map(|pod| &pod["spec"]["nodeName"]).collect();
    nodes.sort_by_key(ToString::to_string);
    assert_eq!(nodes, ["n1", "n2"], "after {writes} writes");
    assert!(
        daemons
            .iter()
            .all(|pod| pod["spec"]["containers"][0]["image"] == "demo:2"),
        "after {writes} writes"
    );
    cluster
        .until_ticking(PODS, "counted", |all| {
            all.iter().all(|pod| {
                pod["metadata"]["finalizers"].is_null()
                    || pod["metadata"]["finalizers"] == json!([])
            })
        })
        .await;
    let jobs = cluster
        .until_ticking(JOBS, "with all counts", |all| {
            all[0]["status"]["uncountedTerminatedPods"].is_null()
        })
        .await;
    let status = &jobs[0]["status"];
    assert_eq!(status["succeeded"], 2, "after {writes} writes: {status}");
    assert_eq!(
        status["completedIndexes"], "0-1",
        "after {writes} writes: {status}"
    );
    assert!(
        status["failed"].is_null(),
        "after {writes} writes: {status}"
    );
    let revisions = cluster.list(CONTROLLER_REVISIONS).await;
    assert_eq!(revisions.len(), 2, "after {writes} writes");
}
