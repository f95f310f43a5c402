//! What it takes to load a table of services, to change one endpoint in it, and to keep it.

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use portolan_dataplane::model::Protocol;

use super::{
    Path, Plan,
    load::{PATIENCE, Targets, listeners},
    plan::Variant,
    stage::{self, Stage},
};
use crate::{
    bench::{
        Options,
        hold::{self, Held},
        kernel_memory,
        progress::Progress,
        row::{Row, quantile},
    },
    interrupt,
    space::Space,
};

/// The paths that have a table; those of ours have the same one.
const PATHS: [Path; 5] = [
    Path::IptablesLegacy,
    Path::IptablesNft,
    Path::Nftables,
    Path::Ipvs,
    Path::Tcx,
];
/// The benchmarks.
pub const NAMES: [&str; 4] = [
    "tables/load",
    "tables/update_one",
    "memory/maps",
    "memory/agent",
];
/// How often each table is loaded at most, where that takes under [`SHORT`].
const LOADS: u32 = 4;
const SHORT: Duration = Duration::from_secs(5);
/// How often one endpoint is changed; other tools read and write all of their table for that, so that fewer times do.
const UPDATES: u32 = 400;
const UPDATES_OF_OTHERS: u32 = 8;
/// How long the other tools' updates of one table may take.
const LONG: Duration = Duration::from_secs(20);

/// Runs what is asked for.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if !NAMES.into_iter().any(|name| options.asks_for(name)) {
        return Ok(rows);
    }
    let services = (options.services.clone()).unwrap_or_else(|| vec![1_000, 10_000, 100_000]);
    let endpoints = options.endpoints.clone().unwrap_or_else(|| vec![3]);
    let sizes: Vec<(u32, u32)> = (services.iter())
        .flat_map(|&services| {
            endpoints
                .iter()
                .map(move |&endpoints| (services, endpoints))
        })
        .collect();
    let progress = Progress::new(PATHS.len() * sizes.len());
    for path in PATHS.into_iter().filter(|path| options.wants(*path)) {
        for &(services, endpoints) in &sizes {
            interrupt::check()?;
            let plan = Plan {
                services,
                endpoints,
                protocol: Protocol::Tcp,
            };
            progress.note(&format!("{services} services by {}", path.name()));
            let reason = stage::obstacle(path).or_else(|| options.too_many(path, &plan));
            let measured = match reason {
                Some(reason) => Err(reason),
                None => measure(options, path, plan).map_err(|error| format!("{error:#}")),
            };
            interrupt::check()?;
            rows.extend(measured.unwrap_or_else(|reason| {
                let none = |name| of(Row::new(name, "none", ""), path, &plan);
                NAMES.map(|name| none(name).invalid(reason.clone())).into()
            }));
            progress.step();
        }
    }
    rows.retain(|row| options.asks_for(&row.name));
    Ok(rows)
}

fn of(mut row: Row, path: Path, plan: &Plan) -> Row {
    row.path = Some(path.name().to_owned());
    row.services = Some(plan.services);
    row.endpoints = Some(plan.endpoints);
    row
}

fn measure(options: &Options, path: Path, plan: Plan) -> Result<Vec<Row>> {
    let row = |name, metric, unit| of(Row::new(name, metric, unit), path, &plan);
    let mut rows = Vec::new();
    if NAMES[..1]
        .iter()
        .chain(&NAMES[2..])
        .any(|name| options.asks_for(name))
    {
        let held = loads(options, path, plan)?;
        let each = |figure: fn(&Held) -> f64| held.iter().map(figure).collect::<Vec<f64>>();
        rows.push(row("tables/load", "milliseconds", "ms").with(&each(|held| held.milliseconds)));
        let maps = each(|held| mega(held.kernel));
        rows.push(row("memory/maps", "megabytes", "MB").with(&maps));
        let tool = each(|held| mega(held.process));
        let row = row("memory/agent", "megabytes", "MB").with(&tool);
        rows.push(if tool.contains(&0.0) {
            row.invalid("the tool ended before its memory could be looked at")
        } else {
            row
        });
    }
    if options.asks_for("tables/update_one") {
        let (followed, written) = updates(path, plan)?;
        rows.push(row("tables/update_one", "milliseconds", "ms").with(&followed));
        rows.push(row("tables/update_one", "written", "ms").with(&written));
        if path.is_ours() {
            for (metric, mut figures) in [("p99", followed), ("written_p99", written)] {
                figures.sort_by(f64::total_cmp);
                let p99 = quantile(&figures, 0.99).unwrap_or(f64::NAN);
                rows.push(row("tables/update_one", metric, "ms").with(&[p99]));
            }
        }
    }
    Ok(rows)
}

