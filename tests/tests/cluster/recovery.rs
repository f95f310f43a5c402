//! Agents and the control plane die without warning; traffic, containers and acknowledged writes don't.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write as _},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, load::Running, wait_for};
use serde_json::Value;

use crate::{
    life::Stage,
    traffic::{cluster_address, node_ports},
};

/// How long requests go on, at least, in seconds.
const MINUTE: u64 = 60;
/// How many times the agent is killed in an ordinary run; `PORTOLAN_AGENT_KILLS=100` makes a long one.
const KILLS: u64 = 1;
/// How long requests go on for each time, in seconds.
const EACH: u64 = 5;

/// A minute of requests to n1, during which its agent dies; other tests go on meanwhile.
pub struct Minute {
    loads: Vec<Running>,
    seconds: u64,
}

/// kill -9 of n1's agent under continuous requests: no container restarts, the new one adopts all in 1 s.
/// [`no_request_of_a_minute_fails`] waits for the last answer.
pub fn an_agent_dies_under_requests(stage: &Stage) -> Result<()> {
    let minute = die_under_requests(&*stage.cluster()?)?;
    *stage.minute() = Some(minute);
    Ok(())
}

/// The agent's death was not noticed by any of a minute's requests.
pub fn no_request_of_a_minute_fails(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let begun = stage.minute().take();
    let Minute { loads, seconds } = match begun {
        Some(minute) => minute,
        None => die_under_requests(&cluster)?,
    };
    let loads = loads
        .into_iter()
        .map(Running::finish)
        .collect::<Result<Vec<_>>>()?;
    for load in loads {
        load.ensure_all_answered()
            .with_context(|| format!("n1 dropped {:?}", cluster.agent("n1", "drops")))?;
        let least = Duration::from_secs(seconds).as_secs_f64();
        ensure!(load.seconds >= least, "to the end: {load:?}");
    }
    Ok(())
}

fn die_under_requests(cluster: &Cluster) -> Result<Minute> {
    let kills = match std::env::var("PORTOLAN_AGENT_KILLS") {
        Ok(text) => text.parse().context("PORTOLAN_AGENT_KILLS is a number")?,
        Err(_) => KILLS,
    };
    let seconds = MINUTE.max(kills * EACH);
    let flows = || cluster.counter(&["n1"], "default/web:80/UDP", "/local/flows");
    let flows_before = flows()?;
    let mut loads = Vec::new();
    // One worker each, with pauses, leaves the processors some time for everyone else.
    let text = seconds.to_string();
    let options = ["--seconds", &text, "--workers", "1", "--pause-us", "1000"];
    let targets = node_ports();
    for protocol in ["tcp", "udp"] {
        let address = cluster_address(cluster, 4)?;
        loads.push(cluster.start_load(From::Pod("client"), protocol, &address, &options)?);
        for target in &targets[..2] {
            loads.push(cluster.start_load(From::Outside, protocol, target, &options)?);
        }
    }
    wait_for("the first requests", Duration::from_secs(5), || {
        let counted = flows()? - flows_before;
        Ok(if counted >= 100 {
            Ok(())
        } else {
            Err(format!("{counted} flows"))
        })
    })?;
    for _ in 0..kills {
        die_once(cluster)?;
    }
    Ok(Minute { loads, seconds })
}

fn die_once(cluster: &Cluster) -> Result<()> {
    let before = containers(cluster)?;
    let killed = cluster.kill("n1")?;
    // Time without an agent, under load: nothing can be waited for, because nothing must happen.
    std::thread::sleep(Duration::from_secs(3));
    killed.start()?;
    let status = wait_for("the new agent", Duration::from_secs(10), || {
        Ok(cluster
            .agent("n1", "status")
            .map_err(|error| format!("{error:#}")))
    })?;
    let adopted = status["adopted"].as_u64().unwrap_or(0);
    let of_n1 = before
        .iter()
        .filter(|container| container.node == "n1")
        .count();
    ensure!(
        usize::try_from(adopted).ok() == Some(of_n1),
        "all {of_n1} containers are adopted: {status}"
    );
    let took = status["adoption_ms"]
        .as_f64()
        .context("it tells how long")?;
    ensure!(took <= 1000.0, "adoption took {took} ms");
    ensure!(
        containers(cluster)? == before,
        "no container restarted: {before:?}"
    );
    Ok(())
}

/// What must stay the same of a container.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Container {
    node: &'static str,
    pod: String,
    id: String,
    pid: u64,
    restarts: u64,
}

