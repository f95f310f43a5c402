//! Rows for people: a table in the terminal, and what changed since an older run.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};

use super::row::Row;
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
    text
}

fn cells(row: &Row) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    vec![
        format!("  {}", row.path.as_deref().unwrap_or("-")),
        number(row.services),
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

/// What changed since the rows in a file.
pub fn compare(rows: &[Row], old: &Path) -> Result<String> {
    let text = std::fs::read_to_string(old).with_context(|| format!("read {}", old.display()))?;
    let old: Vec<Row> = serde_json::from_str(&text)
        .with_context(|| format!("{} holds no rows of a benchmark", old.display()))?;
    let old: BTreeMap<_, &Row> = old.iter().map(|row| (key(row), row)).collect();
    let changes = rows
        .iter()
        .filter_map(|row| Some(change(row, old.get(&key(row))?)));
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
    Ok(table(&headers, changes))
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
}
