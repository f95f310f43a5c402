//! Requests to a Service, from a pod and from outside: who answers, and what happens when nobody can.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use portolan_tests::{Cluster, From, Load, cluster::OUTSIDE, daemon, load::in_namespace, wait_for};
use serde_json::Value;

use crate::life::Stage;

const NODES: [&str; 2] = ["n1", "n2"];
const CLIENT: From<'_> = From::Pod("client");

/// "ADDRESS:PORT" of the demo's Service in a family.
pub fn cluster_address(cluster: &Cluster, family: u8) -> Result<String> {
    let service = cluster.get("service", "web")?;
    service["spec"]["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find(|address| address.contains(':') == (family == 6))
        .map(|address| at_port(address, 80))
        .with_context(|| format!("{service} has an IPv{family} address"))
}

fn at_port(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// Every node's NodePort, in both families.
pub fn node_ports() -> Vec<String> {
    [11, 12]
        .iter()
        .flat_map(|host| [format!("10.89.0.{host}"), format!("fd00:89::{host}")])
        .map(|address| at_port(&address, 30080))
        .collect()
}

/// 10,000 requests from a pod on n1: all succeed, at least 99 in 100 on n1, and the counters say the same.
pub fn a_pod_reaches_a_service_on_its_own_node(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for (protocol, service) in [("tcp", "default/web:80/TCP"), ("udp", "default/web:80/UDP")] {
        for family in [4, 6] {
            let address = cluster_address(&cluster, family)?;
            let count = || cluster.counter(&["n1"], service, "/local/flows");
            let before = count()?;
            // Datagrams each from a port of its own, so that each is a flow of its own; connections are that anyway.
            let options = ["--requests", "10000", "--first-port", "10000"];
            let load = cluster
                .start_load(CLIENT, protocol, &address, &options)?
                .finish()?;
            load.ensure_all_answered()
                .with_context(|| format!("{protocol} over IPv{family}"))?;
            ensure!(
                load.of_node("n1") >= 9_900,
                "{protocol} over IPv{family} stays on n1: {load:?}"
            );
            let counted = count()? - before;
            ensure!(
                counted >= 9_900,
                "the counter of local flows moved by {counted} only: {load:?}"
            );
        }
    }
    Ok(())
}

/// A pod's own address, without any Service, from a pod on the other node.
pub fn pods_reach_each_other_over_nodes(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    pods_reach_each_other(&cluster)
}

/// The demo's pods each answer the client pod at their own addresses.
pub fn pods_reach_each_other(cluster: &Cluster) -> Result<()> {
    for pod in cluster.list("pods", "app=web")? {
        let addresses = pod["status"]["podIPs"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        ensure!(
            addresses.len() == 2,
            "a pod has an address of each family: {pod}"
        );
        for address in addresses.iter().filter_map(|entry| entry["ip"].as_str()) {
            let load = cluster.load(CLIENT, "tcp", &at_port(address, 8080), 50)?;
            load.ensure_all_answered()?;
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            ensure!(
                load.by_pod.get(name) == Some(&50),
                "{name} answers itself: {load:?}"
            );
        }
    }
    Ok(())
}

/// 10,000 requests from outside to each node's port, IPv4 and IPv6, TCP and UDP: all succeed.
pub fn outside_reaches_every_nodes_port(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    for protocol in ["tcp", "udp"] {
        for target in node_ports() {
            let load = cluster.load(From::Outside, protocol, &target, 10_000)?;
            load.ensure_all_answered()
                .with_context(|| format!("{protocol} to {target}"))?;
        }
    }
    Ok(())
}

/// No nftables rule, no iptables table, no IPVS: in no namespace of the cluster.
pub fn no_packet_filter_rule_is_made(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let mut namespaces: Vec<_> = ["n1", "n2", "fabric"]
        .iter()
        .map(|name| Path::new("/run/netns").join(format!("portolan-{name}")))
        .collect();
    namespaces.push(OUTSIDE.into());
    for node in NODES {
        for pod in cluster.pods_on(node)? {
            // A pod that could not be started may have none.
            namespaces.extend(pod["netns"].as_str().map(Into::into));
        }
    }
    ensure!(
        namespaces.len() >= 9,
        "the pods' namespaces are looked at: {namespaces:?}"
    );
    for namespace in namespaces {
        let look = |command: &[&str]| -> Result<String> {
            let output = in_namespace(&namespace)
                .args(command)
                .output()
                .with_context(|| format!("run {command:?}"))?;
            ensure!(
                output.status.success(),
                "{command:?} in {}: {output:?}",
                namespace.display()
            );
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        for command in [
            ["nft", "list", "ruleset"],
            // Absent where the kernel has no such thing; what is listed would be a table with rules.
            [
                "sh",
                "-c",
                "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true",
            ],
            ["sh", "-c", "sed 1,3d /proc/net/ip_vs 2>/dev/null || true"],
        ] {
            let rules = look(&command)?;
            ensure!(
                rules.trim().is_empty(),
                "{}: {command:?} says {rules}",
                namespace.display()
            );
        }
    }
    Ok(())
}

/// The processes of the pods on n1 are killed: requests go on against n2, none hangs.
pub fn dead_pods_hand_over_to_the_other_node(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    let address = cluster_address(&cluster, 4)?;
    cluster.wait_for_pods("app=web", 4)?;
    let count = web_containers(&cluster, "n1")?.len();
    ensure!(count > 0, "n1 has some of the pods");
    // At a pace, so that refusals count the time for which there are any, and not the speed of the machine.
    let pace = ["--seconds", "6", "--workers", "2", "--pause-us", "1000"];
    let load = cluster.start_load(CLIENT, "tcp", &address, &pace)?;
    // After the first death they are restarted at once (or later, if they have died before), after the second they are
    // kept back for a while.
    let mut killed = Vec::new();
    for _ in 0..2 {
        let pods = wait_for("the pods on n1", Duration::from_secs(40), || {
            let pods = web_containers(&cluster, "n1")?;
            let is_whole = pods.len() == count && !pods.iter().any(|pod| killed.contains(pod));
            Ok(if is_whole {
                Ok(pods)
            } else {
                Err(format!("{pods:?}"))
            })
        })?;
        for (_, pid) in &pods {
            daemon::kill(*pid)?;
        }
        killed.extend(pods);
    }
    wait_for("their backends' end on n1", Duration::from_secs(2), || {
        let load = cluster.load(CLIENT, "tcp", &address, 20)?;
        Ok(if load.of_node("n2") == 20 {
            Ok(())
        } else {
            Err(format!("{load:?}"))
        })
    })?;
    let after = cluster.load(CLIENT, "tcp", &address, 1_000)?;
    after.ensure_all_answered()?;
    ensure!(after.of_node("n2") == 1_000, "n2 takes over: {after:?}");

    let during = load.finish()?;
    ensure!(during.hung == 0, "none hangs: {during:?}");
    // Whoever was being answered just then sees the connection break, and for the moment until the agent has withdrawn the
    // backend, the pod's kernel refuses at once.
    let broken = during.requests - during.ok;
    ensure!(broken <= 200, "few break: {during:?}");
    cluster.wait_for_pods("app=web", 4)?;
    Ok(())
}

/// The running containers of the demo's pods on a node: (pod, process).
fn web_containers(cluster: &Cluster, node: &str) -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for pod in cluster.pods_on(node)? {
        let name = pod["name"].as_str().unwrap_or_default().to_owned();
        if !name.starts_with("web-") {
            continue;
        }
        for container in pod["containers"].as_array().into_iter().flatten() {
            if let Some(pid) = container["pid"].as_u64() {
                found.push((
                    name.clone(),
                    u32::try_from(pid).context("a process number")?,
                ));
            }
        }
    }
    Ok(found)
}

/// Scaled to nothing: every way to the Service refuses at once; scaled up again it answers.
pub fn no_pods_refuse_at_once(stage: &Stage) -> Result<()> {
    let cluster = stage.cluster()?;
    cluster.scale("web", 0)?;
    let mut courses = vec![
        (CLIENT, cluster_address(&cluster, 4)?),
        (CLIENT, cluster_address(&cluster, 6)?),
    ];
    courses.extend(
        node_ports()
            .into_iter()
            .map(|target| (From::Outside, target)),
    );
    let refused = courses.iter().try_for_each(|(from, target)| -> Result<()> {
        for protocol in ["tcp", "udp"] {
            all_refused(&cluster, *from, protocol, target)?;
        }
        Ok(())
    });
    // The other tests want their pods back, whatever came out.
    cluster.scale("web", 4)?;
    refused?;
    for (from, target) in &courses {
        wait_for("the way to the new pods", Duration::from_secs(5), || {
            let load = cluster.load(*from, "tcp", target, 1)?;
            Ok(if load.ok == 1 {
                Ok(())
            } else {
                Err(format!("{load:?}"))
            })
        })?;
    }
    Ok(())
}

fn all_refused(cluster: &Cluster, from: From<'_>, protocol: &str, target: &str) -> Result<()> {
    let is_refused = |load: &Load| load.refused == load.requests;
    // The endpoints' end reaches the nodes a moment after the pods'.
    wait_for("the last endpoint's end", Duration::from_secs(5), || {
        let load = cluster.load(from, protocol, target, 1)?;
        Ok(if is_refused(&load) {
            Ok(())
        } else {
            Err(format!("{load:?}"))
        })
    })?;
    let load = cluster.load(from, protocol, target, 200)?;
    ensure!(is_refused(&load), "{protocol} to {target}: {load:?}");
    ensure!(
        load.max_us < 500_000,
        "at once, not after a timeout: {load:?}"
    );
    Ok(())
}
