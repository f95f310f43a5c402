//! Forwarding paths side by side: the same clients and backends over each, interleaved and shuffled in one run.

mod load;
mod plan;
mod rules;
mod stage;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use portolan_dataplane::model::Protocol;

use super::{Options, progress::Progress, row::Row};
use load::Measure;
pub use plan::Path;
use plan::Plan;
use stage::Stage;

/// Runs that differ by more than this share of their median say nothing.
const NOISE: f64 = 0.25;
/// Which measures are asked for.
fn measures(filters: &[String]) -> Vec<Measure> {
    let exact: Vec<Measure> = Measure::ALL
        .into_iter()
        .filter(|measure| filters.iter().any(|filter| filter == measure.name()))
        .collect();
    if !exact.is_empty() {
        return exact;
    }
    Measure::ALL
        .into_iter()
        .filter(|measure| {
            filters.is_empty()
                || filters
                    .iter()
                    .any(|filter| measure.name().starts_with(filter.as_str()))
        })
        .collect()
}

/// One run of one measure on one stage.
#[derive(Clone, Copy)]
struct Task {
    stage: usize,
    measure: Measure,
}

/// Runs what is asked for.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let measures = measures(&options.names);
    let mut rows = Vec::new();
    if !measures.is_empty() {
        rows.extend(compare(options, &measures)?);
    }
    rows.extend(tables::run(options)?);
    Ok(rows)
}

fn compare(options: &Options, measures: &[Measure]) -> Result<Vec<Row>> {
    let (stages, mut rows) = prepare(options, measures)?;
    let mut tasks: Vec<Task> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let fitting = measures
            .iter()
            .filter(|measure| measure.protocol() == stage.plan.protocol);
        tasks.extend(fitting.map(|&measure| Task {
            stage: index,
            measure,
        }));
    }
    let progress = Progress::new(tasks.len() * options.repeat as usize);
    let mut figures: BTreeMap<(usize, Measure, &str, &str), Vec<f64>> = BTreeMap::new();
    let mut failures: BTreeMap<(usize, Measure), String> = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(7);
    let time = Duration::from_secs_f64(options.seconds);
    let mut turn = 0;
    for _ in 0..options.repeat {
        random.shuffle(&mut tasks);
        for task in &tasks {
            turn += 1;
            let stage = &stages[task.stage];
            progress.note(&format!("{} by {}", task.measure.name(), stage.path.name()));
            match task.measure.run(stage, turn, time) {
                Ok(run) => {
                    for figure in run {
                        let key = (task.stage, task.measure, figure.metric, figure.unit);
                        figures.entry(key).or_default().push(figure.value);
                    }
                }
                Err(error) => {
                    failures.insert((task.stage, task.measure), format!("{error:#}"));
                }
            }
            progress.step();
        }
    }
    for ((stage, measure, metric, unit), runs) in &figures {
        let row = Row::new(measure.name(), metric, unit).with(runs);
        let row = of_stage(row, &stages[*stage]);
        rows.push(match failures.get(&(*stage, *measure)) {
            Some(failure) => row.invalid(failure.clone()),
            None => judged(row),
        });
    }
    for ((stage, measure), failure) in failures {
        if !figures.keys().any(|key| (key.0, key.1) == (stage, measure)) {
            let row = of_stage(Row::new(measure.name(), "none", ""), &stages[stage]);
            rows.push(row.invalid(failure));
        }
    }
    ratios(&mut rows);
    Ok(rows)
}

