//! `portolan-lb bench`: what each way through this host costs, side by side.

mod hold;
mod machine;
mod micro;
mod noise;
mod options;
mod page;
mod paths;
mod progress;
mod report;
mod row;

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{interrupt, pins};
pub use hold::{HoldOptions, hold};
pub use machine::kernel_memory;
pub use options::Options;
use row::Row;

/// The command.
pub fn run(options: &Options) -> Result<()> {
    options.check()?;
    let old = report::read(&options.compare)?;
    let facts = machine::facts(options.cpu);
    let rows = if options.rows.is_empty() {
        measured(options)?
    } else {
        report::read(&options.rows)?
    };
    print!("{}", report::tables(&rows));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &options.html {
        // Rows of a file were not taken on this machine, perhaps.
        let facts = if options.rows.is_empty() {
            &facts[..]
        } else {
            &[]
        };
        std::fs::write(path, page::page(&rows, facts))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if !options.compare.is_empty() {
        print!("{}", report::compare(&rows, &old));
    }
    Ok(())
}

fn measured(options: &Options) -> Result<Vec<Row>> {
    interrupt::watch()?;
    pins::hide()?;
    let mut cpus = CpuSet::new();
    cpus.set(options.cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cpus))
        .with_context(|| format!("keep to CPU {}: this process may not use it", options.cpu))?;
    let mut rows = Vec::new();
    if micro::is_any_wanted(options) {
        rows.extend(micro::run(options)?);
    }
    rows.extend(paths::run(options)?);
    interrupt::check()?;
    Ok(rows)
}
