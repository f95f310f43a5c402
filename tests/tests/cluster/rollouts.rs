//! Rollouts with real pods, and nodes that are drained, with the oldest and the newest kubectl.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, cluster::all_words, wait_for};
use serde_json::{Value, json};

use crate::{
    daily::{ENDS, run, succeed},
    life::Stage,
};

/// The template of pods that serve.
fn template(app: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app, "drained": "yes"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": "localhost/portolan-demo:1",
                "args": ["idle"],
            }],
        },
    })
}

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": template(name),
        },
    })
}

fn image(cluster: &Cluster, name: &str) -> Result<String> {
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    cluster.kubectl(&["get", "deployment", name, "-o", path])
}

/// A new template is rolled out, one that can't run stays half-way and is undone, and the history tells of it.
pub fn rollouts_go_on_stop_and_are_undone(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    cluster.apply(&deployment("rolled", 2).to_string())?;
    for version in ENDS {
        let status = ["rollout", "status", "deployment/rolled", "--timeout=60s"];
        let done = "deployment \"rolled\" successfully rolled out\n";
        ensure!(
            succeed(&cluster, version, &status)?.ends_with(done),
            "{version}"
        );
        succeed(
            &cluster,
            version,
            &["set", "env", "deployment/rolled", &format!("V={version}")],
        )?;
        let said = succeed(&cluster, version, &status)?;
        ensure!(said.ends_with(done), "{version}: {said}");
        succeed(
            &cluster,
            version,
            &[
                "set",
                "image",
                "deployment/rolled",
                "main=127.0.0.1:9/none:1",
            ],
        )?;
        let status = ["rollout", "status", "deployment/rolled", "--timeout=2s"];
        let stuck = run(&cluster, version, &status)?;
        let words = all_words(&stuck);
        ensure!(
            !stuck.status.success() && words.contains("Waiting for deployment \"rolled\" rollout to finish: 1 out of 2 new replicas have been updated"),
            "{version}: {words}"
        );
        let undone = succeed(&cluster, version, &["rollout", "undo", "deployment/rolled"])?;
        ensure!(
            undone == "deployment.apps/rolled rolled back\n",
            "{version}: {undone}"
        );
        let status = ["rollout", "status", "deployment/rolled", "--timeout=60s"];
        succeed(&cluster, version, &status)?;
        ensure!(
            image(&cluster, "rolled")? == "localhost/portolan-demo:1",
            "{version}"
        );
        cluster.wait_for_pods("app=rolled", 2)?;
        succeed(
            &cluster,
            version,
            &["rollout", "restart", "deployment/rolled"],
        )?;
        let said = succeed(&cluster, version, &status)?;
        ensure!(said.ends_with(done), "{version}: {said}");
        let history = succeed(
            &cluster,
            version,
            &["rollout", "history", "deployment/rolled"],
        )?;
        ensure!(history.lines().count() >= 5, "{version}: {history}");
    }
    cluster
        .kubectl(&["delete", "deployment", "rolled"])
        .map(drop)
}

/// Where the pods with a label run.
fn nodes_of(cluster: &Cluster, selector: &str) -> Result<Vec<String>> {
    let pods = cluster.list("pods", selector)?;
    let node = |pod: &Value| {
        pod["spec"]["nodeName"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Ok(pods.iter().map(node).collect())
}

/// A budget holds a drain up as long as it is used up; a DaemonSet's pods stay; the others run elsewhere.
pub fn nodes_are_drained(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let moved = deployment("moved", 0);
    let budget = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "moved"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "moved"}}},
    });
    let everywhere = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "everywhere"},
        "spec": {
            "selector": {"matchLabels": {"app": "everywhere"}},
            "template": template("everywhere"),
        },
    });
    for object in [&moved, &budget, &everywhere] {
        cluster.apply(&object.to_string())?;
    }
    cluster.wait_for_pods("app=everywhere", 2)?;
    for version in ENDS {
        let drained = drain(&cluster, version);
        for node in ["n1", "n2"] {
            succeed(&cluster, version, &["uncordon", node])?;
        }
        drained?;
        let back = json!({"spec": {"minAvailable": 2}}).to_string();
        cluster.kubectl(&["patch", "pdb", "moved", "--type=merge", "-p", &back])?;
    }
    for object in ["deployment/moved", "pdb/moved", "daemonset/everywhere"] {
        cluster.kubectl(&["delete", object])?;
    }
    Ok(())
}

fn drain(cluster: &Cluster, version: &str) -> Result<()> {
    cluster.kubectl(&["scale", "deployment", "moved", "--replicas=0"])?;
    cluster.wait_for_pods("app=moved", 0)?;
    succeed(cluster, version, &["cordon", "n1"])?;
    cluster.scale("moved", 2).context("its pods on n2")?;
    succeed(cluster, version, &["uncordon", "n1"])?;
    let before = nodes_of(cluster, "app=moved")?;
    ensure!(before == ["n2", "n2"], "{version}: {before:?}");
    wait_for("the budget to count them", Duration::from_secs(10), || {
        let budget = cluster.get("pdb", "moved")?;
        let healthy = budget["status"]["currentHealthy"] == 2;
        Ok(if healthy {
            Ok(())
        } else {
            Err(budget["status"].to_string())
        })
    })?;
    let drain = ["drain", "n2", "--pod-selector=drained=yes"];
    let with_daemons = run(cluster, version, &drain)?;
    let words = all_words(&with_daemons);
    ensure!(
        !with_daemons.status.success() && words.contains("cannot delete DaemonSet-managed Pods"),
        "{version}: {words}"
    );
    let ignoring = [&drain[..], &["--ignore-daemonsets"]].concat();
    let held = run(
        cluster,
        version,
        &[&ignoring[..], &["--timeout=2s"]].concat(),
    )?;
    let words = all_words(&held);
    ensure!(
        !held.status.success()
            && words.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{version}: {words}"
    );
    ensure!(
        nodes_of(cluster, "app=moved")? == before,
        "{version}: none has gone"
    );
    let less = json!({"spec": {"minAvailable": 1}}).to_string();
    cluster.kubectl(&["patch", "pdb", "moved", "--type=merge", "-p", &less])?;
    let said = succeed(
        cluster,
        version,
        &[&ignoring[..], &["--timeout=60s"]].concat(),
    )?;
    ensure!(
        said.trim_end().ends_with("drained") || said.trim_end().ends_with("evicted"),
        "{version}: {said}"
    );
    cluster.wait_for_pods("app=moved", 2)?;
    let after = nodes_of(cluster, "app=moved")?;
    ensure!(after == ["n1", "n1"], "{version}: {after:?}");
    let mut daemons = nodes_of(cluster, "app=everywhere")?;
    daemons.sort();
    ensure!(daemons == ["n1", "n2"], "{version}: {daemons:?}");
    Ok(())
}
