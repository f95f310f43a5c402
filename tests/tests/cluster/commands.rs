//! The kubectl commands of a first day: get in every format, watch, describe, apply, delete.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, cluster::all_words, wait_for};
use serde_json::{Value, json};

use crate::life::Stage;

/// A pod that waits, with one container more for each further port it shall serve.
pub fn pod(name: &str, containers: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 2, "nodeName": "n1", "containers": containers},
    })
    .to_string()
}

/// A manifest of the smallest kind. (`kubectl create configmap` speaks protobuf from 1.32 on; files go as JSON.)
pub fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  a: b\n")
}

fn idle() -> Value {
    json!([{"name": "idle", "image": "localhost/portolan-demo:1", "args": ["idle"]}])
}

/// One table for each kind, in all namespaces, with Kubernetes' own columns.
pub fn get_lists_every_kind(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for (kind, columns, row) in [
        ("nodes", "NAME STATUS ROLES AGE VERSION", "n1"),
        ("pods", "NAMESPACE NAME READY STATUS RESTARTS AGE", "1/1"),
        (
            "svc",
            "NAMESPACE NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE",
            "80:30080/TCP",
        ),
        (
            "deploy",
            "NAMESPACE NAME READY UP-TO-DATE AVAILABLE AGE",
            "4/4",
        ),
        ("rs", "NAMESPACE NAME DESIRED CURRENT READY AGE", "web-"),
        (
            "endpointslices",
            "NAMESPACE NAME ADDRESSTYPE PORTS ENDPOINTS AGE",
            "IPv6",
        ),
        ("namespaces", "NAME STATUS AGE", "kube-system"),
        ("configmaps", "NAMESPACE NAME DATA AGE", ""),
        (
            "secrets",
            "NAMESPACE NAME TYPE DATA AGE",
            "bootstrap.kubernetes.io/token",
        ),
        (
            "events",
            "NAMESPACE LAST SEEN TYPE REASON OBJECT MESSAGE",
            "Started",
        ),
    ] {
        let arguments = if kind == "configmaps" {
            cluster.apply(&config_map("listed"))?;
            ["get", kind, "-A", "--field-selector=metadata.name=listed"]
        } else {
            ["get", kind, "-A", "--output="]
        };
        let table = cluster.kubectl(&arguments)?;
        let header: Vec<&str> = table
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(header.join(" ") == columns, "{kind}: {table}");
        ensure!(
            table.lines().skip(1).any(|line| line.contains(row)),
            "{kind} has {row:?}: {table}"
        );
    }
    cluster.kubectl(&["delete", "configmap", "listed"])?;
    Ok(())
}

/// Several kinds at once, in all namespaces and every format.
pub fn get_lists_several_kinds(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let get = ["get", "nodes,pods,svc,deploy,rs,endpointslices", "-A"];
    for format in [&[][..], &["-o", "wide"]] {
        let table = cluster.kubectl(&[&get[..], format].concat())?;
        for name in [
            "node/n2",
            "pod/client",
            "service/kubernetes",
            "deployment.apps/web",
            "replicaset.apps/web-",
            "endpointslice.discovery.k8s.io/web-",
        ] {
            ensure!(table.contains(name), "{name} is listed: {table}");
        }
    }
    let kinds = [
        "Node",
        "Pod",
        "Service",
        "Deployment",
        "ReplicaSet",
        "EndpointSlice",
    ];
    let yaml = cluster.kubectl(&[&get[..], &["-o", "yaml"]].concat())?;
    let json = cluster.kubectl(&[&get[..], &["-o", "json"]].concat())?;
    let list: Value = serde_json::from_str(&json).context("understand kubectl's JSON")?;
    for kind in kinds {
        ensure!(
            yaml.contains(&format!("  kind: {kind}\n")),
            "{kind}: {yaml}"
        );
        ensure!(
            list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|item| item["kind"] == kind),
            "{kind}: {json}"
        );
    }
    Ok(())
}

/// What a node's agent says of its dataplane, to people and to programs.
pub fn agents_tell_of_their_dataplane(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    // So that there are flows to be told of.
    cluster
        .load(
            From::Pod("client"),
            "udp",
            &super::traffic::cluster_address(&cluster, 4)?,
            20,
        )?
        .ensure_all_answered()?;
    for (verb, words) in [
        ("services", &["default/web:80/TCP", ":80"][..]),
        ("flows", &["udp-replied", "default/web:80/UDP"]),
        ("drops", &["no_backend"]),
        ("status", &["n1", "connected"]),
    ] {
        let output = Command::new(cluster.program("portolan-agent"))
            .args([verb, "--state-dir"])
            .arg(cluster.node_state("n1"))
            .output()
            .context("run portolan-agent")?;
        let text = all_words(&output);
        ensure!(output.status.success(), "{verb}: {text}");
        let json = cluster.agent("n1", verb)?;
        ensure!(
            json.as_array().is_none_or(|list| !list.is_empty()),
            "{verb} --json: {json}"
        );
        for word in words {
            ensure!(text.contains(word), "{verb} says {word:?}: {text}");
        }
    }
    Ok(())
}

