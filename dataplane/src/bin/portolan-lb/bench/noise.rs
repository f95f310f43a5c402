//! What figures say and what they do not: ratios, runs that differ too much, paths that cannot be told apart.

use std::collections::BTreeMap;

use super::row::Row;

/// Runs that differ by more than this share of their median say nothing.
const NOISE: f64 = 0.25;
/// Medians that differ by more than this are different paths' if their runs do not overlap.
const ALIKE: f64 = 0.01;
/// The metrics that paths are chosen by.
const TELLING: [&str; 6] = [
    "connections_per_second",
    "p50",
    "p99",
    "packets_per_second",
    "throughput",
    "milliseconds",
];

/// A row whose runs differ too much is not to be quoted.
pub fn judged(row: Row) -> Row {
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
    // How many connections were lost is a count, small and as it comes.
    if spread > allowed && row.unit != "connections" {
        return row.invalid(format!(
            "the machine was too noisy: runs differ by {:.0} % of their median",
            spread * 100.0
        ));
    }
    row
}

/// Says of each row how it compares with `direct` in the same run, with as many endpoints.
pub fn ratios(rows: &mut [Row]) {
    let key = |row: &Row| (row.name.clone(), row.metric.clone(), row.endpoints);
    let direct: BTreeMap<_, f64> = rows
        .iter()
        .filter(|row| row.path.as_deref() == Some("direct"))
        .filter_map(|row| Some((key(row), row.median?)))
        .collect();
    for row in rows {
        if let (Some(median), Some(&direct)) = (row.median, direct.get(&key(row)))
            && direct > 0.0
        {
            row.ratio = Some((median / direct * 1_000.0).round() / 1_000.0);
        }
    }
}

/// Which paths the runs do not tell apart, in words.
pub fn not_told_apart(rows: &[Row]) -> Vec<String> {
    let mut groups: BTreeMap<_, Vec<&Row>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.runs > 1) {
        if row.path.is_some() && TELLING.contains(&row.metric.as_str()) {
            let key = (&row.name, &row.metric, row.services, row.endpoints);
            groups.entry(key).or_default().push(row);
        }
    }
    let mut warnings = Vec::new();
    for ((name, metric, services, endpoints), mut group) in groups {
        group.sort_by(|one, other| f64::total_cmp(&middle(one), &middle(other)));
        for alike in group.chunk_by(|one, other| are_alike(one, other)) {
            if alike.len() > 1 {
                let paths: Vec<&str> = alike.iter().filter_map(|row| row.path.as_deref()).collect();
                let number =
                    |count: Option<u32>| count.map_or("-".into(), |count| count.to_string());
                warnings.push(format!(
                    "{name} {metric}, {} services of {} endpoints: the runs do not tell {} apart",
                    number(services),
                    number(endpoints),
                    paths.join(", ")
                ));
            }
        }
    }
    warnings
}

fn middle(row: &Row) -> f64 {
    row.median.unwrap_or(0.0)
}

/// Whether two rows' medians differ, but not by more than the runs of each.
fn are_alike(one: &Row, other: &Row) -> bool {
    let (Some(low), Some(high)) = (one.median, other.median) else {
        return false;
    };
    let differ = (high - low).abs() > ALIKE * high.abs();
    differ && one.max >= other.min && other.max >= one.min
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &str, runs: &[f64]) -> Row {
        let mut row = Row::new("paths/connect", "connections_per_second", "1/s").with(runs);
        row.path = Some(path.to_owned());
        row.services = Some(1);
        judged(row)
    }

    #[test]
    fn noise_and_ratios_are_said_of_each_row() {
        let mut rows = [row("direct", &[100.0, 101.0]), row("tcx", &[50.0, 110.0])];
        ratios(&mut rows);
        assert_eq!(rows[0].ratio, Some(1.0));
        assert!(rows[0].valid && !rows[1].valid);
        assert_eq!(rows[1].ratio, Some(0.796));
    }

    #[test]
    fn paths_whose_runs_overlap_are_not_told_apart() {
        let rows = [
            row("direct", &[100.0, 110.0]),
            row("tcx", &[104.0, 112.0]),
            row("nftables", &[80.0, 82.0]),
        ];
        let warnings = not_told_apart(&rows);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with("do not tell direct, tcx apart"));
        assert!(not_told_apart(&[rows[0].clone(), rows[2].clone()]).is_empty());
    }
}
