//! What a node shows of its traffic: traces, flow events, metrics.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, wait_for};
use serde_json::Value;

use crate::life::Stage;

/// The node port of the demo's Service on n1.
const NODE_PORT: &str = "10.89.0.11:30080";

/// Starts an agent's command that prints a line of JSON for each packet and ends by itself.
fn watching(cluster: &Cluster, arguments: &[&str]) -> Result<Child> {
    Command::new(cluster.program("portolan-agent"))
        .args(arguments)
        .args(["--json", "--state-dir"])
        .arg(cluster.node_state("n1"))
        .stdout(Stdio::piped())
        .spawn()
        .context("run portolan-agent")
}

/// Requests go on until the command has seen enough, since nothing tells when it begins; what it printed.
fn seen_by(mut watching: Child, request: impl Fn() -> Result<()>) -> Result<Vec<Value>> {
    wait_for(
        "the command has seen enough",
        Duration::from_secs(20),
        || {
            request()?;
            Ok(watching.try_wait()?.ok_or("it runs".to_owned()))
        },
    )?;
    let output = watching.wait_with_output()?;
    ensure!(output.status.success(), "it ends well: {}", output.status);
    String::from_utf8(output.stdout)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Asks the demo's Service from outside, several times.
fn request(cluster: &Cluster) -> Result<()> {
    cluster
        .load(From::Outside, "tcp", NODE_PORT, 4)?
        .ensure_all_answered()
}

/// A request's packets, each with what was decided, by which service, to which backend.
pub fn a_trace_follows_a_request(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let (ip, port) = NODE_PORT
        .rsplit_once(':')
        .context("an address and a port")?;
    let arguments = ["trace", "--address", ip, "--port", port, "--count", "2"];
    let request = || request(&cluster);
    let reports = seen_by(watching(&cluster, &arguments)?, request)?;
    ensure!(reports.len() == 2, "as many as asked for: {reports:?}");
    for report in &reports {
        ensure!(report["service"] == "default/web:80/TCP", "{report}");
        ensure!(report["locality"] == "node", "{report}");
        ensure!(report["verdict"] == "redirect", "{report}");
    }
    // One reader at a time: the next may begin as soon as the last has ended.
    for _ in 0..5 {
        let reports = seen_by(watching(&cluster, &arguments)?, request)?;
        ensure!(reports.len() == 2, "again as many: {reports:?}");
    }
    Ok(())
}

/// Flows are told as they open and end.
pub fn flows_are_followed(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let arguments = ["flows", "--follow", "--protocol", "tcp", "--count", "6"];
    let request = || request(&cluster);
    let reports = seen_by(watching(&cluster, &arguments)?, request)?;
    let opened = reports
        .iter()
        .filter(|report| report["decision"] == "new-flow");
    let ended = reports.iter().filter(|report| report["ended"] == true);
    ensure!(opened.count() > 0 && ended.count() > 0, "{reports:?}");
    Ok(())
}

/// Prometheus reads the same counters as the command line.
pub fn metrics_say_what_services_count(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    request(&cluster)?;
    let output = Command::new("nsenter")
        .args([
            "--net=/run/netns/portolan-n1",
            "busybox",
            "wget",
            "-q",
            "-O",
            "-",
        ])
        .arg("http://127.0.0.1:10249/metrics")
        .output()
        .context("read the metrics of n1")?;
    let page = String::from_utf8(output.stdout)?;
    let name = r#"portolan_service_flows_total{service="default/web:80/TCP",class="local"} "#;
    let value: u64 = page
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("{name} in {page}"))?
        .parse()?;
    let counted = cluster.counter(&["n1"], "default/web:80/TCP", "/local/flows")?;
    ensure!(value > 0 && value <= counted, "{value} of {counted} flows");
    ensure!(
        page.contains("portolan_drops_total{reason=\"no_backend\"}"),
        "{page}"
    );
    Ok(())
}
