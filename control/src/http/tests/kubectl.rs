//! Stock kubectl's daily commands, and its answers to manifests that are not valid.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Cluster, LIMIT, cluster};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
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
        ports:
        - containerPort: 8080
        resources:
          requests: {cpu: 500m, memory: 64Mi}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - port: 80
    targetPort: 8080
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  colour: blue
";

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: p
spec:
  containers:
  - name: c
    image: demo:1
";

const EVENT: &str = "
apiVersion: v1
kind: Event
metadata:
  name: p.1
involvedObject: {apiVersion: v1, kind: Pod, name: p, namespace: default, uid: UID}
reason: Failed
type: Warning
source: {component: agent}
message: the image is missing
";

/// The columns of a table's line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test]
async fn apply_get_describe_delete() {
    let cluster = cluster().await;
    let made = cluster.apply(WEB).await;
    assert_eq!(
        made.lines().collect::<Vec<_>>(),
        [
            "deployment.apps/web created",
            "service/web created",
            "configmap/settings created"
        ]
    );
    let again = cluster.apply(WEB).await;
    assert!(
        again.lines().all(|line| line.ends_with(" unchanged")),
        "{again}"
    );
    let changed = cluster
        .apply(&WEB.replace("replicas: 2", "replicas: 3"))
        .await;
    assert!(
        changed.starts_with("deployment.apps/web configured\n"),
        "{changed}"
    );
    let table = cluster
        .kubectl_ok(&["get", "deploy", "-A", "-o", "wide"])
        .await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        words(lines[0]),
        [
            "NAMESPACE",
            "NAME",
            "READY",
            "UP-TO-DATE",
            "AVAILABLE",
            "AGE",
            "CONTAINERS",
            "IMAGES",
            "SELECTOR"
        ]
    );
    let row = words(lines[1]);
    assert_eq!(row[..5], ["default", "web", "0/3", "0", "0"]);
    assert_eq!(row[6..], ["web", "demo:1", "app=web"]);
}

#[tokio::test]
async fn quantities_are_stored_as_kubernetes_writes_them() {
    let cluster = cluster().await;
    cluster.apply(&WEB.replace("cpu: 500m", "cpu: 0.5")).await;
    let cpu = "jsonpath={.spec.template.spec.containers[0].resources.requests.cpu}";
    assert_eq!(
        cluster
            .kubectl_ok(&["get", "deploy", "web", "-o", cpu])
            .await,
        "500m"
    );
}

#[tokio::test]
async fn describe_scale_label_delete() {
    let cluster = cluster().await;
    cluster.apply(WEB).await;
    let described = cluster.kubectl_ok(&["describe", "deploy", "web"]).await;
    assert!(
        described.contains("StrategyType:           RollingUpdate"),
        "{described}"
    );
    let scaled = cluster
        .kubectl_ok(&["scale", "deploy", "web", "--replicas=1"])
        .await;
    assert_eq!(scaled, "deployment.apps/web scaled\n");
    cluster
        .kubectl_ok(&["label", "cm", "settings", "tier=a"])
        .await;
    let selected = cluster
        .kubectl_ok(&["get", "cm", "-l", "tier=a", "-o", "name"])
        .await;
    assert_eq!(selected, "configmap/settings\n");
    let gone = cluster
        .kubectl_ok(&["delete", "deploy/web", "svc/web", "cm/settings"])
        .await;
    assert_eq!(gone.lines().count(), 3, "{gone}");
}

#[tokio::test]
async fn get_of_every_kind() {
    let cluster = cluster().await;
    for kind in [
        "nodes",
        "pods",
        "svc",
        "deploy",
        "rs",
        "endpointslices",
        "cm",
        "secrets",
        "events",
        "sa",
        "leases",
        "ns",
        "ds",
        "jobs",
        "cronjobs",
        "sts",
        "pdb",
        "controllerrevisions",
        "roles",
        "rolebindings",
        "clusterroles",
        "clusterrolebindings",
    ] {
        for output in ["wide", "yaml", "json", "name"] {
            cluster.kubectl_ok(&["get", kind, "-A", "-o", output]).await;
        }
    }
    let several = "nodes,pods,svc,deploy,rs,endpointslices";
    cluster.kubectl_ok(&["get", several, "-A"]).await;
    let resources = cluster.kubectl_ok(&["api-resources", "--no-headers"]).await;
    let deployments = resources
        .lines()
        .find(|line| line.starts_with("deployments"));
    assert_eq!(
        deployments.map(words),
        Some(vec![
            "deployments",
            "deploy",
            "apps/v1",
            "true",
            "Deployment"
        ])
    );
    let explained = cluster
        .kubectl_ok(&["explain", "pod.spec.containers.image"])
        .await;
    assert!(explained.contains("Container image name"), "{explained}");
    cluster.kubectl_ok(&["version"]).await;
    cluster.kubectl_ok(&["cluster-info"]).await;
}

