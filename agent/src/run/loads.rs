//! How busy this node's pods are, told to the dataplane once a second: it decides by that how many new flows stay.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use portolan_dataplane::local_share::BackendLoad;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    pod::{Manager, PodSnapshot},
    routes::DataplaneThread,
    runtime::cpu::CpuCount,
};

const EVERY: Duration = Duration::from_secs(1);

/// Where pods' control groups are, and how many CPUs they share.
pub struct Place {
    pub cgroup_root: PathBuf,
    pub cpus: f64,
}

/// Tells the dataplane for as long as its thread lives.
pub async fn keep_balanced(place: Place, manager: Arc<Manager>, dataplane: DataplaneThread) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = Instant::now();
    let place = Arc::new(place);
    let mut before = Counts::default();
    loop {
        ticks.tick().await;
        let pods = manager.snapshot();
        let here = Arc::clone(&place);
        let read = tokio::task::spawn_blocking(move || Counts::read(&here, &pods)).await;
        let Ok(counts) = read.inspect_err(|error| tracing::error!(%error, "no loads of pods"))
        else {
            continue;
        };
        let loads = counts.since(&before, place.cpus);
        before = counts;
        let told = dataplane.call(move |maps| maps.balance(&loads, begun.elapsed()));
        if told.await.is_err() {
            return;
        }
    }
}

/// What is counted of the node's pods at one moment.
struct Counts {
    when: Instant,
    /// By pod uid.
    pods: HashMap<String, PodCount>,
}

#[derive(Clone, Debug, Default)]
struct PodCount {
    addresses: Vec<IpAddr>,
    /// By container id.
    containers: HashMap<String, CpuCount>,
    overflows: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            when: Instant::now(),
            pods: HashMap::new(),
        }
    }
}

impl Counts {
    fn read(place: &Place, pods: &[PodSnapshot]) -> Self {
        // Pods that use the node's network share its address with others: nobody can say whose flows would be moved.
        let own = pods.iter().filter(|pod| pod.netns.is_some());
        let counts = own.map(|pod| (pod.uid.clone(), PodCount::read(place, pod)));
        Self {
            when: Instant::now(),
            pods: counts.collect(),
        }
    }

    /// How busy the pods were since an earlier moment, by address.
    fn since(&self, earlier: &Self, cpus: f64) -> BTreeMap<IpAddr, BackendLoad> {
        let elapsed = self.when.duration_since(earlier.when);
        let mut loads = BTreeMap::new();
        for (uid, pod) in &self.pods {
            let Some(before) = earlier.pods.get(uid) else {
                continue;
            };
            let load = pod.since(before, elapsed, cpus);
            loads.extend(pod.addresses.iter().map(|address| (*address, load)));
        }
        loads
    }
}

impl PodCount {
    fn read(place: &Place, pod: &PodSnapshot) -> Self {
        let mut count = Self {
            addresses: pod.addresses.clone(),
            ..Self::default()
        };
        for container in &pod.containers {
            let group = place
                .cgroup_root
                .join(format!("pod{}", pod.uid))
                .join(&container.id);
            match CpuCount::read(&group) {
                Ok(Some(cpu)) => {
                    count.containers.insert(container.id.clone(), cpu);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, group = %group.display(), "not read"),
            }
        }
        // All containers share the network; the first that is still there tells of it.
        count.overflows = pod
            .containers
            .iter()
            .find_map(|container| overflows(container.pid))
            .unwrap_or(0);
        count
    }

    /// The busiest container speaks for the pod.
    fn since(&self, before: &Self, elapsed: Duration, cpus: f64) -> BackendLoad {
        let mut load = BackendLoad {
            overflows: self.overflows.saturating_sub(before.overflows),
            ..BackendLoad::default()
        };
        for (id, now) in &self.containers {
            let Some(earlier) = before.containers.get(id) else {
                continue;
            };
            let busy = now.since(earlier, elapsed, cpus);
            load.cpu = load.cpu.max(busy.used);
            load.pressure = load.pressure.max(busy.pressure);
        }
        load
    }
}

/// Connections that found no room in a listener's queue, in the network namespace of a process.
fn overflows(pid: i32) -> Option<u64> {
    let text =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/netstat"));
    counter(&text.ok()?, "TcpExt:", "ListenOverflows")
}

/// A number of a table of two lines, names and values.
fn counter(text: &str, table: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(table));
    let place = lines.next()?.split(' ').position(|word| word == name)?;
    lines.next()?.split(' ').nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflows_are_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 17 18\nIpExt: InNoRoutes\nIpExt: 0\n";
        assert_eq!(counter(text, "TcpExt:", "ListenOverflows"), Some(17));
        assert_eq!(counter(text, "TcpExt:", "Missing"), None);
    }

    #[test]
    fn this_process_has_a_count_of_overflows() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert!(overflows(pid).is_some());
    }

    #[test]
    fn the_busiest_container_speaks_for_the_pod() {
        let pod = |used: [u64; 2], overflows| PodCount {
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            containers: (0..)
                .zip(used)
                .map(|(number, used): (u32, u64)| {
                    let cpu = CpuCount {
                        used: Duration::from_millis(used),
                        limit: Some(1.0),
                        ..CpuCount::default()
                    };
                    (number.to_string(), cpu)
                })
                .collect(),
            overflows,
        };
        let load = pod([1_100, 950], 9).since(&pod([1_000, 50], 7), Duration::from_secs(1), 4.0);
        assert!((load.cpu - 0.9).abs() < 1e-9, "{load:?}");
        assert_eq!(load.overflows, 2);
    }
}
