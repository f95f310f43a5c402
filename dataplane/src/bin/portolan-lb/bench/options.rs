//! What a benchmark can be asked for, and what is wrong with it if it is.

use std::{
    fs::OpenOptions,
    path::{Path as File, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{
    micro,
    paths::{self, Path, Plan},
};

/// What to measure.
#[derive(Debug, Args)]
pub struct Options {
    /// Benchmarks by name, or by how their names begin: paths/connect, xdp/hit, tables; none: all
    pub names: Vec<String>,
    /// Numbers of services to measure with [default: 1, 100, 1000, 10000 and 100000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub services: Option<Vec<u32>>,
    /// Numbers of flows to run programs on [default: 1 to 1048576]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub flows: Option<Vec<u32>>,
    /// How many endpoints each service has [default: 3; with one service also 1, 100 and 1000]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub endpoints: Option<Vec<u32>>,
    /// Paths to compare with each other and with direct [default: all]
    #[arg(long, value_delimiter = ',', value_enum)]
    pub paths: Option<Vec<Path>>,
    /// How often each figure of a path is taken
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub repeat: u32,
    /// How long each run takes
    #[arg(long, default_value = "0.4", value_parser = seconds)]
    pub seconds: f64,
    /// Load tables that take minutes, too
    #[arg(long)]
    pub patient: bool,
    /// Write the rows to a file as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write the page of charts to a file
    #[arg(long)]
    pub html: Option<PathBuf>,
    /// Say what changed since an older run's JSON; of several, since all of them together
    #[arg(long, value_delimiter = ',')]
    pub compare: Vec<PathBuf>,
    /// Measure nothing: take the rows of earlier runs' JSON, all of them together
    #[arg(long, value_delimiter = ',')]
    pub rows: Vec<PathBuf>,
    /// The CPU to run on
    #[arg(long, default_value_t = 0)]
    pub cpu: usize,
}

/// How many endpoints in all services together a path can be loaded with before the rest of the run would wait for
/// minutes.
const MOST_ENDPOINTS: [(Path, u32); 4] = [
    (Path::IptablesNft, 3_000),
    (Path::Nftables, 30_000),
    (Path::Ipvs, 30_000),
    (Path::IptablesLegacy, 90_000),
];

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=600.0).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("a run takes 0.001 to 600 seconds".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Options {
    /// Whether a benchmark is asked for: a name that is one benchmark's stands for it alone, others for all that begin so.
    pub fn asks_for(&self, name: &str) -> bool {
        let stands_for = |filter: &String| {
            if known().any(|known| known == *filter) {
                name == filter
            } else {
                name.starts_with(filter.as_str())
            }
        };
        self.names.is_empty() || self.names.iter().any(stands_for)
    }

    /// Whether a path is to be measured.
    pub fn wants(&self, path: Path) -> bool {
        path == Path::Direct
            || self
                .paths
                .as_ref()
                .is_none_or(|paths| paths.contains(&path))
    }

    /// How many services of how many endpoints paths are compared with.
    pub fn sizes(&self) -> Vec<(u32, u32)> {
        let services = self.services.as_deref();
        let services = services.unwrap_or(&[1, 100, 1_000, 10_000, 100_000]);
        let endpoints = self.endpoints.as_deref().unwrap_or(&[3]);
        let mut sizes: Vec<(u32, u32)> = (services.iter())
            .flat_map(|&services| {
                endpoints
                    .iter()
                    .map(move |&endpoints| (services, endpoints))
            })
            .collect();
        if self.services.is_none() && self.endpoints.is_none() {
            sizes.extend([(1, 1), (1, 100), (1, 1_000)]);
        }
        sizes
    }

    /// Why a path is not loaded with so many services.
    pub fn too_many(&self, path: Path, plan: &Plan) -> Option<String> {
        let all = plan.services.saturating_mul(plan.endpoints);
        if path.is_ours() && all > 1_000_000 {
            return Some("more than 1000000 endpoints are not measured".into());
        }
        let (_, most) = MOST_ENDPOINTS
            .iter()
            .find(|(limited, _)| *limited == path)?;
        (all > *most && !self.patient)
            .then(|| format!("more than {most} endpoints take minutes to load: ask for --patient"))
    }

    /// Finds what would fail only after minutes.
    pub fn check(&self) -> Result<()> {
        for name in &self.names {
            if !known().any(|known| known.starts_with(name.as_str())) {
                let mut all: Vec<String> = known().collect();
                all.sort_unstable();
                bail!(
                    "no benchmark is named {name}. There are: {}",
                    all.join(", ")
                );
            }
        }
        for file in self.json.iter().chain(&self.html) {
            writable(file).with_context(|| format!("write {}", file.display()))?;
        }
        Ok(())
    }
}

/// The names of all benchmarks.
fn known() -> impl Iterator<Item = String> {
    let paths = paths::names().map(str::to_owned);
    paths.chain(micro::names())
}

fn writable(file: &File) -> std::io::Result<()> {
    let opened = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .map(drop);
    // A run that is given up leaves no empty file.
    if std::fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0 && metadata.is_file()) {
        std::fs::remove_file(file)?;
    }
    opened
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        options: Options,
    }

    fn options(arguments: &[&str]) -> Result<Options, clap::Error> {
        let program = std::iter::once("bench").chain(arguments.iter().copied());
        Program::try_parse_from(program).map(|program| program.options)
    }

    #[test]
    fn a_full_name_asks_for_one_benchmark_and_a_beginning_for_all_that_have_it() {
        let asks =
            |name: &str, of: &str| options(&[name]).is_ok_and(|options| options.asks_for(of));
        assert!(asks("paths/connect", "paths/connect"));
        assert!(!asks("paths/connect", "paths/connect_latency"));
        assert!(asks("paths/", "paths/tcp_stream"));
        assert!(asks("xdp/hit", "xdp/hit/ipv6_udp"));
        assert!(!asks("xdp/hit", "paths/connect"));
    }

    #[test]
    fn what_cannot_be_measured_is_refused_with_what_can_be() {
        for (arguments, words) in [
            (["--services", "0"], "1..=100000"),
            (["--services", "100001"], "1..=100000"),
            (["--endpoints", "1001"], "1..=1000"),
            (["--repeat", "0"], "1..=1000"),
            (["--seconds", "NaN"], "0.001 to 600"),
            (["--seconds", "-1"], "value"),
            (["--paths", "ebtables"], "iptables_legacy"),
        ] {
            let error = options(&arguments).expect_err("it is refused").to_string();
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
        let unknown = options(&["paths/conect"]).expect("any name parses").check();
        let words = unknown.expect_err("there is none").to_string();
        assert!(words.contains("paths/connect_latency"), "{words}");
        let nowhere = options(&["--json", "/no/such/folder/rows.json"]).expect("any file parses");
        assert!(nowhere.check().is_err());
    }
}
