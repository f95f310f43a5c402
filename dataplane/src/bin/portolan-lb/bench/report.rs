//! Rows for people: a table in the terminal, and what changed since an older run.

use std::{collections::BTreeMap, fmt::Write, path::PathBuf};

use anyhow::{Context, Result};

use super::{
    noise,
    row::{Row, median},
};
use crate::status::table;

/// All rows, a table for each benchmark.
pub fn tables(rows: &[Row]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for row in rows {
        if !names.contains(&row.name.as_str()) {
            names.push(&row.name);
        }
    }
    let mut text = String::new();
    for name in names {
        text.push_str(name);
        text.push('\n');
        let of_name = rows.iter().filter(|row| row.name == name);
        let headers = [
            "  PATH",
            "SERVICES",
            "ENDPOINTS",
            "FLOWS",
            "METRIC",
            "MEDIAN",
            "MIN",
            "MAX",
            "UNIT",
            "TO DIRECT",
            "",
        ];
        text.push_str(&table(&headers, of_name.map(cells)));
        text.push('\n');
    }
    let noisy = rows.iter().filter(|row| {
        let reason = row.reason.as_deref().unwrap_or_default();
        reason.contains("noisy")
    });
    let noisy = noisy.count();
    if noisy > 0 {
        let _ = writeln!(
            text,
            "warning: the machine was too noisy for {noisy} of {} figures; the last column says for which",
            rows.len()
        );
    }
    for warning in noise::not_told_apart(rows) {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

fn cells(row: &Row) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    vec![
        format!("  {}", row.path.as_deref().unwrap_or("-")),
        number(row.services),
        number(row.endpoints),
        number(row.flows),
        row.metric.clone(),
        figure(row.median),
        figure(row.min),
        figure(row.max),
        row.unit.clone(),
        row.ratio
            .map_or("-".to_owned(), |ratio| format!("{ratio:.3}")),
        row.reason.clone().unwrap_or_default(),
    ]
}

/// A figure with as many digits as say something.
pub fn figure(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// The rows in files, those of the same figure as one: the median of medians, the least and the most of all runs.
pub fn read(files: &[PathBuf]) -> Result<Vec<Row>> {
    let mut all: Vec<Row> = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let rows: Vec<Row> = serde_json::from_str(&text)
            .with_context(|| format!("{} holds no rows of a benchmark", file.display()))?;
        all.extend(rows);
    }
    let mut merged: Vec<Row> = Vec::new();
    for row in &all {
        if !merged.iter().any(|known| key(known) == key(row)) {
            let same: Vec<&Row> = all.iter().filter(|other| key(other) == key(row)).collect();
            merged.push(merge(row, &same));
        }
    }
    Ok(merged)
}

fn merge(first: &Row, same: &[&Row]) -> Row {
    let middle = |figure: fn(&Row) -> Option<f64>| {
        let mut figures: Vec<f64> = same.iter().filter_map(|row| figure(row)).collect();
        figures.sort_by(f64::total_cmp);
        median(&figures)
    };
    let bound = |figure: fn(&Row) -> Option<f64>, choose: fn(f64, f64) -> f64| {
        same.iter().filter_map(|row| figure(row)).reduce(choose)
    };
    Row {
        median: middle(|row| row.median),
        ratio: middle(|row| row.ratio),
        min: bound(|row| row.min, f64::min),
        max: bound(|row| row.max, f64::max),
        runs: same.iter().map(|row| row.runs).sum(),
        valid: same.iter().all(|row| row.valid),
        reason: same.iter().find_map(|row| row.reason.clone()),
        ..first.clone()
    }
}

/// What changed since older rows.
pub fn compare(rows: &[Row], old: &[Row]) -> String {
    let old: BTreeMap<_, &Row> = old.iter().map(|row| (key(row), row)).collect();
    let changes: Vec<Vec<String>> = rows
        .iter()
        .filter_map(|row| Some(change(row, old.get(&key(row))?)))
        .collect();
    if changes.is_empty() {
        return "nothing of this was measured before\n".to_owned();
    }
    let headers = [
        "BENCHMARK",
        "PATH",
        "SERVICES",
        "FLOWS",
        "METRIC",
        "BEFORE",
        "NOW",
        "CHANGE",
        "",
    ];
    table(&headers, changes.into_iter())
}

type Key<'a> = (
    &'a str,
    Option<&'a str>,
    Option<u32>,
    Option<u32>,
    Option<u32>,
    &'a str,
);

fn key(row: &Row) -> Key<'_> {
    (
        &row.name,
        row.path.as_deref(),
        row.services,
        row.endpoints,
        row.flows,
        &row.metric,
    )
}

fn change(row: &Row, old: &Row) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let change = match (old.median, row.median) {
        (Some(before), Some(now)) if before != 0.0 => {
            format!("{:+.1} %", (now / before - 1.0) * 100.0)
        }
        _ => "-".to_owned(),
    };
    let apart = match (old.min, old.max, row.min, row.max) {
        (Some(low), Some(high), Some(min), Some(max)) => max < low || min > high,
        _ => false,
    };
    vec![
        row.name.clone(),
        row.path.clone().unwrap_or("-".to_owned()),
        number(row.services),
        number(row.flows),
        row.metric.clone(),
        figure(old.median),
        figure(row.median),
        change,
        if apart {
            "every run beyond every run before"
        } else {
            ""
        }
        .to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_beyond_all_runs_is_marked() {
        let row = |runs: &[f64]| Row::new("xdp/hit/ipv4_tcp", "ns_per_packet", "ns").with(runs);
        let cells = change(&row(&[20.0, 22.0]), &row(&[40.0, 44.0]));
        assert_eq!(cells[7], "-50.0 %");
        assert!(!cells[8].is_empty());
        assert!(change(&row(&[20.0, 42.0]), &row(&[40.0, 44.0]))[8].is_empty());
    }

    #[test]
    fn rows_of_several_files_are_one_run() {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let file = |name: &str, runs: &[f64]| {
            let row = Row::new("xdp/hit/ipv4_tcp", "ns_per_packet", "ns").with(runs);
            let path = folder.path().join(name);
            std::fs::write(&path, serde_json::to_vec(&[row]).expect("a row is plain"))
                .expect("the folder can be written");
            path
        };
        let files = [file("a", &[20.0, 22.0]), file("b", &[30.0, 34.0])];
        let rows = read(&files).expect("rows were written");
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(
            (row.median, row.min, row.max),
            (Some(26.5), Some(20.0), Some(34.0))
        );
        assert_eq!(row.runs, 4);
        let broken = folder.path().join("c");
        std::fs::write(&broken, "{}").expect("the folder can be written");
        assert!(read(&[broken]).is_err());
    }
}
