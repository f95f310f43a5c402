//! What it takes to load a table of services, to change one endpoint in it, and to keep it.

use anyhow::Result;
use portolan_dataplane::model::Protocol;

use super::{Path, Plan, stage, stage::Stage};
use crate::bench::{
    Options,
    progress::Progress,
    row::{Row, quantile},
};

/// The paths that have a table.
const PATHS: [Path; 4] = [
    Path::IptablesLegacy,
    Path::IptablesNft,
    Path::Nftables,
    Path::Tcx,
];
/// How often each table is loaded, where that takes under a second.
const LOADS: usize = 4;

/// Runs what is asked for.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let wanted = |name: &str| {
        options.names.is_empty()
            || options
                .names
                .iter()
                .any(|filter| name.starts_with(filter.as_str()))
    };
    let mut rows = Vec::new();
    if !["tables/load", "tables/update_one", "memory/maps"]
        .into_iter()
        .any(wanted)
    {
        return Ok(rows);
    }
    let services = options
        .services
        .clone()
        .unwrap_or_else(|| vec![1_000, 10_000, 100_000]);
    let progress = Progress::new(PATHS.len() * services.len());
    for path in PATHS.into_iter().filter(|path| options.wants(*path)) {
        for &services in &services {
            let plan = Plan {
                services,
                endpoints: options.endpoints,
                protocol: Protocol::Tcp,
            };
            progress.note(&format!("{services} services by {}", path.name()));
            let reason = stage::obstacle(path).or_else(|| options.too_many(path, services));
            match reason {
                Some(reason) => {
                    rows.push(
                        of(Row::new("tables/load", "milliseconds", "ms"), path, plan)
                            .invalid(reason),
                    );
                }
                None => rows.extend(measure(path, plan)?),
            }
            progress.step();
        }
    }
    rows.retain(|row| wanted(&row.name));
    Ok(rows)
}

fn of(mut row: Row, path: Path, plan: Plan) -> Row {
    row.path = Some(path.name().to_owned());
    row.services = Some(plan.services);
    row.endpoints = Some(plan.endpoints);
    row
}

fn measure(path: Path, plan: Plan) -> Result<Vec<Row>> {
    let mut stage = Stage::new(path, plan)?;
    let mut loads = vec![stage.loading.as_secs_f64() * 1e3];
    while loads.len() < LOADS && loads[0] < 5_000.0 {
        stage = Stage::new(path, plan)?;
        loads.push(stage.loading.as_secs_f64() * 1e3);
    }
    let mut rows = vec![of(
        Row::new("tables/load", "milliseconds", "ms").with(&loads),
        path,
        plan,
    )];
    // Other tools read and write all of their table for one endpoint: fewer times will do.
    let times = if path.is_ours() { 400 } else { 8 };
    let mut updates = Vec::new();
    for turn in 0..times {
        // There and back again, each time in another service.
        let service = (turn / 2 * 7_919) % plan.services;
        updates.push(
            stage
                .update(service, u32::from(turn % 2 == 0))?
                .as_secs_f64()
                * 1e3,
        );
    }
    updates.sort_by(f64::total_cmp);
    let row = Row::new("tables/update_one", "milliseconds", "ms").with(&updates);
    rows.push(of(row, path, plan));
    if path.is_ours() {
        let p99 = quantile(&updates, 0.99).unwrap_or(f64::NAN);
        let row = Row::new("tables/update_one", "p99", "ms").with(&[p99]);
        rows.push(of(row, path, plan));
    }
    if let Some(bytes) = stage.map_memory()? {
        let row = Row::new("memory/maps", "megabytes", "MB").with(&[mega(bytes)]);
        rows.push(of(row, path, plan));
    }
    Ok(rows)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "maps are smaller than petabytes"
)]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
