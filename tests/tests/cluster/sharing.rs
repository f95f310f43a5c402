//! Local preference that survives a hot node: flows leave it while its pods are saturated, and come back.

use std::{
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, Load, wait_for};
use serde_json::{Value, json};

use crate::{inside::busybox, life::Stage};

/// The service whose pods get hot, as agents name it.
const SERVICE: &str = "default/hot:80/TCP";
/// New flows of one look.
const FLOWS: u64 = 40;

/// A server on a node beside a container that can be made busy, with a tenth of a CPU.
fn server(node: &str) -> Result<Value> {
    let name = format!("hot-{node}");
    let tool = busybox()?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "hot"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "nodeName": node,
            "containers": [
                {
                    "name": "server",
                    "image": "localhost/portolan-demo:1",
                    "args": ["serve", "--port", "8080"],
                    "env": [{"name": "NODE_NAME", "value": node}],
                    "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                },
                {
                    "name": "worker",
                    "image": "localhost/portolan-demo:1",
                    "command": ["/tools/busybox", "sleep", "600"],
                    "resources": {"limits": {"cpu": "100m"}},
                    "volumeMounts": [{"name": "busybox", "mountPath": "/tools/busybox"}],
                },
            ],
            "volumes": [{"name": "busybox", "hostPath": {"path": tool, "type": "File"}}],
        },
    }))
}

const FRONT: &str = "\
apiVersion: v1
kind: Service
metadata: {name: hot}
spec:
  selector: {app: hot}
  ports: [{port: 80, targetPort: 8080}]
";

/// All that the container of its pod may use, until it is dropped.
struct Work(Child);

impl Work {
    fn begin(cluster: &Cluster, pod: &str) -> Result<Self> {
        let busy = "while :; do :; done";
        let child = cluster
            .kubectl_command()
            .args(["exec", "-i", pod, "-c", "worker", "--"])
            .args(["/tools/busybox", "sh", "-c", busy])
            .stdin(Stdio::piped())
            .spawn()
            .context("run kubectl exec")?;
        Ok(Self(child))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // When the connection has gone, the agent ends the command.
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("kubectl exec cannot be ended: {error}");
        }
    }
}

/// The part of new flows that n1 keeps, in thousandths.
fn local_share(cluster: &Cluster) -> Result<u64> {
    let services = cluster.agent("n1", "services")?;
    let of_service = |listed: &&Value| listed["name"] == SERVICE;
    let found = services.as_array().into_iter().flatten().find(of_service);
    found
        .and_then(|listed| listed["counters"]["local_share"].as_u64())
        .with_context(|| format!("a share in {services}"))
}

/// Flows leave within seconds when the local pod's CPU is saturated, less and less of them stay, and all come back.
pub fn a_hot_node_sheds_new_flows(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for node in ["n1", "n2"] {
        cluster.apply(&server(node)?.to_string())?;
    }
    cluster.apply(FRONT)?;
    cluster.wait_for_pods("app=hot", 2)?;
    let service = cluster.get("service", "hot")?;
    let address = service["spec"]["clusterIP"].as_str();
    let target = format!("{}:80", address.context("an address")?);
    let answers = || -> Result<Load> {
        let load = cluster.load(From::Pod("client"), "tcp", &target, FLOWS)?;
        load.ensure_all_answered()?;
        Ok(load)
    };
    wait_for(
        "both pods behind the service",
        Duration::from_secs(10),
        || {
            let services = cluster.agent("n1", "services")?;
            let is_whole = services.as_array().into_iter().flatten().any(|listed| {
                listed["name"] == SERVICE
                    && listed["service"]["backends"].as_array().map_or(0, Vec::len) == 2
            });
            Ok(if is_whole {
                Ok(())
            } else {
                Err(services.to_string())
            })
        },
    )?;
    ensure!(answers()?.of_node("n1") == FLOWS, "all stay on a cool node");

    let work = Work::begin(&cluster, "hot-n1")?;
    wait_for("flows that leave", Duration::from_secs(15), || {
        let load = answers()?;
        let seen = format!("{:?}, {} stay", load.by_node, local_share(&cluster)?);
        Ok(if load.of_node("n2") > 0 {
            Ok(())
        } else {
            Err(seen)
        })
    })?;
    let mut share = local_share(&cluster)?;
    while share > 850 {
        answers()?;
        let now = local_share(&cluster)?;
        ensure!(
            now <= share,
            "{now} after {share}: it swings while the node is hot"
        );
        share = now;
    }
    drop(work);
    wait_for("all flows to be back", Duration::from_mins(1), || {
        let (share, load) = (local_share(&cluster)?, answers()?);
        let seen = format!("{:?}, {share} stay", load.by_node);
        Ok(if share == 1000 && load.of_node("n1") == FLOWS {
            Ok(())
        } else {
            Err(seen)
        })
    })?;
    cluster.kubectl(&["delete", "service/hot", "pod/hot-n1", "pod/hot-n2"])?;
    Ok(())
}
