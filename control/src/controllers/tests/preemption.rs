//! Pods of high priority get their room, whoever finds it for them.

use std::sync::Arc;

use futures::StreamExt;
use serde_json::{Value, json};

use super::{
    super::resources::{EVENTS, PODS},
    cluster::Cluster,
    crash::Mortal,
    storage::phase,
};
use crate::resource::rows::PRIORITY_CLASSES;

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [
        {"name": "c", "image": "demo:1", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn high() -> Value {
    let mut high = pod("h", "1");
    high["spec"]["priorityClassName"] = json!("high");
    high
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_high_priority_takes_the_place_of_others() {
    let mut cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    let agents = cluster.play_agents();
    let made = json!({"metadata": {"name": "high"}, "value": 1000});
    let made = cluster.make(PRIORITY_CLASSES, None, made).await;
    made.expect("made");
    for name in ["a", "b"] {
        let made = cluster.make(PODS, Some("default"), pod(name, "2"));
        made.await.expect("made");
    }
    let both = |all: &[Value]| phase(all, "a") == "Running" && phase(all, "b") == "Running";
    // A pod that was looked at before its node was known is tried again when the clock has moved.
    cluster.until_ticking(PODS, "running", both).await;
    let made = cluster.make(PODS, Some("default"), high()).await;
    made.expect("made");
    let pods = cluster
        .until_ticking(PODS, "preempted", |all| phase(all, "h") == "Running")
        .await;
    assert_eq!(pods.len(), 2, "one of two made way");
    let preemptor = pods.iter().find(|pod| pod["metadata"]["name"] == "h");
    let preemptor = preemptor.expect("it is there");
    assert_eq!(preemptor["status"]["nominatedNodeName"], "n1");
    let uid = preemptor["metadata"]["uid"].as_str().unwrap_or_default();
    let message = format!("Preempted by pod {uid} on node n1");
    cluster
        .until(EVENTS, "told", |all| {
            all.iter().any(|event| {
                event["reason"] == "Preempted" && event["message"].as_str() == Some(&message)
            })
        })
        .await;
    drop(agents);
    cluster.stop().await;
}

/// More than making way for one pod takes.
const WRITES: i64 = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_over_has_as_few_make_way() {
    let survived = futures::stream::iter(1..=WRITES)
        .map(preempt_and_die)
        .buffered(4)
        .take_while(|has_died| std::future::ready(*has_died))
        .count()
        .await;
    let survived = i64::try_from(survived).expect("a small number");
    assert!(survived > 5, "the story took only {survived} writes");
    assert!(survived < WRITES, "the story has no end");
}

/// Plays the story of a pod that others make way for, under controllers that die after so many writes; whether they did.
async fn preempt_and_die(writes: i64) -> bool {
    let mut cluster = Cluster::new().await;
    cluster.stop().await;
    let mortal = Mortal::new(cluster.engine(), writes);
    cluster.start_on(Arc::clone(&mortal) as _).await;
    let agents = cluster.play_agents();
    let has_died = tokio::select! {
        () = mortal.died.notified() => true,
        () = make_way(&cluster) => false,
    };
    cluster.stop().await;
    cluster.start().await;
    make_way(&cluster).await;
    let left = cluster.list(PODS).await;
    assert_eq!(left.len(), 2, "one of two made way, after {writes} writes");
    drop(agents);
    cluster.stop().await;
    has_died
}

async fn make_way(cluster: &Cluster) {
    cluster.add_node("n1").await;
    let class = json!({"metadata": {"name": "high"}, "value": 1000});
    cluster.ensure(PRIORITY_CLASSES, None, class).await;
    // Once the high one is there, those who made way stay away: nobody makes them anew.
    let is_begun = phase(&cluster.list(PODS).await, "h") != "gone";
    if !is_begun {
        for name in ["a", "b"] {
            cluster.ensure(PODS, Some("default"), pod(name, "2")).await;
        }
        cluster
            .until_ticking(PODS, "running", |all| {
                phase(all, "a") == "Running" && phase(all, "b") == "Running"
            })
            .await;
        cluster.ensure(PODS, Some("default"), high()).await;
    }
    cluster
        .until_ticking(PODS, "in place", |all| {
            phase(all, "h") == "Running" && all.len() == 2
        })
        .await;
}
