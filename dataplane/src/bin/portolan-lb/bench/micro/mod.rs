//! Microbenchmarks: what each program costs a packet, by BPF_PROG_TEST_RUN.
//!
//! A generator in the kernel restores the packet before every run (`ebpf/src/bin/bench.rs`); the same generator before
//! an empty program says what to subtract. A figure counts only if the counters show that every packet took the way
//! that is timed, and the last packet came out rewritten, with valid checksums.

mod packet;
mod rig;

use anyhow::Result;
use portolan_abi::protocol;

use super::{
    progress::Progress,
    row::{Row, median},
};
use packet::Kind;
use rig::{Hook, Rig};

/// How often each figure is taken.
const RUNS: usize = 9;
/// Flows that don't fit their table any more may be found missing once in so many packets.
const STRAYS: u64 = 1_000;

/// One benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Empty,
    Hit,
    NewFlow,
    Floor,
    LruHash,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    hook: Hook,
    what: What,
    kind: Kind,
}

impl Case {
    fn name(self) -> String {
        let hook = self.hook.name();
        let kind = self.kind.name();
        match self.what {
            What::Empty => format!("{hook}/empty"),
            What::Hit => format!("{hook}/hit/{kind}"),
            What::NewFlow => format!("{hook}/new_flow/{kind}"),
            What::Floor => format!("{hook}/floor/{kind}"),
            What::LruHash => format!("{hook}/lru_hash/{kind}"),
        }
    }
}

/// How many flows and services there are while programs are measured.
const LOADS: [(u32, u32); 9] = [
    (1, 1),
    (256, 1),
    (4_096, 1),
    (65_536, 1),
    (1_048_576, 1),
    (1, 10_000),
    (1, 100_000),
    (65_536, 10_000),
    (65_536, 100_000),
];

fn cases(flows: u32, services: u32) -> Vec<Case> {
    let mut cases = Vec::new();
    for hook in Hook::ALL {
        for kind in Kind::ALL {
            let whats: &[What] = match (hook, kind.name(), services) {
                (Hook::Xdp, "ipv4_tcp", 1) => {
                    &[What::Hit, What::NewFlow, What::Floor, What::LruHash]
                }
                (_, _, 1) => &[What::Hit, What::NewFlow],
                _ => &[What::Hit],
            };
            cases.extend(whats.iter().map(|&what| Case { hook, what, kind }));
        }
    }
    cases.retain(|case| case.hook != Hook::Pod || flows <= 4_096);
    // A new flow needs a table to be new in.
    cases.retain(|case| case.what != What::NewFlow || flows >= 65_536);
    cases
}

/// Whether a benchmark is asked for; a name stands for all that begin with it.
fn is_wanted(filters: &[String], name: &str) -> bool {
    filters.is_empty()
        || filters
            .iter()
            .any(|filter| name.starts_with(filter.as_str()))
}

/// Whether any of the benchmarks is asked for.
pub fn is_any_wanted(filters: &[String]) -> bool {
    ["xdp/", "tcx/", "tcx_pod/", "program/"]
        .iter()
        .any(|family| {
            filters.is_empty()
                || filters
                    .iter()
                    .any(|filter| filter.starts_with(family) || family.starts_with(filter.as_str()))
        })
}

/// Runs those that are asked for.
pub fn run(
    filters: &[String],
    (services_wanted, flows_wanted): (Option<&[u32]>, Option<&[u32]>),
    progress: &Progress,
) -> Result<Vec<Row>> {
    let mut rows = empties(filters)?;
    let mut kept_programs = false;
    for (flows, services) in LOADS {
        if services_wanted.is_some_and(|wanted| !wanted.contains(&services))
            || flows_wanted.is_some_and(|wanted| !wanted.contains(&flows))
        {
            continue;
        }
        for hook in Hook::ALL {
            for v6 in [false, true] {
                let wanted: Vec<Case> = cases(flows, services)
                    .into_iter()
                    .filter(|case| case.hook == hook && case.kind.v6 == v6)
                    .filter(|case| is_wanted(filters, &case.name()))
                    .collect();
                if wanted.is_empty() {
                    continue;
                }
                progress.note(&format!(
                    "{}, {flows} flows, {services} services",
                    hook.name()
                ));
                let mut rig = Rig::new(hook, v6, flows, services)?;
                for case in wanted {
                    rows.push(measure(&mut rig, case)?);
                }
                if !kept_programs {
                    rows.extend(rig.programs()?);
                    kept_programs = true;
                }
            }
        }
    }
    Ok(rows)
}

fn empties(filters: &[String]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for hook in [Hook::Xdp, Hook::Tcx] {
        let case = Case {
            hook,
            what: What::Empty,
            kind: Kind {
                v6: false,
                protocol: protocol::TCP,
            },
        };
        let prefix = format!("{}/", hook.name());
        if !filters.is_empty() && !filters.iter().any(|filter| filter.starts_with(&prefix)) {
            continue;
        }
        let rig = Rig::new(hook, false, 1, 1)?;
        let runs = rig.empty(RUNS)?;
        rows.push(Row::new(&case.name(), "ns_per_packet", "ns").with(&runs));
    }
    Ok(rows)
}

fn measure(rig: &mut Rig, case: Case) -> Result<Row> {
    let (flows, services) = (rig.flows, rig.services);
    let mut row = Row::new(&case.name(), "ns_per_packet", "ns");
    row.flows = Some(flows);
    row.services = Some(services);
    row.endpoints = Some(1);
    rig.prepare(case.kind, case.what)?;
    let empty = median_of(&rig.empty(3)?);
    let mut figures = Vec::new();
    let mut doubt = None;
    for _ in 0..RUNS {
        let generator = rig.generator(case.kind)?;
        let run = rig.run(case.kind, case.what)?;
        figures.push((run.nanoseconds - generator + empty).max(0.0));
        doubt = doubt.or(run.doubt);
    }
    row = row.with(&figures);
    Ok(match doubt {
        Some(doubt) => row.invalid(doubt),
        None => row,
    })
}

fn median_of(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    median(&sorted).unwrap_or(0.0)
}
