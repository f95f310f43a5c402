//! `portolan-lb bench`: what each way through this host costs, side by side.

mod machine;
mod micro;
mod page;
mod paths;
mod progress;
mod report;
mod row;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::pins;
use paths::Path;
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
    /// How many endpoints each service has
    #[arg(long, default_value_t = 3)]
    endpoints: u32,
    /// Paths to compare with each other and with direct; none: all
    #[arg(long, value_delimiter = ',')]
    paths: Option<Vec<String>>,
    /// How often each figure of a path is taken
    #[arg(long, default_value_t = 4)]
    repeat: u32,
    /// How long each run takes
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// Load tables that take minutes, too
    #[arg(long)]
    patient: bool,
    /// Write the rows to a file as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the page of charts to a file
    #[arg(long)]
    html: Option<PathBuf>,
    /// Say what changed since an older run's JSON
    #[arg(long)]
    compare: Option<PathBuf>,
    /// The CPU to run on
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

/// What a path can be loaded with before the rest of the run would wait for minutes.
const MOST_SERVICES: [(Path, u32); 3] = [
    (Path::IptablesNft, 1_000),
    (Path::Nftables, 10_000),
    (Path::IptablesLegacy, 30_000),
];

impl Options {
    /// Whether a path is to be measured.
    fn wants(&self, path: Path) -> bool {
        path == Path::Direct
            || self
                .paths
                .as_ref()
                .is_none_or(|paths| paths.iter().any(|name| name == path.name()))
    }

    /// Why a path is not loaded with so many services.
    fn too_many(&self, path: Path, services: u32) -> Option<String> {
        let (_, most) = MOST_SERVICES.iter().find(|(limited, _)| *limited == path)?;
        (services > *most && !self.patient)
            .then(|| format!("more than {most} services take minutes to load: ask for --patient"))
    }
}

/// The command.
pub fn run(options: &Options) -> Result<()> {
    pins::hide()?;
    let facts = machine::facts(options.cpu);
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
    rows.extend(paths::run(options)?);
    if rows.is_empty() {
        bail!("no benchmark is named so: {}", options.names.join(", "));
    }
    print!("{}", report::tables(&rows));
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &options.html {
        std::fs::write(path, page::page(&rows, &facts))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(old) = &options.compare {
        print!("{}", report::compare(&rows, old)?);
    }
    Ok(())
}
