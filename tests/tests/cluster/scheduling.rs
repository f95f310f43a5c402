//! Where pods go: apart from each other, in the place of others that matter less, and where their volumes are.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, wait_for};
use serde_json::{Value, json};

use crate::{commands::pod, inside::busybox, life::Stage};

const PATIENCE: Duration = Duration::from_mins(1);

/// A pod of the demo's image with more in its spec.
fn asking(name: &str, app: &str, asks: &Value) -> Result<Value> {
    let containers =
        json!([{"name": "main", "image": "localhost/portolan-demo:1", "args": ["idle"]}]);
    let mut manifest: Value = serde_json::from_str(&pod(name, &containers))?;
    manifest["metadata"]["labels"] = json!({"app": app});
    if let Some(spec) = manifest["spec"].as_object_mut() {
        // The scheduler is to choose.
        spec.remove("nodeName");
    }
    for (field, value) in asks.as_object().into_iter().flatten() {
        manifest["spec"][field] = value.clone();
    }
    Ok(manifest)
}

fn get(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    let text = cluster.kubectl(&["get", kind, name, "-o", "json"])?;
    serde_json::from_str(&text).with_context(|| format!("understand {text}"))
}

fn until_running(cluster: &Cluster, name: &str) -> Result<Value> {
    wait_for(&format!("{name} to run"), PATIENCE, || {
        let pod = get(cluster, "pod", name)?;
        let is_running = pod["status"]["phase"] == "Running";
        Ok(if is_running {
            Ok(pod)
        } else {
            Err(pod["status"].to_string())
        })
    })
}

/// Waits for an event about a pod with a reason and exactly this message.
fn until_told(cluster: &Cluster, pod: &str, reason: &str, message: &str) -> Result<()> {
    let about = format!("--field-selector=involvedObject.name={pod},reason={reason}");
    wait_for(&format!("{reason} of {pod}"), PATIENCE, || {
        let events = cluster.kubectl(&["get", "events", &about, "-o", "json"])?;
        let events: Value = serde_json::from_str(&events)?;
        let messages: Vec<_> = events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|event| event["message"].as_str())
            .collect();
        Ok(if messages.contains(&message) {
            Ok(())
        } else {
            Err(messages.join("\n"))
        })
    })
}

/// Two pods that keep away from each other stand on two nodes; a third waits, and says why.
pub fn anti_affinity_spreads_over_nodes(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let term = json!({"labelSelector": {"matchLabels": {"app": "loner"}}, "topologyKey": "kubernetes.io/hostname"});
    let asks = json!({"affinity": {"podAntiAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
    let mut nodes = Vec::new();
    for name in ["loner-1", "loner-2"] {
        cluster.apply(&asking(name, "loner", &asks)?.to_string())?;
        let pod = until_running(&cluster, name)?;
        nodes.push(pod["spec"]["nodeName"].as_str().map(str::to_owned));
    }
    ensure!(nodes[0] != nodes[1], "they are apart: {nodes:?}");
    cluster.apply(&asking("loner-3", "loner", &asks)?.to_string())?;
    let message = "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. preemption: 0/2 nodes are \
                   available: 2 No preemption victims found for incoming pod.";
    until_told(&cluster, "loner-3", "FailedScheduling", message)?;
    let waiting = get(&cluster, "pod", "loner-3")?;
    ensure!(waiting["status"]["phase"] == "Pending", "{waiting}");
    let described = cluster.kubectl(&["describe", "pod", "loner-3"])?;
    ensure!(described.contains("FailedScheduling"), "{described}");
    cluster.kubectl(&["delete", "pod", "loner-1", "--grace-period=1"])?;
    until_running(&cluster, "loner-3")?;
    cluster.kubectl(&["delete", "pod", "-l", "app=loner", "--grace-period=1"])?;
    Ok(())
}

/// A pod of a higher class takes the place of one of a lower class, which ends gracefully.
pub fn priority_takes_the_place_of_others(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for (name, value) in [("lower", -10), ("higher", 1000)] {
        let value = format!("--value={value}");
        cluster.kubectl(&["create", "priorityclass", name, &value])?;
    }
    // More than half of a node: two of them do not fit.
    let node = get(&cluster, "node", "n1")?;
    let cpus = node["status"]["allocatable"]["cpu"].as_str();
    let cpus: u64 = cpus
        .and_then(|cpus| cpus.parse().ok())
        .with_context(|| format!("{node} says how many CPUs it has"))?;
    let asks = |class: &str| {
        json!({
            "priorityClassName": class,
            "nodeSelector": {"kubernetes.io/hostname": "n1"},
            "containers": [{"name": "main", "image": "localhost/portolan-demo:1", "args": ["idle"],
                "resources": {"requests": {"cpu": format!("{}m", cpus * 600)}}}],
        })
    };
    cluster.apply(&asking("victim", "class", &asks("lower"))?.to_string())?;
    until_running(&cluster, "victim")?;
    cluster.apply(&asking("winner", "class", &asks("higher"))?.to_string())?;
    let winner = until_running(&cluster, "winner")?;
    ensure!(winner["spec"]["nodeName"] == "n1", "{winner}");
    let uid = winner["metadata"]["uid"].as_str().unwrap_or_default();
    let message = format!("Preempted by pod {uid} on node n1");
    until_told(&cluster, "victim", "Preempted", &message)?;
    let gone = cluster.try_kubectl(&["get", "pod", "victim"], "")?;
    ensure!(gone.stderr.contains("NotFound"), "{gone:?}");
    let refused = asking("classless", "class", &json!({"priorityClassName": "none"}))?;
    let refused = cluster.try_kubectl(&["apply", "-f", "-"], &refused.to_string())?;
    ensure!(
        refused
            .stderr
            .contains("no PriorityClass with name none was found"),
        "{refused:?}"
    );
    cluster.kubectl(&["delete", "pod", "winner", "--grace-period=1"])?;
    cluster.kubectl(&["delete", "priorityclass", "lower", "higher"])?;
    Ok(())
}

/// The storage of one node: a class that waits for its first consumer, and a volume of it.
fn storage(folder: &str) -> Value {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    });
    let on_n2 = json!({"key": "kubernetes.io/hostname", "operator": "In", "values": ["n2"]});
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "data-on-n2"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local",
            "local": {"path": folder},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_n2]}]}},
        },
    });
    json!({"apiVersion": "v1", "kind": "List", "items": [class, volume]})
}

