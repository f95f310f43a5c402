//! Evictions: what a disruption budget allows and refuses.

use serde_json::json;

use super::{Cluster, cluster};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  labels: {app: web}
spec:
  nodeName: n1
  containers:
  - {name: c, image: demo:1}
";

async fn running(cluster: &Cluster, name: &str) {
    cluster.apply(&POD.replace("NAME", name)).await;
    let status =
        r#"{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    let patch = [
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    cluster.kubectl_ok(&patch).await;
}

async fn evict(cluster: &Cluster, name: &str) -> (u16, String) {
    let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
    let line = format!("POST /api/v1/namespaces/default/pods/{name}/eviction");
    let (code, answer) = cluster.ask(&line, &body).await;
    (code, answer["message"].as_str().unwrap_or("").to_owned())
}

#[tokio::test]
async fn an_eviction_takes_from_the_budget_until_nothing_is_left() {
    let cluster = cluster().await;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    cluster.apply(node).await;
    for name in ["a", "b", "c"] {
        running(&cluster, name).await;
    }
    let budget = [
        "create",
        "pdb",
        "web",
        "--selector=app=web",
        "--min-available=2",
    ];
    cluster.kubectl_ok(&budget).await;
    // Nobody has counted yet.
    let (code, message) = evict(&cluster, "a").await;
    assert_eq!(code, 429, "{message}");
    let counted = r#"{"status":{"disruptionsAllowed":1,"currentHealthy":3,"desiredHealthy":2,"expectedPods":3,"observedGeneration":1}}"#;
    let patch = [
        "patch",
        "pdb",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        counted,
    ];
    cluster.kubectl_ok(&patch).await;
    let shown = cluster.kubectl_ok(&["get", "pdb"]).await;
    let row: Vec<&str> = shown
        .lines()
        .nth(1)
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(row[..4], ["web", "2", "N/A", "1"], "{shown}");
    assert_eq!(evict(&cluster, "a").await.0, 201);
    let (code, message) = evict(&cluster, "b").await;
    assert_eq!(code, 429);
    assert_eq!(
        message,
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    let disrupted = cluster
        .kubectl_ok(&[
            "get",
            "pdb",
            "web",
            "-o",
            "jsonpath={.status.disruptedPods.a}",
        ])
        .await;
    assert!(!disrupted.is_empty());
    // Who is not ready serves nobody: with enough others it may go.
    let waiting = r#"{"status":{"conditions":[{"type":"Ready","status":"False"}]}}"#;
    let patch = [
        "patch",
        "pod",
        "c",
        "--subresource=status",
        "--type=merge",
        "-p",
        waiting,
    ];
    cluster.kubectl_ok(&patch).await;
    assert_eq!(evict(&cluster, "c").await.0, 201);
}