#[tokio::test]
async fn get_watches() {
    let cluster = cluster().await;
    let arguments = ["get", "cm", "-w", "-o", "name"];
    let mut child = cluster
        .kubectl_command(&arguments)
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    // It prints what it lists first only when there is something; so make what it must see until it does.
    let mut number = 0;
    let first = loop {
        let manifest = format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c{number}\n");
        cluster.apply(&manifest).await;
        number += 1;
        let wait = std::time::Duration::from_secs(2);
        if let Ok(line) = tokio::time::timeout(wait, lines.next_line()).await {
            break line.expect("no error").expect("goes on");
        }
        assert!(number < 20, "kubectl shows nothing");
    };
    assert!(first.starts_with("configmap/c"), "{first}");
    cluster.kubectl_ok(&["delete", "cm", "--all"]).await;
    let next = tokio::time::timeout(LIMIT, lines.next_line())
        .await
        .expect("in time");
    assert!(
        next.expect("no error")
            .expect("goes on")
            .starts_with("configmap/c")
    );
    child.kill().await.expect("it runs");
}

#[tokio::test]
async fn describe_a_pod_with_events() {
    let cluster = cluster().await;
    cluster.apply(POD).await;
    let uid = cluster
        .kubectl_ok(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"])
        .await;
    let event = EVENT.replace("UID", &uid);
    cluster.apply(&event).await;
    let described = cluster.kubectl_ok(&["describe", "pod", "p"]).await;
    let described: Vec<String> = described
        .lines()
        .map(|line| words(line).join(" "))
        .collect();
    for line in [
        "Status: Pending",
        "QoS Class: BestEffort",
        "Service Account: default",
        "Warning Failed <unknown> agent the image is missing",
    ] {
        assert!(
            described.iter().any(|found| found == line),
            "{line}\n{described:#?}"
        );
    }
    let events = cluster.kubectl_ok(&["get", "events"]).await;
    assert!(events.contains("the image is missing"), "{events}");
    let deleted = cluster.kubectl_ok(&["delete", "pod", "p"]).await;
    assert!(deleted.starts_with("pod \"p\" deleted"), "{deleted}");
}

async fn refused(cluster: &Cluster, manifest: &str) -> String {
    let said = cluster.kubectl_with(&["apply", "-f", "-"], manifest).await;
    assert!(!said.ok, "{}", said.out);
    said.err.trim().to_owned()
}

#[tokio::test]
async fn manifests_that_are_not_valid() {
    let cluster = cluster().await;
    let unknown = refused(&cluster, &WEB.replace("replicas: 2", "replicaz: 2")).await;
    assert!(
        unknown.contains(
            "Error from server (BadRequest): error when creating \"STDIN\": Deployment in version \"v1\" cannot be \
             handled as a Deployment: strict decoding error: unknown field \"spec.replicaz\""
        ),
        "{unknown}"
    );
    let cluster = super::cluster().await;
    let mistyped = refused(&cluster, &WEB.replace("replicas: 2", "replicas: two")).await;
    assert!(
        mistyped.contains(
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go \
             struct field DeploymentSpec.spec.replicas of type int32"
        ),
        "{mistyped}"
    );
    let no_image = refused(&cluster, &WEB.replace("image: demo:1", "command: [x]")).await;
    assert!(
        no_image.contains(
            "The Deployment \"web\" is invalid: spec.template.spec.containers[0].image: Required value"
        ),
        "{no_image}"
    );
    let bad_port = refused(&cluster, &WEB.replace("port: 80\n", "port: 80000\n")).await;
    assert!(
        bad_port.contains(
            "The Service \"web\" is invalid: spec.ports[0].port: Invalid value: 80000: must be between 1 and 65535, \
             inclusive"
        ),
        "{bad_port}"
    );
    let no_match = refused(
        &cluster,
        &WEB.replace("      labels: {app: web}", "      labels: {app: x}"),
    )
    .await;
    assert!(
        no_match.contains(
            "spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template \
             `labels`"
        ),
        "{no_match}"
    );
    let name = refused(&cluster, &WEB.replace("name: settings", "name: Settings_1")).await;
    assert!(
        name.contains("The ConfigMap \"Settings_1\" is invalid: metadata.name: Invalid value: \"Settings_1\": a lowercase RFC 1123 subdomain"),
        "{name}"
    );
}

#[tokio::test]
async fn several_faults_are_all_told() {
    let cluster = cluster().await;
    let manifest = "
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Sometimes
  containers:
  - {name: A_b, image: x}
  - name: c
    resources: {requests: {cpu: 2}, limits: {cpu: 1}}
";
    let said = refused(&cluster, manifest).await;
    for fault in [
        "* spec.containers[0].name: Invalid value: \"A_b\": a lowercase RFC 1123 label",
        "* spec.containers[1].image: Required value",
        "* spec.containers[1].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        "* spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
    ] {
        assert!(said.contains(fault), "{fault}\n{said}");
    }
}

#[tokio::test]
async fn a_namespace_is_cleared() {
    let cluster = cluster().await;
    cluster
        .apply("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: team\n")
        .await;
    let manifest = WEB.replace("metadata:\n  name", "metadata:\n  namespace: team\n  name");
    cluster.apply(&manifest).await;
    let gone = cluster
        .kubectl_ok(&["delete", "ns", "team", "--timeout=30s"])
        .await;
    assert!(gone.starts_with("namespace \"team\" deleted"), "{gone}");
    let left = cluster
        .kubectl_ok(&["get", "cm,svc,deploy", "-A", "-o", "name"])
        .await;
    assert_eq!(left, "");
}
