//! Shows that the cluster works: real requests from a pod and from outside, and who answered them.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::IpAddr,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

use super::start::{Run, pod_namespace};
use crate::{
    cluster::{OUTSIDE, in_namespace, namespace_file},
    command,
};

/// How long after the pods are ready the last node may take to learn the way to them.
const PATIENCE: Duration = Duration::from_secs(15);
const SERVICE: &str = "web";
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
/// Enough to see the spread, few enough to take no time.
const REQUESTS: u32 = 200;

/// What the load generator tells.
#[derive(Deserialize)]
struct Load {
    requests: u64,
    ok: u64,
    by_pod: BTreeMap<String, u64>,
    by_node: BTreeMap<String, u64>,
    p50_us: u64,
    p99_us: u64,
}

/// One way to the Service.
struct Course {
    from: &'static str,
    namespace: PathBuf,
    protocol: &'static str,
    to: IpAddr,
    port: u16,
}

/// Sends requests every way there is and tells who answered.
pub fn collect(run: &Run<'_>) -> Result<String> {
    let step = run.progress.step("proof");
    let courses = courses(run)?;
    let loads = thread::scope(|scope| {
        let threads: Vec<_> = courses
            .iter()
            .map(|course| scope.spawn(move || sail(run, course)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a thread of xtask panicked"))?
            })
            .collect::<Result<Vec<Load>>>()
    })?;
    let total: u64 = loads.iter().map(|load| load.ok).sum();
    step.done(&format!("{total} requests, all answered"));
    let mut text = table(&courses, &loads);
    text.push('\n');
    text += &counters(run)?;
    Ok(text)
}

/// From a pod to the cluster addresses, from outside to every node's port: both families, both protocols.
fn courses(run: &Run<'_>) -> Result<Vec<Course>> {
    let listed = command::output(run.cluster.kubectl(run.workspace)?.args([
        "get",
        "service",
        SERVICE,
        "-o",
        "jsonpath={.spec.clusterIPs[*]}",
    ]))?;
    let pod = pod_namespace(run, run.nodes[0], "client")?;
    let outside = namespace_file(OUTSIDE);
    let mut courses = Vec::new();
    for protocol in ["tcp", "udp"] {
        for address in listed.split_whitespace() {
            courses.push(Course {
                from: "pod on n1",
                namespace: pod.clone(),
                protocol,
                to: address
                    .parse()
                    .with_context(|| format!("understand the cluster address {address}"))?,
                port: PORT,
            });
        }
        for node in run.nodes {
            for address in node.addresses() {
                courses.push(Course {
                    from: "outside",
                    namespace: outside.clone(),
                    protocol,
                    to: address.parse().expect("a node's address is a constant"),
                    port: NODE_PORT,
                });
            }
        }
    }
    Ok(courses)
}

fn sail(run: &Run<'_>, course: &Course) -> Result<Load> {
    // The routes follow the pods by a moment, so the first request waits for them and only the rest counts.
    let begun = Instant::now();
    while load(run, course, 1)?.ok == 0 {
        if begun.elapsed() > PATIENCE {
            bail!(
                "{} found no way to {} over {} within {} s",
                course.from,
                course.target(),
                course.protocol,
                PATIENCE.as_secs()
            );
        }
    }
    let load = load(run, course, REQUESTS)?;
    if load.ok < load.requests {
        bail!(
            "of {} requests from {} to {} over {} only {} were answered",
            load.requests,
            course.from,
            course.target(),
            course.protocol,
            load.ok
        );
    }
    Ok(load)
}

fn load(run: &Run<'_>, course: &Course, requests: u32) -> Result<Load> {
    let mut generator = in_namespace(&course.namespace, &run.programs.demo.program);
    generator
        .args(["load", "--protocol", course.protocol, "--workers", "2"])
        .args(["--requests", &requests.to_string()])
        .args(["--timeout-ms", if requests == 1 { "200" } else { "2000" }])
        .args(["--target", &course.target()]);
    // Unanswered requests make it fail, but its report is what counts.
    let output = generator
        .output()
        .with_context(|| format!("cannot run {}", command::line(&generator)))?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "{} says: {}",
            command::line(&generator),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

impl Course {
    fn target(&self) -> String {
        std::net::SocketAddr::new(self.to, self.port).to_string()
    }
}

/// The requests' spread over pods and nodes.
fn table(courses: &[Course], loads: &[Load]) -> String {
    let mut text = format!(
        "{:10} {:4} {:26} {:>9} {:>8} {:>8}  ANSWERED BY\n",
        "FROM", "", "TO", "REQUESTS", "p50 us", "p99 us"
    );
    for (course, load) in courses.iter().zip(loads) {
        writeln!(
            text,
            "{:10} {:4} {:26} {:>9} {:>8} {:>8}  {}",
            course.from,
            course.protocol,
            course.target(),
            load.requests,
            load.p50_us,
            load.p99_us,
            spread(&load.by_node)
        )
        .expect("writing to a string");
    }
    let mut by_pod: BTreeMap<&str, u64> = BTreeMap::new();
    for (pod, count) in loads.iter().flat_map(|load| &load.by_pod) {
        *by_pod.entry(pod).or_default() += count;
    }
    text.push_str("\nPOD                              REQUESTS\n");
    for (pod, count) in by_pod {
        writeln!(text, "{pod:32} {count:>8}").expect("writing to a string");
    }
    text
}

fn spread(counts: &BTreeMap<String, u64>) -> String {
    counts
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The dataplanes' own counts of where they sent new flows.
fn counters(run: &Run<'_>) -> Result<String> {
    let mut text = format!(
        "{:4} {:24} {:>8} {:>8} {:>8} {:>8}\n",
        "NODE", "NEW FLOWS OF", "LOCAL", "ZONE", "REMOTE", "REFUSED"
    );
    for node in run.nodes {
        let listed = command::output(
            Command::new(run.programs.agent())
                .args(["services", "--json", "--state-dir"])
                .arg(run.cluster.node_state(*node)),
        )?;
        let services: Vec<Value> = serde_json::from_str(&listed)
            .with_context(|| format!("understand the services of {}", node.name()))?;
        for service in services {
            let name = service["name"].as_str().unwrap_or_default();
            if !name.starts_with(&format!("default/{SERVICE}:")) {
                continue;
            }
            let counters = &service["counters"];
            let count = |at: &str| counters.pointer(at).and_then(Value::as_u64).unwrap_or(0);
            writeln!(
                text,
                "{:4} {name:24} {:>8} {:>8} {:>8} {:>8}",
                node.name(),
                count("/local/flows"),
                count("/zone/flows"),
                count("/remote/flows"),
                count("/refused")
            )
            .expect("writing to a string");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_sums_answers_by_pod() {
        let course = |to: &str| Course {
            from: "outside",
            namespace: PathBuf::new(),
            protocol: "tcp",
            to: to.parse().expect("an address"),
            port: 80,
        };
        let load = |pod: &str, count: u64| Load {
            requests: count,
            ok: count,
            by_pod: BTreeMap::from([(pod.to_owned(), count)]),
            by_node: BTreeMap::from([("n1".to_owned(), count)]),
            p50_us: 1,
            p99_us: 2,
        };
        let text = table(
            &[course("10.0.0.1"), course("fd00::1")],
            &[load("web-1", 3), load("web-1", 4)],
        );
        assert!(text.contains("[fd00::1]:80"), "{text}");
        assert!(
            text.contains("web-1                                   7\n"),
            "{text}"
        );
    }
}