/// Loads a table a few times: ours by a process of its own, so that what it takes of memory can be told.
fn loads(options: &Options, path: Path, plan: Plan) -> Result<Vec<Held>> {
    let mut all: Vec<Held> = Vec::new();
    let began = Instant::now();
    while all.len() < options.repeat.min(LOADS) as usize
        && (all.is_empty() || began.elapsed() < SHORT)
    {
        interrupt::check()?;
        let held = if path.is_ours() {
            hold::ask(&Space::new()?, &plan)?
        } else {
            let before = kernel_memory()?;
            let stage = Stage::new(path, plan)?;
            Held {
                milliseconds: stage.table.loading.as_secs_f64() * 1e3,
                process: stage.table.tool_memory,
                kernel: kernel_memory()?.saturating_sub(before),
            }
        };
        all.push(held);
    }
    Ok(all)
}

/// Replaces the one endpoint of a service by another and back, each time in another service: how many milliseconds it
/// took until the first connection followed, and until it was written.
fn updates(path: Path, plan: Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut stage = Stage::new(path, plan)?;
    let listeners = listeners(&stage.topology.servers)?;
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    let times = if path.is_ours() {
        UPDATES
    } else {
        UPDATES_OF_OTHERS
    };
    let (client, topology, table) = stage.split();
    client.enter(|| {
        let began = Instant::now();
        let (mut followed, mut written) = (Vec::new(), Vec::new());
        for turn in 0..times / 2 {
            let service = (turn * 7_919) % plan.services;
            table.prepare(topology, turn)?;
            table.update(topology, service, Variant::First)?;
            let targets = Targets::new(client, turn);
            for (variant, now_at) in [
                (Variant::Spare, plan.spare()),
                (Variant::First, Plan::backend(0)),
            ] {
                let start = Instant::now();
                // What a tool is given was made before its time is taken.
                let took = table.update(topology, service, variant)?;
                let around = start.elapsed().saturating_sub(took);
                until_at(&targets, &listeners, (service, now_at))?;
                let all = start.elapsed().saturating_sub(around);
                followed.push(all.as_secs_f64() * 1e3);
                written.push(took.as_secs_f64() * 1e3);
            }
            interrupt::check()?;
            if began.elapsed() > LONG {
                break;
            }
        }
        anyhow::Ok((followed, written))
    })?
}

/// Connects to a service until a connection reaches a backend.
fn until_at(
    targets: &Targets,
    listeners: &[TcpListener],
    (service, backend): (u32, Ipv4Addr),
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let stream = targets
            .connect_to_service(service, PATIENCE)
            .with_context(|| format!("connect to service {service}"))?;
        // The connection stands, so that it is in a listener's queue.
        let accepted = listeners.iter().find_map(|listener| listener.accept().ok());
        let (accepted, _) = accepted.context("a connection stands, but at no backend")?;
        let at = accepted.local_addr().context("ask where it arrived")?.ip();
        drop(stream);
        if at == IpAddr::V4(backend) {
            return Ok(());
        }
    }
    bail!("no connection to service {service} reached {backend}")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "memory is smaller than petabytes"
)]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
