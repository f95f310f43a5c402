//! Forwarding paths side by side: the same clients and backends over each, interleaved and shuffled in one run.

mod group;
mod load;
pub mod ours;
mod plan;
mod rules;
mod stage;
pub mod tables;
mod topology;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Result;
use portolan_dataplane::model::Protocol;

use super::{
    Options,
    noise::{judged, ratios},
    progress::Progress,
    row::Row,
};
use crate::interrupt;
use load::Measure;
pub use plan::{Path, Plan, Variant};
use stage::Stage;

/// The benchmarks.
pub fn names() -> impl Iterator<Item = &'static str> {
    Measure::ALL
        .into_iter()
        .map(Measure::name)
        .chain(tables::NAMES)
}

/// Which measures are asked for.
fn measures(options: &Options) -> Vec<Measure> {
    let asked = |measure: &Measure| options.asks_for(measure.name());
    Measure::ALL.into_iter().filter(asked).collect()
}

/// One run of one measure on one stage.
#[derive(Clone, Copy)]
struct Task {
    stage: usize,
    measure: Measure,
}

/// Runs what is asked for.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let measures = measures(options);
    let mut rows = Vec::new();
    if !measures.is_empty() {
        rows.extend(compare(options, &measures)?);
    }
    rows.extend(tables::run(options)?);
    Ok(rows)
}

/// What the runs said so far.
#[derive(Default)]
struct Findings {
    figures: BTreeMap<(usize, Measure, &'static str, &'static str), Vec<f64>>,
    failures: BTreeMap<(usize, Measure), String>,
}

fn compare(options: &Options, measures: &[Measure]) -> Result<Vec<Row>> {
    let (mut stages, mut rows) = prepare(options, measures)?;
    let mut tasks: Vec<Task> = Vec::new();
    for (index, stage) in stages.iter().enumerate() {
        let fitting = measures.iter().filter(|measure| {
            measure.protocol() == stage.plan.protocol && measure.fits(stage.path)
        });
        tasks.extend(fitting.map(|&measure| Task {
            stage: index,
            measure,
        }));
    }
    let progress = Progress::new(tasks.len() * options.repeat as usize);
    let mut findings = Findings::default();
    let mut random = fastrand::Rng::with_seed(7);
    let mut turn = 0;
    for _ in 0..options.repeat {
        random.shuffle(&mut tasks);
        for task in &tasks {
            interrupt::check()?;
            turn += 1;
            let stage = &mut stages[task.stage];
            progress.note(&format!(
                "{} by {}, {} services",
                task.measure.name(),
                stage.path.name(),
                stage.plan.services
            ));
            findings.add(task, stage, turn, Duration::from_secs_f64(options.seconds));
            progress.step();
        }
    }
    rows.extend(findings.rows(&stages));
    ratios(&mut rows);
    Ok(rows)
}

impl Findings {
    fn add(&mut self, task: &Task, stage: &mut Stage, turn: u32, time: Duration) {
        // As an agent does, but not while the time is taken: an agent has other CPUs.
        let prepared = stage.table.prepare(&stage.topology, turn);
        match prepared.and_then(|()| task.measure.run(stage, turn, time)) {
            Ok(run) => {
                for figure in run {
                    let key = (task.stage, task.measure, figure.metric, figure.unit);
                    self.figures.entry(key).or_default().push(figure.value);
                }
            }
            Err(error) => {
                let key = (task.stage, task.measure);
                self.failures.insert(key, format!("{error:#}"));
            }
        }
    }

    fn rows(self, stages: &[Stage]) -> Vec<Row> {
        let mut rows = Vec::new();
        for (&(stage, measure, metric, unit), runs) in &self.figures {
            let row = Row::new(measure.name(), metric, unit).with(runs);
            let row = of_stage(row, &stages[stage]);
            rows.push(match self.failures.get(&(stage, measure)) {
                Some(failure) => row.invalid(failure.clone()),
                None => judged(row),
            });
        }
        for ((stage, measure), failure) in self.failures {
            if !(self.figures.keys()).any(|key| (key.0, key.1) == (stage, measure)) {
                let row = of_stage(Row::new(measure.name(), "none", ""), &stages[stage]);
                rows.push(row.invalid(failure));
            }
        }
        rows
    }
}

/// Makes the stages that this host can run, and rows for those that it cannot.
fn prepare(options: &Options, measures: &[Measure]) -> Result<(Vec<Stage>, Vec<Row>)> {
    let protocols: BTreeSet<Protocol> = measures.iter().map(|measure| measure.protocol()).collect();
    let plans = |path: Path| {
        let mut plans: Vec<Plan> = Vec::new();
        for &protocol in &protocols {
            for (services, endpoints) in options.sizes() {
                let services = if path.is_without_service() {
                    1
                } else {
                    services
                };
                plans.push(Plan {
                    services,
                    endpoints,
                    protocol,
                });
            }
        }
        plans.sort_unstable();
        plans.dedup();
        plans
    };
    let paths = || Path::ALL.into_iter().filter(|path| options.wants(*path));
    let progress = Progress::new(paths().map(|path| plans(path).len()).sum());
    let (mut stages, mut rows) = (Vec::new(), Vec::new());
    for path in paths() {
        let obstacle = stage::obstacle(path);
        for plan in plans(path) {
            interrupt::check()?;
            progress.note(&format!(
                "loading {} services of {} endpoints by {}",
                plan.services,
                plan.endpoints,
                path.name()
            ));
            let reason = obstacle.clone().or_else(|| options.too_many(path, &plan));
            let stage = match reason {
                Some(reason) => Err(reason),
                None => probed(path, plan).map_err(|error| format!("{error:#}")),
            };
            match stage {
                Ok(stage) => stages.push(stage),
                Err(reason) => rows.extend(unavailable(measures, path, plan, &reason)),
            }
            progress.step();
        }
    }
    interrupt::check()?;
    Ok((stages, rows))
}

fn probed(path: Path, plan: Plan) -> Result<Stage> {
    let mut stage = Stage::new(path, plan)?;
    load::probe(&mut stage)?;
    Ok(stage)
}

fn unavailable(measures: &[Measure], path: Path, plan: Plan, reason: &str) -> Vec<Row> {
    measures
        .iter()
        .filter(|measure| measure.protocol() == plan.protocol && measure.fits(path))
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
