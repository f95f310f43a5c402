//! Pods that can't run: why is in their status and events.

use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_tests::{Cluster, wait_for};
use serde_json::{Value, json};

use crate::{commands::pod, life::Stage};

/// The state that a pod's only container waits in, once it is one of these.
pub fn wait_for_reason(cluster: &Cluster, name: &str, reasons: &[&str]) -> Result<Value> {
    wait_for(
        &format!("{name} to be {reasons:?}"),
        Duration::from_secs(20),
        || {
            let pod = cluster.get("pod", name)?;
            let state = &pod["status"]["containerStatuses"][0]["state"];
            let reason = state["waiting"]["reason"]
                .as_str()
                .or(state["terminated"]["reason"].as_str());
            Ok(if reason.is_some_and(|reason| reasons.contains(&reason)) {
                Ok(pod)
            } else {
                Err(pod["status"].to_string())
            })
        },
    )
}

/// Waits for an event of a pod whose line holds these words.
pub fn wait_for_event(cluster: &Cluster, name: &str, words: &str) -> Result<()> {
    wait_for(
        &format!("an event of {name} with {words:?}"),
        Duration::from_secs(10),
        || {
            let events = cluster.kubectl(&[
                "get",
                "events",
                "--field-selector",
                &format!("involvedObject.name={name}"),
            ])?;
            Ok(if events.contains(words) {
                Ok(())
            } else {
                Err(events)
            })
        },
    )
}

/// An image that is nowhere: the pod says so and tries again.
pub fn a_missing_image_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    // Nobody listens there, so the answer is at once and certain.
    cluster.apply(&pod(
        "imageless",
        &json!([{"name": "x", "image": "127.0.0.1:9/nothing:1"}]),
    ))?;
    let pod = wait_for_reason(&cluster, "imageless", &["ErrImagePull", "ImagePullBackOff"])?;
    ensure!(pod["status"]["phase"] == "Pending", "{pod}");
    wait_for_event(
        &cluster,
        "imageless",
        "Failed to pull image \"127.0.0.1:9/nothing:1\"",
    )?;
    wait_for_reason(&cluster, "imageless", &["ImagePullBackOff"])?;
    let table = cluster.kubectl(&["get", "pod", "imageless"])?;
    ensure!(
        table.contains("0/1") && table.contains("ImagePull"),
        "{table}"
    );
    cluster.kubectl(&["delete", "pod", "imageless"]).map(drop)
}

/// A command that the image does not have: the container's state names it.
pub fn a_missing_command_is_told(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    cluster.apply(&pod(
        "commandless",
        &json!([{"name": "x", "image": "localhost/portolan-demo:1", "command": ["/no/such/program"]}]),
    ))?;
    wait_for_event(&cluster, "commandless", "/no/such/program")?;
    wait_for_reason(
        &cluster,
        "commandless",
        &["RunContainerError", "StartError", "CrashLoopBackOff"],
    )?;
    cluster.kubectl(&["delete", "pod", "commandless"]).map(drop)
}

/// A container that ends again and again: restarts are counted, the pauses between them grow.
pub fn a_crashing_container_backs_off(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    cluster.apply(&pod(
        "crashing",
        &json!([{"name": "x", "image": "localhost/portolan-demo:1", "args": ["exit", "3"]}]),
    ))?;
    let pod = wait_for_reason(&cluster, "crashing", &["CrashLoopBackOff"])?;
    let status = &pod["status"]["containerStatuses"][0];
    ensure!(
        status["lastState"]["terminated"]["exitCode"] == 3,
        "{status}"
    );
    ensure!(status["restartCount"].as_u64() >= Some(1), "{status}");
    ensure!(pod["status"]["phase"] == "Running", "{pod}");
    wait_for_event(
        &cluster,
        "crashing",
        "Back-off restarting failed container x in pod crashing",
    )?;
    let table = cluster.kubectl(&["get", "pod", "crashing"])?;
    ensure!(
        table.contains("CrashLoopBackOff") || table.contains("Error"),
        "{table}"
    );
    cluster.kubectl(&["delete", "pod", "crashing"]).map(drop)
}
