//! Server-side apply by stock kubectl: ownership, conflicts, dry runs, diffs.

use serde_json::{Value, json};

use super::{Cluster, cluster};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: demo:1
        env:
        - {name: A, value: a}
        - {name: B, value: b}
";

async fn web(cluster: &Cluster) -> Value {
    let text = cluster
        .kubectl_ok(&[
            "get",
            "deploy",
            "web",
            "-o",
            "json",
            "--show-managed-fields",
        ])
        .await;
    serde_json::from_str(&text).expect("JSON")
}

/// manager, operation and subresource of every entry, in order.
fn managers(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("").to_owned();
    let line = |entry: &Value| {
        let fields = ["manager", "operation", "subresource"].map(|field| text(entry, field));
        fields.join(" ").trim_end().to_owned()
    };
    entries.expect("entries").iter().map(line).collect()
}

const APPLY: [&str; 4] = ["apply", "--server-side", "-f", "-"];

#[tokio::test]
async fn an_apply_makes_merges_and_takes_away() {
    let cluster = cluster().await;
    let made = cluster.kubectl_with(&APPLY, WEB).await;
    assert_eq!(
        made.out, "deployment.apps/web serverside-applied\n",
        "{}",
        made.err
    );
    assert_eq!(managers(&web(&cluster).await), ["kubectl Apply"]);
    let less = WEB.replace("        - {name: B, value: b}\n", "");
    let changed = cluster.kubectl_with(&APPLY, &less).await;
    assert!(changed.ok, "{}", changed.err);
    let found = web(&cluster).await;
    let env = &found["spec"]["template"]["spec"]["containers"][0]["env"];
    assert_eq!(*env, json!([{"name": "A", "value": "a"}]));
    let version = found["metadata"]["resourceVersion"].clone();
    let again = cluster.kubectl_with(&APPLY, &less).await;
    assert!(again.ok, "{}", again.err);
    assert_eq!(web(&cluster).await["metadata"]["resourceVersion"], version);
}

#[tokio::test]
async fn what_another_owns_is_a_conflict_until_it_is_forced() {
    let cluster = cluster().await;
    let made = cluster.kubectl_with(&APPLY, WEB).await;
    assert!(made.ok, "{}", made.err);
    cluster
        .kubectl_ok(&["scale", "deploy", "web", "--replicas=5"])
        .await;
    let found = web(&cluster).await;
    assert_eq!(managers(&found), ["kubectl Apply", "kubectl Update scale"]);
    let refused = cluster.kubectl_with(&APPLY, WEB).await;
    assert!(!refused.ok);
    let expected = "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: \
                    .spec.replicas";
    assert!(refused.err.contains(expected), "{}", refused.err);
    let forced = [&APPLY[..], &["--force-conflicts"]].concat();
    let forced = cluster.kubectl_with(&forced, WEB).await;
    assert!(forced.ok, "{}", forced.err);
    let found = web(&cluster).await;
    assert_eq!(found["spec"]["replicas"], 2);
    assert_eq!(managers(&found), ["kubectl Apply"]);
    let other = [&APPLY[..], &["--field-manager=other"]].concat();
    let other = cluster
        .kubectl_with(&other, &WEB.replace("image: demo:1", "image: demo:2"))
        .await;
    assert!(
        other.err.contains("conflict with \"kubectl\""),
        "{}",
        other.err
    );
}

#[tokio::test]
async fn a_client_side_applier_moves_to_the_server_side() {
    let cluster = cluster().await;
    cluster.apply(WEB).await;
    let found = web(&cluster).await;
    assert_eq!(managers(&found), ["kubectl-client-side-apply Update"]);
    let changed = WEB.replace("image: demo:1", "image: demo:2");
    let moved = cluster.kubectl_with(&APPLY, &changed).await;
    assert!(moved.ok, "{}", moved.err);
    let found = web(&cluster).await;
    assert!(managers(&found).contains(&"kubectl Apply".to_owned()));
    let image = &found["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, "demo:2");
}

#[tokio::test]
async fn dry_runs_and_diffs_change_nothing() {
    let cluster = cluster().await;
    let dry = [&APPLY[..], &["--dry-run=server"]].concat();
    let tried = cluster.kubectl_with(&dry, WEB).await;
    assert!(tried.ok, "{}", tried.err);
    assert!(!cluster.kubectl(&["get", "deploy", "web"]).await.ok);
    cluster.apply(WEB).await;
    let changed = WEB.replace("replicas: 2", "replicas: 3");
    for side in ["--server-side=false", "--server-side=true"] {
        let arguments = ["diff", side, "--force-conflicts=true", "-f", "-"];
        let arguments = if side.ends_with("true") {
            &arguments[..]
        } else {
            &["diff", side, "-f", "-"]
        };
        let said = cluster.kubectl_with(arguments, &changed).await;
        assert!(
            said.out.contains("+  replicas: 3"),
            "{side} {}{}",
            said.out,
            said.err
        );
    }
    assert_eq!(web(&cluster).await["spec"]["replicas"], 2);
}

#[tokio::test]
async fn what_is_no_apply_is_refused() {
    let cluster = cluster().await;
    let path = "/apis/apps/v1/namespaces/default/deployments/web";
    let send = async |query: &str, kind: &str, body: &str| {
        let head = format!("PATCH {path}{query} HTTP/1.1\r\nContent-Type: {kind}");
        let (code, _, answer) = cluster.send(true, &head, body.as_bytes()).await;
        let status: Value = serde_json::from_str(&answer).expect("a Status");
        (code, status["message"].as_str().unwrap_or("").to_owned())
    };
    let apply = "application/apply-patch+yaml";
    let (code, message) = send("", apply, WEB).await;
    assert_eq!(code, 422);
    let expected = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
    assert_eq!(message, expected);
    let merge = "application/merge-patch+json";
    let (code, message) = send("?force=true", merge, "{}").await;
    assert_eq!(code, 422);
    assert!(message.contains("force: Forbidden: may not be specified for non-apply patch"));
    let twice = WEB.replace("name: B", "name: A");
    let (code, message) = send("?fieldManager=me", apply, &twice).await;
    assert_eq!(code, 500, "{message}");
    assert!(message.contains("duplicate entries for key"), "{message}");
    let unknown = WEB.replace("replicas", "replicaz");
    let (code, message) = send("?fieldManager=me&fieldValidation=Strict", apply, &unknown).await;
    assert_eq!(code, 400, "{message}");
}
