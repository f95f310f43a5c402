//! Microbenchmarks: what each program costs a packet, by BPF_PROG_TEST_RUN.
//!
//! A generator in the kernel restores the packet before every run (`ebpf/src/bin/bench.rs`); the same generator before
//! an empty program says what to subtract. A figure counts only if the counters show that every packet took the way
//! that is timed, and the last packet came out rewritten, with valid checksums.

mod packet;
mod rig;

use std::collections::BTreeSet;

use anyhow::Result;
use portolan_abi::protocol;

use super::{
    Options,
    progress::Progress,
    row::{Row, median},
};
use crate::interrupt;
use packet::Kind;
use rig::{Hook, Rig};

/// How often each figure is taken.
const RUNS: usize = 9;
/// Flows that don't fit their table any more may be found missing once in so many packets.
const STRAYS: u64 = 1_000;

/// The programs whose size and cost to the verifier are told.
const PROGRAMS: [&str; 3] = ["xdp_uplink", "uplink_ingress", "pod_egress"];

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

/// The benchmarks that there are, by name.
pub fn names() -> impl Iterator<Item = String> {
    let all = LOADS
        .into_iter()
        .flat_map(|(flows, services)| cases(flows, services));
    let names: BTreeSet<String> = all.map(Case::name).collect();
    let empty = [Hook::Xdp, Hook::Tcx].map(|hook| empty(hook).name());
    let programs = PROGRAMS.map(|name| format!("program/{name}"));
    names.into_iter().chain(empty).chain(programs)
}

/// Whether any of the benchmarks is asked for.
pub fn is_any_wanted(options: &Options) -> bool {
    names().any(|name| options.asks_for(&name))
}

/// Runs those that are asked for.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut rows = empties(options)?;
    let mut programs_wanted = PROGRAMS
        .iter()
        .any(|name| options.asks_for(&format!("program/{name}")));
    let loads = loads(options);
    let progress = Progress::new(loads.len());
    for (hook, v6, flows, services) in loads {
        interrupt::check()?;
        progress.note(&format!(
            "{}, {flows} flows, {services} services",
            hook.name()
        ));
        let mut rig = Rig::new(hook, v6, flows, services)?;
        for case in cases(flows, services) {
            if case.hook == hook && case.kind.v6 == v6 && options.asks_for(&case.name()) {
                rows.push(measure(&mut rig, case)?);
            }
        }
        if programs_wanted {
            rows.extend(rig.programs()?);
            programs_wanted = false;
        }
        progress.step();
    }
    if programs_wanted {
        rows.extend(Rig::new(Hook::Xdp, false, 1, 1)?.programs()?);
    }
    rows.retain(|row| options.asks_for(&row.name) || row.name.ends_with("/empty"));
    Ok(rows)
}

/// The rigs that are needed for what is asked for.
fn loads(options: &Options) -> Vec<(Hook, bool, u32, u32)> {
    let asked = |list: &Option<Vec<u32>>, number: u32| {
        list.as_ref().is_none_or(|list| list.contains(&number))
    };
    let mut loads = Vec::new();
    for (flows, services) in LOADS {
        if !asked(&options.services, services) || !asked(&options.flows, flows) {
            continue;
        }
        for hook in Hook::ALL {
            for v6 in [false, true] {
                let is_wanted = |case: &Case| {
                    case.hook == hook && case.kind.v6 == v6 && options.asks_for(&case.name())
                };
                if cases(flows, services).iter().any(is_wanted) {
                    loads.push((hook, v6, flows, services));
                }
            }
        }
    }
    loads
}

/// What stands beside every program of a hook: one that does nothing.
fn empty(hook: Hook) -> Case {
    Case {
        hook,
        what: What::Empty,
        kind: Kind {
            v6: false,
            protocol: protocol::TCP,
        },
    }
}

fn empties(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for hook in [Hook::Xdp, Hook::Tcx] {
        let case = empty(hook);
        let of_hook = format!("{}/", hook.name());
        let beside = names().any(|name| name.starts_with(&of_hook) && options.asks_for(&name));
        if beside {
            let rig = Rig::new(hook, false, 1, 1)?;
            let runs = rig.empty(RUNS)?;
            rows.push(Row::new(&case.name(), "ns_per_packet", "ns").with(&runs));
        }
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