/// Makes the stages that this host can run, and rows for those that it cannot.
fn prepare(options: &Options, measures: &[Measure]) -> Result<(Vec<Stage>, Vec<Row>)> {
    let protocols: BTreeSet<Protocol> = measures.iter().map(|measure| measure.protocol()).collect();
    let services = options
        .services
        .clone()
        .unwrap_or_else(|| vec![1, 1_000, 10_000]);
    let mut stages = Vec::new();
    let mut rows = Vec::new();
    let progress = Progress::new(Path::ALL.len() * services.len() * protocols.len());
    for path in Path::ALL.into_iter().filter(|path| options.wants(*path)) {
        for &protocol in &protocols {
            let reason = stage::obstacle(path);
            for &services in if path.is_without_service() {
                &services[..1]
            } else {
                &services
            } {
                let plan = Plan {
                    services,
                    endpoints: options.endpoints,
                    protocol,
                };
                progress.note(&format!("loading {services} services by {}", path.name()));
                let reason = reason.clone().or_else(|| options.too_many(path, services));
                let stage = match reason {
                    Some(reason) => Err(reason),
                    None => Stage::new(path, plan)
                        .and_then(|stage| load::probe(&stage).map(|()| stage))
                        .map_err(|error| format!("{error:#}")),
                };
                match stage {
                    Ok(stage) => stages.push(stage),
                    Err(reason) => rows.extend(unavailable(measures, path, plan, &reason)),
                }
                progress.step();
            }
        }
    }
    Ok((stages, rows))
}

fn unavailable(measures: &[Measure], path: Path, plan: Plan, reason: &str) -> Vec<Row> {
    measures
        .iter()
        .filter(|measure| measure.protocol() == plan.protocol)
        .map(|measure| {
            let mut row = Row::new(measure.name(), "none", "").invalid(reason);
            row.path = Some(path.name().to_owned());
            row.services = Some(plan.services);
            row.endpoints = Some(plan.endpoints);
            row
        })
        .collect()
}

fn of_stage(mut row: Row, stage: &Stage) -> Row {
    row.path = Some(stage.path.name().to_owned());
    row.services = Some(stage.plan.services);
    row.endpoints = Some(stage.plan.endpoints);
    row
}

/// A row whose runs differ too much is not to be quoted.
fn judged(row: Row) -> Row {
    let spread = match (row.median, row.min, row.max) {
        (Some(median), Some(min), Some(max)) if median > 0.0 => (max - min) / median,
        _ => return row,
    };
    // One slow request in a hundred or a thousand is the machine's as often as the path's.
    let allowed = if row.metric.starts_with("p99") {
        4.0 * NOISE
    } else {
        NOISE
    };
    if spread > allowed {
        return row.invalid(format!(
            "the machine was too noisy: runs differ by {:.0} % of their median",
            spread * 100.0
        ));
    }
    row
}

/// Says of each row how it compares with `direct` in the same run.
fn ratios(rows: &mut [Row]) {
    let direct: BTreeMap<(String, String), f64> = rows
        .iter()
        .filter(|row| row.path.as_deref() == Some(Path::Direct.name()))
        .filter_map(|row| Some(((row.name.clone(), row.metric.clone()), row.median?)))
        .collect();
    for row in rows {
        let key = (row.name.clone(), row.metric.clone());
        if let (Some(median), Some(direct)) = (row.median, direct.get(&key)) {
            row.ratio = Some((median / direct * 1_000.0).round() / 1_000.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_asks_for_one_measure_and_a_beginning_for_all_that_have_it() {
        let of = |name: &str| measures(&[name.to_owned()]);
        assert_eq!(of("paths/connect"), [Measure::Connect]);
        assert_eq!(of("paths/"), Measure::ALL);
        assert_eq!(of("xdp/hit"), []);
        assert_eq!(measures(&[]), Measure::ALL);
    }

    #[test]
    fn noise_and_ratios_are_said_of_each_row() {
        let row = |path: &Path, runs: &[f64]| {
            let mut row = Row::new("paths/connect", "connections_per_second", "1/s").with(runs);
            row.path = Some(path.name().to_owned());
            judged(row)
        };
        let mut rows = [
            row(&Path::Direct, &[100.0, 101.0]),
            row(&Path::Tcx, &[50.0, 110.0]),
        ];
        ratios(&mut rows);
        assert_eq!(rows[0].ratio, Some(1.0));
        assert!(rows[0].valid && !rows[1].valid);
        assert_eq!(rows[1].ratio, Some(0.796));
    }
}
