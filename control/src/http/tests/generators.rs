//! What kubectl makes without a manifest: some versions of it send these bodies as protobuf, others as JSON.

use serde_json::{Value, json};

use super::{Cluster, cluster};

/// An object as kubectl shows it, without what the server adds.
async fn made(cluster: &Cluster, kind: &str, name: &str) -> Value {
    let text = cluster.kubectl_ok(&["get", kind, name, "-o", "json"]).await;
    serde_json::from_str(&text).expect("JSON")
}

#[tokio::test]
async fn configuration() {
    let cluster = cluster().await;
    cluster
        .kubectl_ok(&["create", "configmap", "c", "--from-literal=a=b"])
        .await;
    assert_eq!(made(&cluster, "cm", "c").await["data"], json!({"a": "b"}));
    cluster
        .kubectl_ok(&["create", "secret", "generic", "s", "--from-literal=a=b"])
        .await;
    let secret = made(&cluster, "secret", "s").await;
    assert_eq!(secret["data"], json!({"a": "Yg=="}));
    assert_eq!(secret["type"], "Opaque");
    let registry = ["--docker-username=u", "--docker-password=p"];
    let create = ["create", "secret", "docker-registry", "r"];
    cluster.kubectl_ok(&[&create[..], &registry].concat()).await;
    let kind = &made(&cluster, "secret", "r").await["type"];
    assert_eq!(kind, "kubernetes.io/dockerconfigjson");
    cluster.kubectl_ok(&["create", "namespace", "n"]).await;
    cluster
        .kubectl_ok(&["create", "serviceaccount", "robot"])
        .await;
    let again = cluster.kubectl(&["create", "configmap", "c"]).await;
    assert!(!again.ok);
    assert!(
        again.err.contains("configmaps \"c\" already exists"),
        "{}",
        again.err
    );
}

#[tokio::test]
async fn workloads_and_services() {
    let cluster = cluster().await;
    let create = ["create", "deployment", "web", "--image=demo:1"];
    let flags = ["--replicas=0", "--port=8080"];
    cluster.kubectl_ok(&[&create[..], &flags].concat()).await;
    let web = made(&cluster, "deploy", "web").await;
    assert_eq!(web["spec"]["replicas"], 0);
    let pod = &web["spec"]["template"]["spec"];
    let ports = json!([{"containerPort": 8080, "protocol": "TCP"}]);
    assert_eq!(pod["containers"][0]["ports"], ports);
    assert_eq!(pod.get("hostNetwork"), None, "{pod}");
    cluster
        .kubectl_ok(&["expose", "deployment", "web", "--port=80"])
        .await;
    let service = made(&cluster, "svc", "web").await;
    assert_eq!(service["spec"]["selector"], json!({"app": "web"}));
    for (kind, port) in [("clusterip", "80:8080"), ("nodeport", "81:http")] {
        let tcp = format!("--tcp={port}");
        cluster
            .kubectl_ok(&["create", "service", kind, kind, &tcp])
            .await;
    }
    let target = |service: &Value| service["spec"]["ports"][0]["targetPort"].clone();
    assert_eq!(target(&made(&cluster, "svc", "clusterip").await), 8080);
    assert_eq!(target(&made(&cluster, "svc", "nodeport").await), "http");
    let run = ["run", "p", "--image=demo:1", "--restart=Never", "--env=A=b"];
    cluster.kubectl_ok(&run).await;
    let pod = made(&cluster, "pod", "p").await;
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    let env = json!([{"name": "A", "value": "b"}]);
    assert_eq!(pod["spec"]["containers"][0]["env"], env);
}

#[tokio::test]
async fn jobs() {
    let cluster = cluster().await;
    cluster
        .kubectl_ok(&["create", "job", "once", "--image=demo:1", "--", "work"])
        .await;
    let job = made(&cluster, "job", "once").await;
    let template = &job["spec"]["template"];
    assert_eq!(template["spec"]["restartPolicy"], "Never");
    assert_eq!(job["spec"]["completions"], 1);
    let uid = &job["metadata"]["uid"];
    let key = "batch.kubernetes.io/controller-uid";
    assert_eq!(job["spec"]["selector"]["matchLabels"][key], *uid);
    assert_eq!(template["metadata"]["labels"]["job-name"], "once");
    let cron = [
        "create",
        "cronjob",
        "tick",
        "--image=demo:1",
        "--schedule=*/5 * * * *",
    ];
    cluster.kubectl_ok(&cron).await;
    let from = ["create", "job", "now", "--from=cronjob/tick"];
    cluster.kubectl_ok(&from).await;
    let shown = cluster.kubectl_ok(&["get", "cronjob"]).await;
    assert!(
        shown.contains("*/5 * * * *   <none>     false     0        <none>"),
        "{shown}"
    );
    let wrong = [
        "create",
        "cronjob",
        "never",
        "--image=demo:1",
        "--schedule=61 * * * *",
    ];
    let refused = cluster.kubectl(&wrong).await;
    let expected =
        "spec.schedule: Invalid value: \"61 * * * *\": end of range (61) above maximum (59): 61";
    assert!(refused.err.contains(expected), "{}", refused.err);
    let always = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: x}\nspec:\n  template:\n    spec:\n      containers: [{name: c, image: x}]\n";
    let refused = cluster.kubectl_with(&["apply", "-f", "-"], always).await;
    let expected = "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"";
    assert!(refused.err.contains(expected), "{}", refused.err);
}