/// -o wide, yaml, json, name, jsonpath.
pub fn get_prints_every_format(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let wide = cluster.kubectl(&["get", "pods", "-o", "wide"])?;
    let client = wide
        .lines()
        .find(|line| line.starts_with("client "))
        .with_context(|| format!("the client is listed: {wide}"))?;
    ensure!(
        client.contains("10.244.") && client.contains(" n1 "),
        "{wide}"
    );
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"])?;
    ensure!(
        nodes.contains("10.89.0.12") && nodes.contains("Ready"),
        "{nodes}"
    );

    let yaml = cluster.kubectl(&["get", "service", "web", "-o", "yaml"])?;
    for line in [
        "kind: Service",
        "  nodePort: 30080",
        "  - IPv6",
        "  type: NodePort",
    ] {
        ensure!(yaml.contains(line), "{line:?} in {yaml}");
    }
    let deployment = cluster.get("deployment", "web")?;
    ensure!(deployment["status"]["readyReplicas"] == 4, "{deployment}");
    let names = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"])?;
    ensure!(
        names.lines().count() == 4 && names.starts_with("pod/web-"),
        "{names}"
    );
    let phases = cluster.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"])?;
    ensure!(
        phases == "Running Running Running Running Running",
        "{phases}"
    );
    Ok(())
}

/// `get pods -w` shows a pod come and go, and nothing stays out.
pub fn get_watches(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let mut watch = cluster
        .kubectl_command()
        .args([
            "get",
            "pods",
            "-l",
            "app=watched",
            "-w",
            "--output-watch-events",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("run kubectl get -w")?;
    let stdout = watch.stdout.take().expect("stdout was asked to be a pipe");
    let (sender, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let seen = watch_a_life(&cluster, &lines);
    watch.kill().context("end kubectl get -w")?;
    watch.wait().context("wait for kubectl get -w")?;
    reader.join().expect("the reader panics on nothing");
    let seen = seen?;
    let place = |words: [&str; 2]| {
        seen.iter()
            .position(|line| words.iter().all(|word| line.contains(word)))
            .with_context(|| format!("{words:?} is seen: {seen:#?}"))
    };
    let added = place(["ADDED", "watched"])?;
    let running = place(["MODIFIED", "Running"])?;
    let terminating = place(["MODIFIED", "Terminating"])?;
    let deleted = place(["DELETED", "watched"])?;
    ensure!(
        added < running && running < terminating && terminating < deleted,
        "{seen:#?}"
    );
    Ok(())
}

fn watch_a_life(
    cluster: &Cluster,
    lines: &std::sync::mpsc::Receiver<String>,
) -> Result<Vec<String>> {
    cluster.apply(&pod("watched", &idle()))?;
    cluster.wait_for_pods("app=watched", 1)?;
    cluster.kubectl(&["delete", "pod", "watched"])?;
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !seen.iter().any(|line: &String| line.contains("DELETED")) {
        let left = deadline.saturating_duration_since(Instant::now());
        seen.push(
            lines
                .recv_timeout(left)
                .with_context(|| format!("the deletion is seen: {seen:#?}"))?,
        );
    }
    Ok(seen)
}

/// Where it runs, its addresses, its containers, and the events of its life in order.
pub fn describe_tells_a_pods_story(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let pods = cluster.list("pods", "app=web")?;
    let name = pods[0]["metadata"]["name"]
        .as_str()
        .context("a pod has a name")?;
    let text = cluster.kubectl(&["describe", "pod", name])?;
    for expected in [
        "Node:             n",
        "Status:           Running",
        "Controlled By:  ReplicaSet/web-",
        "Image:         localhost/portolan-demo:1",
        "Ports:         8080/TCP, 8080/UDP",
        "State:          Running",
        "Restart Count:  ",
        "memory:  64Mi",
        "NODE_NAME:   (v1:spec.nodeName)",
        "Burstable",
        "Successfully assigned default/web-",
        "Created",
        "Started",
    ] {
        ensure!(
            text.contains(expected),
            "{expected:?} is missing in:\n{text}"
        );
    }
    let node = cluster.kubectl(&["describe", "node", "n1"])?;
    for expected in [
        "PodCIDRs:",
        "Ready            True",
        "Allocatable:",
        "InternalIP:  fd00:89::11",
        "default                     client",
    ] {
        ensure!(
            node.contains(expected),
            "{expected:?} is missing in:\n{node}"
        );
    }
    Ok(())
}

/// "created", "configured" and "unchanged", each only when it is so.
pub fn apply_creates_changes_and_keeps(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let manifest = |value: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\ndata:\n  key: {value}\n"
        )
    };
    for (value, expected) in [
        ("one", "created"),
        ("one", "unchanged"),
        ("two", "configured"),
    ] {
        let said = cluster.apply(&manifest(value))?;
        ensure!(
            said.trim() == format!("configmap/applied {expected}"),
            "{said}"
        );
    }
    let object = cluster.get("configmap", "applied")?;
    ensure!(object["data"] == json!({"key": "two"}), "{object}");
    cluster.kubectl(&["delete", "configmap", "applied"])?;

    let demo = cluster.kubectl(&[
        "apply",
        "-f",
        concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/demo.yaml"),
    ])?;
    ensure!(
        demo.lines().count() == 3 && demo.lines().all(|line| line.ends_with(" unchanged")),
        "{demo}"
    );
    Ok(())
}

/// A Service that is no NodePort any more loses what belongs to that type, and another may have its port at once.
pub fn a_service_changes_its_type(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let manifest = |name: &str, kind: &str, port: Value| {
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "labels": {"test": "types"}},
            "spec": {"type": kind, "selector": {"app": "nobody"}, "ports": [port]},
        })
        .to_string()
    };
    let open = serde_json::json!({"port": 80, "nodePort": 30999});
    let closed = serde_json::json!({"port": 80});
    cluster.apply(&manifest("first", "NodePort", open.clone()))?;
    cluster.apply(&manifest("first", "ClusterIP", closed))?;
    cluster.apply(&manifest("second", "NodePort", open.clone()))?;
    cluster.kubectl(&[
        "patch",
        "service",
        "second",
        "-p",
        "{\"spec\":{\"type\":\"ClusterIP\"}}",
    ])?;
    cluster.apply(&manifest("third", "NodePort", open))?;
    for name in ["first", "second"] {
        let spec = &cluster.get("service", name)?["spec"];
        ensure!(spec["externalTrafficPolicy"].is_null(), "{spec}");
        ensure!(spec["ports"][0]["nodePort"].is_null(), "{spec}");
    }
    cluster
        .kubectl(&["delete", "services", "-l", "test=types"])
        .map(drop)
}

