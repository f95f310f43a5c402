//! Containers that misbehave: why is told in status and events, and their node, its other pods and its agent stay well.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::{Cluster, wait_for};
use serde_json::{Value, json};

use crate::{
    bad_pods::{wait_for_event, wait_for_reason},
    commands::pod,
    daily::scripted,
    life::Stage,
};

/// The neighbours: the agent answers, the node is ready, and the pod beside runs on without a restart.
fn all_is_well(cluster: &Cluster) -> Result<()> {
    cluster.pods_on("n1")?;
    let node = cluster.get("node", "n1")?;
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.is_some_and(|conditions| {
        let mut conditions = conditions.iter();
        conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
    });
    ensure!(ready, "{node}");
    let beside = cluster.get("pod", "client")?;
    ensure!(
        beside["status"]["containerStatuses"][0]["ready"] == true,
        "{beside}"
    );
    ensure!(
        beside["status"]["containerStatuses"][0]["restartCount"] == 0,
        "{beside}"
    );
    Ok(())
}

fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.kubectl(&["delete", "pod", name, "--grace-period=0", "--force"])?;
    all_is_well(cluster)
}

/// A key that a ConfigMap lacks: told, and mended as soon as the key is there.
pub fn a_missing_key_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let settings = |key: &str| {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keys"}, "data": {key: "v"}});
        cluster.apply(&map.to_string())
    };
    settings("other")?;
    let wanted =
        json!({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "keys", "key": "wanted"}}});
    let container = json!({"name": "x", "image": "localhost/portolan-demo:1", "args": ["idle"], "env": [wanted]});
    cluster.apply(&pod("keyless", &json!([container])))?;
    let pod = wait_for_reason(&cluster, "keyless", &["CreateContainerConfigError"])?;
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let why = "couldn't find key wanted in ConfigMap default/keys";
    ensure!(waiting["message"] == why, "{waiting}");
    wait_for_event(&cluster, "keyless", why)?;
    settings("wanted")?;
    cluster.wait_for_pods("app=keyless", 1)?;
    cluster.kubectl(&["delete", "configmap", "keys"])?;
    remove(&cluster, "keyless")
}

/// Probes of a port where nobody listens: never ready, and started anew.
pub fn a_probe_to_nowhere_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let probe = json!({"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 2});
    let container = json!({
        "name": "x", "image": "localhost/portolan-demo:1", "args": ["idle"], "livenessProbe": probe, "readinessProbe": probe,
    });
    cluster.apply(&pod("probed", &json!([container])))?;
    wait_for_event(&cluster, "probed", "Liveness probe failed: dial tcp ")?;
    wait_for_event(&cluster, "probed", "Readiness probe failed: dial tcp ")?;
    wait_for_event(
        &cluster,
        "probed",
        "Container x failed liveness probe, will be restarted",
    )?;
    wait_for("a restart", Duration::from_secs(20), || {
        let status = cluster.get("pod", "probed")?["status"]["containerStatuses"][0].clone();
        let again = status["restartCount"].as_u64() >= Some(1) && status["ready"] == false;
        Ok(if again {
            Ok(())
        } else {
            Err(status.to_string())
        })
    })?;
    remove(&cluster, "probed")
}

/// A volume that grows over its limit: its pod is evicted, and says over what.
pub fn a_full_volume_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let script = "dd if=/dev/zero of=/tmp/file bs=1024 count=3072; sleep 600";
    let mut manifest = scripted("filling", script, &json!({}))?;
    manifest["spec"]["volumes"][1]["emptyDir"] = json!({"sizeLimit": "1Mi"});
    cluster.apply(&manifest.to_string())?;
    let told = "Usage of EmptyDir volume \"scratch\" exceeds the limit \"1Mi\".";
    wait_for("its eviction", Duration::from_secs(40), || {
        let status = cluster.get("pod", "filling")?["status"].clone();
        let evicted = status["phase"] == "Failed" && status["reason"] == "Evicted";
        let told = status["message"]
            .as_str()
            .is_some_and(|message| message.contains(told));
        Ok(if evicted && told {
            Ok(())
        } else {
            Err(status.to_string())
        })
    })?;
    wait_for_event(&cluster, "filling", told)?;
    remove(&cluster, "filling")
}

