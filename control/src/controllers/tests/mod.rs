//! The controllers on the real engine over an embedded store, with nodes that are played.

use std::time::Duration;

use serde_json::{Value, json};

use super::resources::{DEPLOYMENTS, ENDPOINT_SLICES, EVENTS, NODES, PODS, REPLICA_SETS, SERVICES};
use crate::api::DeleteOptions;

mod cluster;
mod crash;
mod preemption;
mod storage;
mod workloads;

use cluster::{Cluster, named, ready_node, wide};

fn deployment(replicas: usize, image: &str) -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image, "resources": {"requests": {"cpu": "100m"}}}]},
            },
        },
    })
}

fn service() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}})
}

fn ready_endpoints(slices: &[Value]) -> Vec<String> {
    let endpoints = slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .map(|endpoint| endpoint["nodeName"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn is_rolled_out(deployments: &[Value], replicas: usize, revision: &str) -> bool {
    let [deployment] = deployments else {
        return false;
    };
    let status = &deployment["status"];
    let observed = status["observedGeneration"] == deployment["metadata"]["generation"];
    let numbers = [
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
    ];
    observed
        && deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
        && numbers
            .iter()
            .all(|number| status[number].as_u64().unwrap_or(0) == replicas as u64)
        && status["unavailableReplicas"].as_u64().unwrap_or(0) == 0
}

/// Two nodes with agents, a Service, and a Deployment of two replicas that is rolled out.
async fn demo() -> (Cluster, Vec<Value>) {
    let cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    cluster.add_node("n2").await;
    let agents = cluster.play_agents();
    cluster
        .make(SERVICES, Some("default"), service())
        .await
        .expect("made");
    cluster
        .make(DEPLOYMENTS, Some("default"), deployment(2, "demo:1"))
        .await
        .expect("made");
    cluster
        .until(DEPLOYMENTS, "rolled out", |all| is_rolled_out(all, 2, "1"))
        .await;
    let slices = cluster
        .until(ENDPOINT_SLICES, "with two ready endpoints", |all| {
            ready_endpoints(all).len() == 2
        })
        .await;
    drop(agents);
    (cluster, slices)
}

fn are_untainted(nodes: &[Value]) -> bool {
    nodes
        .iter()
        .all(|node| node["spec"]["taints"].as_array().is_none_or(Vec::is_empty))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_spread_and_nodes_and_services_have_their_addresses() {
    let (mut cluster, slices) = demo().await;
    let mut nodes = ready_endpoints(&slices);
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2"]);
    let nodes = cluster.until(NODES, "without taints", are_untainted).await;
    assert_eq!(
        nodes[0]["spec"]["podCIDRs"],
        json!(["10.244.0.0/24", "fd00:10:244::/64"])
    );
    assert_eq!(nodes[1]["spec"]["podCIDR"], "10.244.1.0/24");
    let services = cluster.list(SERVICES).await;
    let address = services[0]["spec"]["clusterIP"].as_str();
    assert!(address.expect("an address").starts_with("10.96."));
    let port = services[0]["spec"]["ports"][0]["nodePort"].as_u64();
    assert!((30000..=32767).contains(&port.expect("a port")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_goes_on_where_it_was_when_the_controllers_start_again() {
    let (mut cluster, _) = demo().await;
    let agents = cluster.play_agents();
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "demo:2"}]}}}});
    cluster.patch(DEPLOYMENTS, &named("web"), None, patch).await;
    cluster
        .until(REPLICA_SETS, "two", |all| all.len() == 2)
        .await;
    cluster.stop().await;
    cluster.start().await;
    cluster
        .until(DEPLOYMENTS, "rolled out", |all| is_rolled_out(all, 2, "2"))
        .await;
    let pods = cluster.until(PODS, "two", |all| all.len() == 2).await;
    let is_new = |pod: &Value| pod["spec"]["containers"][0]["image"] == "demo:2";
    assert!(pods.iter().all(is_new));
    drop(agents);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_what_is_scaled_down_and_deleted() {
    let (mut cluster, _) = demo().await;
    let agents = cluster.play_agents();
    let none = json!({"spec": {"replicas": 0}});
    cluster
        .patch(DEPLOYMENTS, &named("web"), Some("scale"), none)
        .await;
    cluster.until(PODS, "gone", <[Value]>::is_empty).await;
    cluster
        .until(ENDPOINT_SLICES, "empty", |all| {
            all.len() == 1 && ready_endpoints(all).is_empty()
        })
        .await;
    let background = DeleteOptions::default;
    cluster
        .delete(DEPLOYMENTS, &named("web"), background())
        .await;
    cluster
        .until(REPLICA_SETS, "collected", <[Value]>::is_empty)
        .await;
    cluster.delete(SERVICES, &named("web"), background()).await;
    cluster
        .until(ENDPOINT_SLICES, "gone", <[Value]>::is_empty)
        .await;
    let books = cluster.allocations.services.books().await.expect("read");
    assert!(books.is_empty(), "nothing stays taken");
    drop(agents);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_loses_its_endpoints_at_once_and_its_pods_after_their_toleration() {
    let (mut cluster, _) = demo().await;
    for _ in 0..4 {
        cluster.clock.advance(Duration::from_secs(10));
        cluster.beat("n1").await;
    }
    cluster
        .until(ENDPOINT_SLICES, "left with n1", |all| {
            ready_endpoints(all) == ["n1"]
        })
        .await;
    cluster
        .until(NODES, "tainted", |nodes| {
            nodes[1]["spec"]["taints"].as_array().map(Vec::len) == Some(2)
        })
        .await;
    // Five minutes, as admission gives every pod, in steps that keep n1 alive.
    for _ in 0..11 {
        cluster.clock.advance(Duration::from_secs(30));
        cluster.beat("n1").await;
    }
    let agents = cluster.play_agents();
    let is_alive = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    cluster
        .until(PODS, "on n1 in their full number", |pods| {
            let mut alive = pods.iter().filter(is_alive);
            alive.clone().count() == 2 && alive.all(|pod| pod["spec"]["nodeName"] == "n1")
        })
        .await;

    cluster.beat("n2").await;
    cluster
        .patch(NODES, &wide("n2"), Some("status"), ready_node())
        .await;
    cluster.until(NODES, "back", are_untainted).await;
    cluster
        .until(PODS, "not doubled", |pods| pods.len() == 2)
        .await;
    drop(agents);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_when_it_can() {
    let mut cluster = Cluster::new().await;
    let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "demo:1", "resources": {"requests": {"cpu": "3"}}}]}});
    cluster
        .make(PODS, Some("default"), pod)
        .await
        .expect("made");
    let says = |pods: &[Value], text: &str| {
        let conditions = pods[0]["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.iter().any(|condition| {
            condition["type"] == "PodScheduled"
                && condition["reason"] == "Unschedulable"
                && condition["message"] == text
        })
    };
    cluster
        .until(PODS, "without nodes", |pods| {
            says(pods, "no nodes available to schedule pods")
        })
        .await;
    cluster.add_node("n1").await;
    // Its attempts back off, so time must pass.
    cluster
        .until_ticking(PODS, "bound", |pods| pods[0]["spec"]["nodeName"] == "n1")
        .await;
    let events = cluster
        .until(EVENTS, "told", |events| {
            events.iter().any(|event| event["reason"] == "Scheduled")
        })
        .await;
    let scheduled = events
        .iter()
        .find(|event| event["reason"] == "Scheduled")
        .expect("it is there");
    assert_eq!(
        scheduled["message"],
        "Successfully assigned default/a to n1"
    );
    let failed = events
        .iter()
        .find(|event| event["reason"] == "FailedScheduling")
        .expect("it is there");
    assert_eq!(failed["type"], "Warning");

    cluster
        .clock
        .advance(super::event_ttl::TTL + Duration::from_mins(1));
    cluster
        .until(EVENTS, "expired", |events| {
            events.iter().all(|event| event["reason"] != "Scheduled")
        })
        .await;
    cluster.stop().await;
    assert!(cluster.store.revision().await.expect("a revision") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_and_orphan_deletion_do_what_they_say() {
    let mut cluster = Cluster::new().await;
    cluster.add_node("n1").await;
    let agents = cluster.play_agents();
    cluster
        .make(DEPLOYMENTS, Some("default"), deployment(1, "demo:1"))
        .await
        .expect("made");
    cluster
        .until(DEPLOYMENTS, "rolled out", |all| is_rolled_out(all, 1, "1"))
        .await;
    let policy = |policy: &str| DeleteOptions {
        propagation_policy: Some(policy.to_owned()),
        ..DeleteOptions::default()
    };
    cluster
        .delete(DEPLOYMENTS, &named("web"), policy("Orphan"))
        .await;
    cluster
        .until(DEPLOYMENTS, "gone", <[Value]>::is_empty)
        .await;
    let sets = cluster.list(REPLICA_SETS).await;
    assert_eq!(sets.len(), 1);
    assert!(
        sets[0]["metadata"]["ownerReferences"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );

    // A deployment that asks for the same takes the orphan over.
    cluster
        .make(DEPLOYMENTS, Some("default"), deployment(1, "demo:1"))
        .await
        .expect("made");
    cluster
        .until(DEPLOYMENTS, "rolled out", |all| is_rolled_out(all, 1, "1"))
        .await;
    let sets = cluster.list(REPLICA_SETS).await;
    assert_eq!(sets.len(), 1);
    assert_eq!(sets[0]["metadata"]["ownerReferences"][0]["name"], "web");

    cluster
        .delete(DEPLOYMENTS, &named("web"), policy("Foreground"))
        .await;
    cluster
        .until(DEPLOYMENTS, "gone", <[Value]>::is_empty)
        .await;
    assert!(
        cluster.list(REPLICA_SETS).await.is_empty(),
        "the owner goes last"
    );
    assert!(cluster.list(PODS).await.is_empty());
    drop(agents);
    cluster.stop().await;
}
