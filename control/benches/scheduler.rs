//! `cargo xtask bench control/scheduler`: how many pods a second the scheduler places by itself, on 5,000 nodes with
//! 50,000 pods. No API, no store: the pure function over its snapshot, and the snapshot's own bookkeeping.
//!
//! The cluster is filled from nothing to 50,000 pods; each pod's way (into the queue, planned, counted at its node)
//! counts. Every placement is checked: a run that left a pod without a node, or broke what pods asked for, is not valid.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use k8s_openapi::api::core::v1::{Node, Pod};
use portolan_control::scheduler::{Policy, demand::Demand, plan, snapshot::Snapshot};
use serde_json::{Value, json};

/// Measures the scheduler.
#[derive(Parser)]
struct Options {
    /// Names of benchmarks, or what they begin with; bare: all
    names: Vec<String>,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 5_000)]
    nodes: usize,
    /// Pods that are scheduled
    #[arg(long, default_value_t = 50_000)]
    pods: usize,
    /// How often each is measured
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Writes the rows as a JSON array
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` says so to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// A kind of pods.
struct Kind {
    name: &'static str,
    /// What each pod of an application asks for beyond resources.
    asks: fn(application: &str) -> Value,
    /// What must hold of the pods of one application, by zone and by node.
    holds: fn(zones: &BTreeMap<usize, usize>, most_on_a_node: usize) -> bool,
}

/// Pods of one application.
const REPLICAS: usize = 50;
const ZONES: usize = 10;

const KINDS: [Kind; 3] = [
    Kind {
        name: "control/scheduler/resources",
        asks: |_| json!({}),
        holds: |_, _| true,
    },
    Kind {
        name: "control/scheduler/spreading",
        asks: |application| json!({"topologySpreadConstraints": [spread(application, "topology.kubernetes.io/zone")]}),
        holds: |zones, _| is_even(zones),
    },
    Kind {
        name: "control/scheduler/spreading_and_anti_affinity",
        asks: |application| {
            let selector = json!({"matchLabels": {"app": application}});
            json!({
                "topologySpreadConstraints": [spread(application, "topology.kubernetes.io/zone")],
                "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}]}},
            })
        },
        holds: |zones, most_on_a_node| is_even(zones) && most_on_a_node == 1,
    },
];

fn spread(application: &str, key: &str) -> Value {
    json!({
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": application}},
    })
}

/// Whether no zone has more than one pod more than another.
fn is_even(zones: &BTreeMap<usize, usize>) -> bool {
    let count = |zone| zones.get(&zone).copied().unwrap_or(0);
    let counts = || (0..ZONES).map(count);
    counts().max().unwrap_or(0) - counts().min().unwrap_or(0) <= 1
}

fn main() -> Result<()> {
    let options = Options::parse();
    let is_wanted = |kind: &&Kind| {
        let mut names = options.names.iter();
        options.names.is_empty() || names.any(|name| kind.name.starts_with(name.as_str()))
    };
    let mut rows = Vec::new();
    for kind in KINDS.iter().filter(is_wanted) {
        rows.push(measure(kind, &options)?);
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(kind: &Kind, options: &Options) -> Result<Value> {
    let nodes = (0..options.nodes).map(node).collect::<Result<Vec<_>>>()?;
    let pods = (0..options.pods).map(|number| pod(kind, number));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    let mut rates = Vec::new();
    let mut reason = None;
    for _ in 0..options.repeat.max(1) {
        let (rate, placed) = fill(&nodes, &pods);
        rates.push(rate);
        reason = reason.or_else(|| broken(kind, &placed, pods.len()));
    }
    rates.sort_by(f64::total_cmp);
    let median = f64::midpoint(rates[(rates.len() - 1) / 2], rates[rates.len() / 2]);
    let (min, max) = (rates[0], rates[rates.len() - 1]);
    println!(
        "{:48} {median:>9.0} pods/s  ({min:.0} to {max:.0}, {} runs){}",
        kind.name,
        rates.len(),
        reason
            .as_deref()
            .map_or(String::new(), |why| format!("  NOT VALID: {why}")),
    );
    let mut row = json!({
        "name": kind.name, "path": null, "services": null, "endpoints": null, "flows": null,
        "metric": "pods_per_second", "unit": "1/s", "median": median, "min": min, "max": max,
        "runs": rates.len(), "ratio": null, "valid": reason.is_none(),
    });
    if let Some(reason) = reason {
        row["reason"] = json!(reason);
    }
    Ok(row)
}

/// Fills an empty cluster; pods a second, and where each pod went.
#[expect(
    clippy::cast_precision_loss,
    reason = "a number of pods is far below 2^52"
)]
fn fill(nodes: &[Node], pods: &[Pod]) -> (f64, Vec<(Arc<Demand>, String)>) {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    let demands: Vec<_> = pods.iter().map(|pod| Arc::new(Demand::of(pod))).collect();
    let policy = Policy::default();
    let mut placed = Vec::with_capacity(pods.len());
    let begun = Instant::now();
    for demand in demands {
        snapshot.add_pending(&demand);
    }
    loop {
        let plan = plan(&snapshot, &policy);
        for (demand, node) in plan.placements {
            snapshot.place(&demand, &node);
            placed.push((demand, node));
        }
        for (demand, _) in plan.misfits {
            snapshot.remove_pending(&demand.key);
        }
        if snapshot.pending().next().is_none() {
            break;
        }
    }
    let took = begun.elapsed();
    (pods.len() as f64 / took.as_secs_f64(), placed)
}

/// Why what was done is not what was asked for.
fn broken(kind: &Kind, placed: &[(Arc<Demand>, String)], pods: usize) -> Option<String> {
    if placed.len() != pods {
        return Some(format!("{} of {pods} pods have a node", placed.len()));
    }
    let mut applications: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
    for (demand, node) in placed {
        let application = demand.labels.get("app").map_or("", String::as_str);
        let nodes = applications.entry(application).or_default();
        *nodes.entry(node).or_default() += 1;
    }
    for (application, nodes) in applications {
        let mut zones = BTreeMap::new();
        for (node, count) in &nodes {
            let number: usize = node.trim_start_matches('n').parse().ok()?;
            *zones.entry(number % ZONES).or_default() += count;
        }
        let most = nodes.values().copied().max().unwrap_or(0);
        if !(kind.holds)(&zones, most) {
            return Some(format!("{application} is not where it asked to be"));
        }
    }
    None
}

fn node(number: usize) -> Result<Node> {
    let name = format!("n{number}");
    let node = json!({
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": format!("z{}", number % ZONES),
            "kubernetes.io/os": "linux",
        }},
        "status": {
            "allocatable": {"cpu": "32", "memory": "128Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    serde_json::from_value(node).context("make a node")
}

fn pod(kind: &Kind, number: usize) -> Result<Pod> {
    let application = format!("a{}", number / REPLICAS);
    let mut pod = json!({
        "metadata": {
            "name": format!("p{number}"),
            "namespace": "default",
            "uid": format!("uid-{number}"),
            "labels": {"app": application, "tier": "web"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": application,
                "uid": format!("uid-{application}"), "controller": true,
            }],
        },
        "spec": {"containers": [{
            "name": "c",
            "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}},
        }]},
    });
    json_patch::merge(&mut pod, &json!({"spec": (kind.asks)(&application)}));
    serde_json::from_value(pod).context("make a pod")
}