fn keeper() -> Result<Value> {
    let script = "[ -f /data/first ] || cat /proc/sys/kernel/random/uuid >/data/first; exec /tools/busybox sleep 600";
    let script = script.replace("cat /proc", "/tools/busybox cat /proc");
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "1Gi"}}});
    Ok(json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "keeper"},
        "spec": {
            "serviceName": "keeper", "replicas": 1,
            "selector": {"matchLabels": {"app": "keeper"}},
            "template": {
                "metadata": {"labels": {"app": "keeper"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "main", "image": "localhost/portolan-demo:1",
                        "command": ["/tools/busybox"], "args": ["sh", "-c", script],
                        "volumeMounts": [
                            {"name": "busybox", "mountPath": "/tools/busybox"},
                            {"name": "data", "mountPath": "/data"},
                        ],
                    }],
                    "volumes": [{"name": "busybox", "hostPath": {"path": busybox()?, "type": "File"}}],
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        },
    }))
}

/// What a pod of a StatefulSet wrote is there for the next of its name.
pub fn a_stateful_set_keeps_its_data(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let folder = cluster.node_state("n2").join("kept");
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    cluster.apply(&storage(&folder.to_string_lossy()).to_string())?;
    cluster.apply(&keeper()?.to_string())?;
    let written = || -> Result<String> {
        let pod = until_running(&cluster, "keeper-0")?;
        ensure!(pod["spec"]["nodeName"] == "n2", "it is at its volume");
        wait_for("what it wrote", PATIENCE, || {
            let cat = [
                "exec",
                "keeper-0",
                "--",
                "/tools/busybox",
                "cat",
                "/data/first",
            ];
            let read = cluster.try_kubectl(&cat, "")?;
            Ok(if read.stdout.trim().is_empty() {
                Err(read.stderr)
            } else {
                Ok(read.stdout)
            })
        })
    };
    let first = written()?;
    let before = get(&cluster, "pod", "keeper-0")?["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", "keeper-0"])?;
    wait_for("another of its name", PATIENCE, || {
        let read = cluster.try_kubectl(&["get", "pod", "keeper-0", "-o", "json"], "")?;
        let pod: Option<Value> = serde_json::from_str(&read.stdout).ok();
        let is_new = pod.is_some_and(|pod| pod["metadata"]["uid"] != before);
        Ok(if is_new { Ok(()) } else { Err(read.stderr) })
    })?;
    ensure!(written()? == first, "the data is the same");
    let table = cluster.kubectl(&["get", "pv,pvc,sc"])?;
    for words in [
        "Bound",
        "default/data-keeper-0",
        "data-on-n2",
        "WaitForFirstConsumer",
    ] {
        ensure!(table.contains(words), "{words}: {table}");
    }
    let described = cluster.kubectl(&["describe", "pvc", "data-keeper-0"])?;
    ensure!(described.contains("Used By:       keeper-0"), "{described}");
    cluster.kubectl(&["delete", "statefulset", "keeper"])?;
    cluster.kubectl(&["wait", "--for=delete", "pod/keeper-0", "--timeout=60s"])?;
    cluster.kubectl(&["delete", "pvc", "data-keeper-0"])?;
    wait_for("its release", PATIENCE, || {
        let volume = get(&cluster, "pv", "data-on-n2")?;
        let phase = volume["status"]["phase"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(if phase == "Released" {
            Ok(())
        } else {
            Err(phase)
        })
    })?;
    cluster.kubectl(&["delete", "pv/data-on-n2", "sc/local"])?;
    ensure!(folder.join("first").exists(), "the data stays");
    Ok(())
}