/// `delete` returns when the pod is gone, within its grace period, and its process with it.
pub fn delete_waits_until_a_pod_is_gone(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    cluster.apply(&pod("deleted", &idle()))?;
    cluster.wait_for_pods("app=deleted", 1)?;
    let pods = cluster.pods_on("n1")?;
    let pid = pods
        .iter()
        .find(|pod| pod["name"] == "deleted")
        .and_then(|pod| pod["containers"][0]["pid"].as_u64())
        .context("the agent knows its process")?;
    let begun = Instant::now();
    let said = cluster.kubectl(&["delete", "pod", "deleted"])?;
    ensure!(said.contains("\"deleted\" deleted"), "{said}");
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        begun.elapsed()
    );
    let pid = u32::try_from(pid).context("a process number")?;
    ensure!(
        portolan_tests::daemon::start_time(pid).is_none(),
        "its process has ended"
    );
    let answer = cluster.try_kubectl(&["get", "pod", "deleted"], "")?;
    ensure!(
        answer.stderr.contains("pods \"deleted\" not found"),
        "{answer:?}"
    );
    Ok(())
}

/// Two containers of a pod serve two ports of one address, each kept within its own limits.
pub fn containers_share_their_pods_network(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let container = |name: &str, port: &str| {
        json!({
            "name": name,
            "image": "localhost/portolan-demo:1",
            "args": ["serve", "--port", port],
            "resources": {"limits": {"memory": "32Mi", "cpu": "200m"}},
        })
    };
    cluster.apply(&pod(
        "twins",
        &json!([container("one", "8081"), container("two", "8082")]),
    ))?;
    let pods = cluster.wait_for_pods("app=twins", 1)?;
    let address = pods[0]["status"]["podIP"]
        .as_str()
        .context("a pod has an address")?;
    for port in [8081, 8082] {
        let target = format!("{address}:{port}");
        wait_for(
            "an answer of each container",
            Duration::from_secs(5),
            || {
                let load = cluster.load(From::Pod("client"), "tcp", &target, 1)?;
                Ok(if load.by_pod.contains_key("twins") {
                    Ok(())
                } else {
                    Err(format!("{load:?}"))
                })
            },
        )?;
    }
    let statuses = pods[0]["status"]["containerStatuses"]
        .as_array()
        .context("it has containers")?;
    ensure!(
        statuses.len() == 2 && statuses.iter().all(|status| status["ready"] == true),
        "{statuses:?}"
    );
    cluster.kubectl(&["delete", "pod", "twins"]).map(drop)
}