fn containers(cluster: &Cluster) -> Result<Vec<Container>> {
    let mut found = Vec::new();
    for node in ["n1", "n2"] {
        for pod in cluster.pods_on(node)? {
            for container in pod["containers"].as_array().into_iter().flatten() {
                found.push(Container {
                    node,
                    pod: pod["name"].as_str().unwrap_or_default().to_owned(),
                    id: container["id"].as_str().unwrap_or_default().to_owned(),
                    pid: container["pid"].as_u64().context("a container runs")?,
                    restarts: container["restarts"].as_u64().unwrap_or(0),
                });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// kill -9 of control amid writes: routing goes on; what was acknowledged is there after its restart.
pub fn controls_death_loses_nothing(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let address = cluster_address(&cluster, 4)?;
    let options = ["--seconds", "6", "--workers", "2", "--pause-us", "500"];
    let load = cluster.start_load(From::Pod("client"), "tcp", &address, &options)?;
    let outside = cluster.start_load(From::Outside, "udp", &node_ports()[1], &options)?;

    let (acknowledged, killed) = write_until_killed(&cluster)?;
    ensure!(!acknowledged.is_empty(), "some writes were acknowledged");
    let while_down = cluster.try_kubectl(&["get", "nodes", "--request-timeout=2s"], "")?;
    ensure!(
        while_down.code != Some(0),
        "control is down: {while_down:?}"
    );
    killed.start()?;
    wait_for("control's return", Duration::from_secs(10), || {
        let answer = cluster.try_kubectl(&["get", "--raw", "/readyz"], "")?;
        Ok(if answer.code == Some(0) {
            Ok(())
        } else {
            Err(answer.stderr)
        })
    })?;
    for load in [load, outside] {
        load.finish()?.ensure_all_answered()?;
    }
    let listed = cluster.kubectl(&["get", "configmaps", "-l", "test=recovery", "-o", "name"])?;
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|name| !listed.lines().any(|line| line == name.as_str()))
        .collect();
    ensure!(
        lost.is_empty(),
        "of {} acknowledged these are lost: {lost:?}",
        acknowledged.len()
    );
    cluster.kubectl(&["delete", "configmaps", "-l", "test=recovery"])?;
    works_again(&cluster)
}

/// Creates objects as fast as kubectl can and kills control in the middle; returns what was acknowledged.
fn write_until_killed(cluster: &Cluster) -> Result<(Vec<String>, portolan_tests::daemon::Killed)> {
    let mut manifests = String::new();
    for number in 0..2_000 {
        write!(
            manifests,
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: acknowledged-{number}\n  labels: {{test: recovery}}\ndata: {{number: \"{number}\"}}\n"
        )
        .expect("writing to a string");
    }
    let mut writer = cluster
        .kubectl_command()
        .args(["create", "--validate=false", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("run kubectl create")?;
    let mut stdin = writer.stdin.take().expect("stdin was asked to be a pipe");
    let feeder = std::thread::spawn(move || stdin.write_all(manifests.as_bytes()));
    let mut acknowledged = Vec::new();
    let mut killed = None;
    let stdout = writer.stdout.take().expect("stdout was asked to be a pipe");
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read what kubectl says")?;
        if let Some(name) = line.strip_suffix(" created") {
            acknowledged.push(name.to_owned());
        }
        if acknowledged.len() == 60 && killed.is_none() {
            killed = Some(cluster.kill("control")?);
        }
    }
    writer.wait().context("wait for kubectl create")?;
    // kubectl reads all it is given before it writes, so only a failed start leaves something unread.
    feeder
        .join()
        .expect("the feeder panics on nothing")
        .context("feed kubectl")?;
    let killed = killed.context("60 writes were acknowledged")?;
    ensure!(acknowledged.len() < 2_000, "control died amid the writes");
    Ok((acknowledged, killed))
}

/// The whole way from a manifest to a running pod, after the restart.
fn works_again(cluster: &Cluster) -> Result<()> {
    let pod = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "after-recovery", "labels": {"app": "after-recovery"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "idle", "image": "localhost/portolan-demo:1", "args": ["idle"]}],
        },
    });
    cluster.apply(&pod.to_string())?;
    let pods: Vec<Value> = cluster.wait_for_pods("app=after-recovery", 1)?;
    ensure!(pods[0]["status"]["phase"] == "Running", "{}", pods[0]);
    cluster
        .kubectl(&["delete", "pod", "after-recovery"])
        .map(drop)
}
