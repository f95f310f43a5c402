//! What the figures were taken on.

use std::process::Command;

use anyhow::{Context, Result};

/// Facts of this machine that figures depend on.
pub fn facts(cpu: usize) -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let of_cpu = |key: &str| {
        info.lines()
            .find(|line| line.starts_with(key))
            .and_then(|line| line.split_once(':'))
            .map_or_else(
                || "not known".to_owned(),
                |(_, value)| value.trim().to_owned(),
            )
    };
    let cpus = info
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let load = read("/proc/loadavg");
    let mut facts = vec![
        (
            "kernel".to_owned(),
            read("/proc/sys/kernel/osrelease").trim().to_owned(),
        ),
        ("processor".to_owned(), of_cpu("model name")),
        (
            "CPUs".to_owned(),
            format!("{cpus}; clients, servers and programs ran on number {cpu}"),
        ),
        (
            "JIT of BPF".to_owned(),
            read("/proc/sys/net/core/bpf_jit_enable").trim().to_owned(),
        ),
        (
            "load before".to_owned(),
            load.split(' ').take(3).collect::<Vec<_>>().join(" "),
        ),
        (
            "offloads".to_owned(),
            "as veth has them: checksums, TSO and GRO as the kernel sets them".to_owned(),
        ),
        (
            "portolan-lb".to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
    ];
    for (program, argument) in [
        ("nft", "--version"),
        ("iptables-legacy", "--version"),
        ("ipvsadm", "--version"),
        ("ip", "-V"),
    ] {
        let version = match Command::new(program).arg(argument).output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
            Err(_) => "not installed".to_owned(),
        };
        facts.push((program.to_owned(), version));
    }
    facts
}

/// The memory that the kernel holds for itself, in bytes: what tables are made of is in it, and whatever else changes.
pub fn kernel_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kilobytes = |line: &str| {
        let (what, size) = line.split_once(':')?;
        let is_kernel = ["Slab", "VmallocUsed", "Percpu"].contains(&what);
        let size = size.trim().strip_suffix(" kB")?;
        is_kernel.then(|| size.parse::<u64>().ok()).flatten()
    };
    Ok(text.lines().filter_map(kilobytes).sum::<u64>() * 1_024)
}
