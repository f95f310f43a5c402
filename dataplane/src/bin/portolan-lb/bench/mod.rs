//! `portolan-lb bench`: what each way through this host costs, side by side.

mod micro;
mod progress;
mod row;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::pins;
use progress::Progress;

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Benchmarks by name, or by how their names begin: paths/connect, xdp/hit, tables; none: all
    names: Vec<String>,
    /// Numbers of services to measure with
    #[arg(long, value_delimiter = ',')]
    services: Option<Vec<u32>>,
    /// Numbers of flows to run programs on
    #[arg(long, value_delimiter = ',')]
    flows: Option<Vec<u32>>,
    /// Write the rows to a file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// The CPU to run on
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    pins::hide()?;
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu).context("choose a CPU")?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("keep to one CPU")?;
    let mut rows = Vec::new();
    if micro::is_any_wanted(&options.names) {
        let progress = Progress::new(36);
        rows.extend(micro::run(
            &options.names,
            (options.services.as_deref(), options.flows.as_deref()),
            &progress,
        )?);
    }
    for row in &rows {
        println!(
            "{:24} {:>9} flows {:>7} services {:>8.1} ({:.1} - {:.1}) {} {}",
            row.name,
            row.flows.map_or(String::new(), |flows| flows.to_string()),
            row.services
                .map_or(String::new(), |services| services.to_string()),
            row.median.unwrap_or(f64::NAN),
            row.min.unwrap_or(f64::NAN),
            row.max.unwrap_or(f64::NAN),
            row.unit,
            row.reason.as_deref().unwrap_or_default(),
        );
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
