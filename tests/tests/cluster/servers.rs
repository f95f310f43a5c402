//! Three control servers on a three-member etcd: any one may die, and clients of the cluster's Services notice nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, kubectl::Answer, load::Running, wait_for};
use serde_json::Value;

use crate::life::Stage;

/// How long requests go on; everything that happens meanwhile has to fit in.
const SECONDS: u64 = 75;
const PATIENCE: Duration = Duration::from_secs(30);
/// The servers' addresses for this machine.
const SERVERS: [(&str, &str); 3] = [
    ("control", "127.0.0.1"),
    ("control2", "127.0.0.2"),
    ("control3", "127.0.0.3"),
];

/// Twenty replicas that end as Kubernetes expects it of servers: they answer until nobody asks any more.
const MANIFEST: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: many, labels: {app: many}}
spec:
  replicas: 20
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
        - name: many
          image: localhost/portolan-demo:1
          args: ["serve", "--port", "8080"]
          env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
          lifecycle: {preStop: {sleep: {seconds: 3}}}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec:
  type: NodePort
  selector: {app: many}
  ports: [{name: tcp, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30090}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers: [{name: client, image: "localhost/portolan-demo:1", args: ["idle"]}]
"#;

/// 200 requests a second to 20 replicas, from a pod and from outside, while they are replaced, a node is drained, and the
/// leader and a member of etcd are killed: not one request fails.
pub fn no_request_fails_whatever_dies(stage: &Stage) -> Result<()> {
    let cluster = stage.redundant()?;
    cluster.apply(MANIFEST)?;
    cluster.wait_for_pods("app=many", 20)?;
    wait_for("the client", PATIENCE, || {
        let phase = cluster.get("pod", "client")?["status"]["phase"].clone();
        Ok(if phase == "Running" {
            Ok(())
        } else {
            Err(phase.to_string())
        })
    })?;
    let loads = start_loads(&cluster)?;
    let begun = Instant::now();
    cluster.kubectl(&["rollout", "restart", "deployment/many"])?;
    cluster.kubectl(&["rollout", "status", "deployment/many", "--timeout=60s"])?;
    let member = cluster.kill("etcd2")?;
    cluster.kubectl(&["annotate", "service", "many", "after=etcd"])?;
    let drain = ["drain", "n2", "--ignore-daemonsets", "--timeout=60s"];
    cluster.kubectl(&drain)?;
    member.start()?;
    let (leader, other) = leader(&cluster)?;
    let killed = cluster.kill(leader)?;
    others_take_over(&cluster, leader, other)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(SECONDS),
        "all of it happened under requests: {:?}",
        begun.elapsed()
    );
    for load in loads {
        load.finish()?.ensure_all_answered()?;
    }
    killed.start()?;
    let address = leader_address(leader);
    succeeds_at(&cluster, address, &["get", "--raw", "/readyz"])?;
    nothing_restarted(&cluster)
}

/// kubectl goes on at another server, which leads; controllers, scheduler and agents work with it: the node takes pods.
fn others_take_over(cluster: &Cluster, leader: &str, other: &str) -> Result<()> {
    let annotate = ["annotate", "service", "many", "later=control"];
    succeeds_at(cluster, other, &annotate)?;
    wait_for("another leader", PATIENCE, || {
        let answer = at(cluster, other, &HOLDER)?;
        let is_old = answer
            .stdout
            .starts_with(&format!("{}:", leader_address(leader)));
        Ok(if answer.code == Some(0) && !is_old {
            Ok(())
        } else {
            Err(format!("{answer:?}"))
        })
    })?;
    succeeds_at(cluster, other, &["uncordon", "n2"])?;
    succeeds_at(
        cluster,
        other,
        &["scale", "deployment/many", "--replicas=24"],
    )?;
    let wait = ["rollout", "status", "deployment/many", "--timeout=40s"];
    succeeds_at(cluster, other, &wait)?;
    agents_follow(cluster)
}

/// Waits until kubectl gets at one of the servers what it asks for.
fn succeeds_at(cluster: &Cluster, address: &str, arguments: &[&str]) -> Result<()> {
    wait_for(&arguments.join(" "), PATIENCE, || {
        let answer = at(cluster, address, arguments)?;
        Ok(if answer.code == Some(0) {
            Ok(())
        } else {
            Err(answer.stderr)
        })
    })
}

fn start_loads(cluster: &Cluster) -> Result<Vec<Running>> {
    let seconds = SECONDS.to_string();
    // One worker with pauses of 9 ms each: about 100 requests a second.
    let options = [
        "--seconds",
        &seconds,
        "--workers",
        "1",
        "--pause-us",
        "9000",
    ];
    let service = cluster.get("service", "many")?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("an address")?;
    let inside = format!("{address}:80");
    Ok(vec![
        cluster.start_load(From::Pod("client"), "tcp", &inside, &options)?,
        cluster.start_load(From::Outside, "tcp", "10.89.0.11:30090", &options)?,
    ])
}

const HOLDER: [&str; 7] = [
    "get",
    "lease",
    "portolan-control",
    "-n",
    "kube-system",
    "-o",
    "jsonpath={.spec.holderIdentity}",
];

/// The program that leads, and the address of one that does not.
fn leader(cluster: &Cluster) -> Result<(&'static str, &'static str)> {
    let holder = cluster.kubectl(&HOLDER)?;
    let leads = |address: &str| holder.starts_with(&format!("{address}:"));
    let leader = SERVERS.iter().find(|(_, address)| leads(address));
    let other = SERVERS.iter().find(|(_, address)| !leads(address));
    let (leader, _) = leader.with_context(|| format!("{holder:?} is a server"))?;
    let (_, other) = other.context("there are three")?;
    Ok((leader, other))
}

fn leader_address(name: &str) -> &'static str {
    SERVERS
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("127.0.0.1", |(_, address)| address)
}

/// kubectl at one of the servers.
fn at(cluster: &Cluster, address: &str, arguments: &[&str]) -> Result<Answer> {
    let server = format!("--server=https://{address}:6443");
    let arguments: Vec<&str> = [server.as_str()]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    cluster.try_kubectl(&arguments, "")
}

/// Every agent has the routes of a server that lives.
fn agents_follow(cluster: &Cluster) -> Result<()> {
    for node in ["n1", "n2"] {
        wait_for("an agent to follow routes", PATIENCE, || {
            let status = cluster.agent(node, "status")?;
            let is_connected = status["connected"] == Value::Bool(true);
            Ok(if is_connected {
                Ok(())
            } else {
                Err(status.to_string())
            })
        })?;
    }
    Ok(())
}

fn nothing_restarted(cluster: &Cluster) -> Result<()> {
    for pod in cluster.list("pods", "app=many")? {
        let restarts = pod.pointer("/status/containerStatuses/0/restartCount");
        ensure!(restarts == Some(&Value::from(0)), "{pod}");
    }
    Ok(())
}
