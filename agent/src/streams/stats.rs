//! What the node and its containers use at the moment, for `kubectl top`: CPU over the time since it was asked last, or over
//! a second if that is long ago, and memory.

use std::{
    collections::HashMap,
    fmt::Display,
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use http::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Body, Node, Refusal, text};
use crate::runtime::{cpu::CpuCount, memory};

/// The shortest and the longest time over which CPU is measured.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(1);
/// Nanoseconds of a tick in /proc/stat: the kernel shows hundredths of a second to everyone.
const TICK: u64 = 10_000_000;

/// What was counted at one moment.
pub struct Sample {
    when: Instant,
    /// The machine's CPU time, of all its CPUs.
    node: Duration,
    /// CPU time by container id.
    containers: HashMap<String, Duration>,
}

/// Answers with what is used.
pub async fn answer(node: &Arc<Node>) -> Result<Response<Body>, Refusal> {
    let mut last = node.sample.lock().await;
    let (mut now, mut shown) = take(node).await?;
    let is_fit = |earlier: &Sample, now: &Sample| {
        let window = now.when.duration_since(earlier.when);
        (SHORTEST..=LONGEST).contains(&window)
    };
    let earlier = if let Some(earlier) = last.take().filter(|earlier| is_fit(earlier, &now)) {
        earlier
    } else {
        tokio::time::sleep(SHORTEST).await;
        let first = now;
        (now, shown) = take(node).await?;
        first
    };
    fill_in(&mut shown, &earlier, &now);
    *last = Some(now);
    Ok(Response::new(text(shown.to_string())))
}

async fn take(node: &Arc<Node>) -> Result<(Sample, Value), Refusal> {
    let node = Arc::clone(node);
    let taken = tokio::task::spawn_blocking(move || count(&node)).await;
    let taken = taken.map_err(|error| Refusal::internal(&error))?;
    taken.map_err(|error| Refusal::internal(&error))
}

/// Counts, and says of memory what there is to say; CPU is filled in when there is an earlier count.
fn count(node: &Node) -> io::Result<(Sample, Value)> {
    let mut sample = Sample {
        when: Instant::now(),
        node: busy(&fs::read_to_string("/proc/stat")?)?,
        containers: HashMap::new(),
    };
    let mut pods = Vec::new();
    for pod in node.manager.snapshot() {
        let folder = node.config.cgroup_root.join(format!("pod{}", pod.uid));
        let mut containers = Vec::new();
        for container in pod.containers {
            let group = folder.join(&container.id);
            let (Some(cpu), Some(memory)) = (CpuCount::read(&group)?, memory::working_set(&group)?)
            else {
                continue;
            };
            containers.push(json!({
                "name": container.name,
                "id": container.id,
                "memoryBytes": memory,
            }));
            sample.containers.insert(container.id, cpu.used);
        }
        pods.push(json!({"uid": pod.uid, "containers": containers}));
    }
    let memory = memory_in_use(&fs::read_to_string("/proc/meminfo")?)?;
    let shown = json!({
        "timestamp": Timestamp::now().to_string(),
        "node": {"memoryBytes": memory},
        "pods": pods,
    });
    Ok((sample, shown))
}

fn fill_in(shown: &mut Value, earlier: &Sample, now: &Sample) {
    let window = now.when.duration_since(earlier.when);
    let rate = |before: Duration, after: Duration| {
        let used = after.saturating_sub(before).as_nanos() * 1_000_000_000;
        u64::try_from(used / window.as_nanos().max(1)).unwrap_or(u64::MAX)
    };
    shown["windowMilliseconds"] = json!(u64::try_from(window.as_millis()).unwrap_or(u64::MAX));
    shown["node"]["cpuNanocores"] = json!(rate(earlier.node, now.node));
    let pods = shown["pods"].as_array_mut().into_iter().flatten();
    for pod in pods {
        let Some(containers) = pod["containers"].as_array_mut() else {
            continue;
        };
        for container in &mut *containers {
            let id = container["id"].as_str().unwrap_or_default();
            // One that was not there before has used all that it has since it began.
            let before = earlier.containers.get(id).copied().unwrap_or_default();
            let after = now.containers.get(id).copied().unwrap_or_default();
            container["cpuNanocores"] = json!(rate(before, after));
        }
    }
}

/// The time that all CPUs together have worked: the first line of /proc/stat without idle and iowait.
fn busy(stat: &str) -> io::Result<Duration> {
    let line = stat.lines().next().unwrap_or_default();
    let mut ticks = 0_u64;
    // user nice system idle iowait irq softirq steal; a guest's time stands in user already.
    for (at, field) in line.split_whitespace().skip(1).take(8).enumerate() {
        let count: u64 = field
            .parse()
            .map_err(|error| unreadable("/proc/stat", line, &error))?;
        if !matches!(at, 3 | 4) {
            ticks += count;
        }
    }
    if ticks == 0 {
        return Err(unreadable("/proc/stat", line, &"no CPU has worked"));
    }
    Ok(Duration::from_nanos(ticks.saturating_mul(TICK)))
}

/// Memory that could not be given to others: all but what the kernel calls available.
fn memory_in_use(meminfo: &str) -> io::Result<u64> {
    let kibibytes = |name: &str| -> io::Result<u64> {
        let line = meminfo.lines().find(|line| line.starts_with(name));
        let line = line.ok_or_else(|| unreadable("/proc/meminfo", meminfo, &name))?;
        let number = line.split_whitespace().nth(1).unwrap_or_default();
        number
            .parse()
            .map_err(|error| unreadable("/proc/meminfo", line, &error))
    };
    let used = kibibytes("MemTotal:")?.saturating_sub(kibibytes("MemAvailable:")?);
    Ok(used.saturating_mul(1024))
}

fn unreadable(file: &str, text: &str, why: &dyn Display) -> io::Error {
    let message = format!("{file} is not as it should be ({why}): {text:?}");
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let stat = "cpu  100 1 50 9999 20 2 3 4 70 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy(stat).expect("read"), Duration::from_millis(1600));
        let meminfo = "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  400 kB\n";
        assert_eq!(memory_in_use(meminfo).expect("read"), 600 * 1024);
    }

    #[test]
    fn what_the_kernel_does_not_say_is_not_taken_for_nothing() {
        for stat in ["", "cpu\n", "cpu  100 x 50 9999 20 2 3 4\n"] {
            busy(stat).expect_err(stat);
        }
        for meminfo in [
            "MemTotal:  1000 kB\n",
            "MemTotal: many kB\nMemAvailable: 400 kB\n",
        ] {
            memory_in_use(meminfo).expect_err(meminfo);
        }
    }

    #[test]
    fn rates_are_over_the_time_between_two_counts() {
        let begun = Instant::now();
        let sample = |after: u64, node: u64, container: u64| Sample {
            when: begun + Duration::from_secs(after),
            node: Duration::from_secs(node),
            containers: HashMap::from([("c".to_owned(), Duration::from_secs(container))]),
        };
        let mut shown = json!({
            "node": {},
            "pods": [{"uid": "u", "containers": [{"name": "n", "id": "c"}]}],
        });
        fill_in(&mut shown, &sample(0, 10, 1), &sample(4, 12, 2));
        assert_eq!(shown["windowMilliseconds"], 4000);
        assert_eq!(shown["node"]["cpuNanocores"], 500_000_000);
        let container = &shown["pods"][0]["containers"][0];
        assert_eq!(container["cpuNanocores"], 250_000_000);
    }
}