/// One that makes processes without end comes to the limit of its own, and others go on.
pub fn a_fork_bomb_stays_inside(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let script = "bomb() { while :; do sleep 600 & done; }; bomb";
    cluster.apply(&scripted("bomb", script, &json!({}))?.to_string())?;
    wait_for("its end", Duration::from_secs(40), || {
        let status = cluster.get("pod", "bomb")?["status"]["containerStatuses"][0].clone();
        let ended = [&status["state"], &status["lastState"]];
        let ended = ended
            .iter()
            .any(|state| state["terminated"]["exitCode"].as_i64() > Some(0));
        Ok(if ended {
            Ok(())
        } else {
            Err(status.to_string())
        })
    })?;
    all_is_well(&cluster)?;
    wait_for("why it ended", Duration::from_secs(20), || {
        let now = cluster.try_kubectl(&["logs", "bomb"], "")?;
        let before = cluster.try_kubectl(&["logs", "bomb", "--previous"], "")?;
        let told = [&now, &before]
            .iter()
            .any(|said| said.stdout.contains("can't fork"));
        Ok(if told {
            Ok(())
        } else {
            Err(format!("{now:?} {before:?}"))
        })
    })?;
    remove(&cluster, "bomb")
}

/// One that writes without end: its log is cut off in time, and can be read to its end.
pub fn a_flood_of_logs_is_held(stage: &Stage) -> Result<()> {
    // Five files of 10 MiB; with the time of each line, what is written is more than a half more.
    const KEPT: u64 = 5 * (10 << 20) + (1 << 20);
    let cluster = stage.cluster()?;
    let script = "yes 'a line of the flood' | head -c 28000000; echo; echo over; exec sleep 600";
    cluster.apply(&scripted("flood", script, &json!({}))?.to_string())?;
    wait_for("its last line", Duration::from_secs(40), || {
        let tail = cluster.try_kubectl(&["logs", "flood", "--tail=1"], "")?;
        Ok(if tail.stdout == "over\n" {
            Ok(())
        } else {
            Err(format!("{tail:?}"))
        })
    })?;
    let uid = cluster.get("pod", "flood")?["metadata"]["uid"].clone();
    let folder = format!(
        "logs/default_flood_{}/main",
        uid.as_str().unwrap_or_default()
    );
    let mut size = 0;
    for entry in std::fs::read_dir(cluster.node_state("n1").join(folder))? {
        size += entry?.metadata()?.len();
    }
    ensure!(size <= KEPT, "{size} bytes are kept");
    let limited = cluster.kubectl(&["logs", "flood", "--limit-bytes=100"])?;
    ensure!(limited.len() == 100, "{limited}");
    remove(&cluster, "flood")
}

/// One that does not hear SIGTERM is killed when its grace is over, and says so by its exit code.
pub fn a_deaf_container_is_killed(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let script = "trap '' TERM; echo deaf; while :; do sleep 1; done";
    cluster.apply(&scripted("deaf", script, &json!({}))?.to_string())?;
    cluster.wait_for_pods("app=deaf", 1)?;
    let mut watch = cluster
        .kubectl_command()
        .args(["get", "pod", "deaf", "-w", "-o", "json"])
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let said = cluster.kubectl(&["delete", "pod", "deaf"]);
    watch.kill()?;
    let seen = watch.wait_with_output()?;
    ensure!(said?.contains("\"deaf\" deleted"), "it is gone");
    let seen: Vec<Value> = serde_json::Deserializer::from_slice(&seen.stdout)
        .into_iter::<Value>()
        .map_while(Result::ok)
        .collect();
    let killed = seen
        .iter()
        .any(|pod| pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137);
    ensure!(killed, "{seen:?}");
    wait_for_event(&cluster, "deaf", "Stopping container main")?;
    all_is_well(&cluster)
}
