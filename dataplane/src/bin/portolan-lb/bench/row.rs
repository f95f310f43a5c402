//! The rows of a report, and the statistics in them.

use serde::{Deserialize, Serialize};

/// One figure. The JSON report is an array of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which benchmark, such as "paths/connect".
    pub name: String,
    /// Which forwarding path, for benchmarks that compare them.
    pub path: Option<String>,
    /// How many services were loaded.
    pub services: Option<u32>,
    /// How many endpoints each had.
    pub endpoints: Option<u32>,
    /// How many flows the packets belonged to.
    pub flows: Option<u32>,
    /// What was measured.
    pub metric: String,
    /// In what.
    pub unit: String,
    /// The median over the runs; null if there was none.
    pub median: Option<f64>,
    /// The least.
    pub min: Option<f64>,
    /// The most.
    pub max: Option<f64>,
    /// How many runs.
    pub runs: usize,
    /// The median by that of the path `direct` in the same run.
    pub ratio: Option<f64>,
    /// Whether the intended path was taken and the machine was quiet enough.
    pub valid: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Row {
    /// A row of a benchmark without figures yet.
    pub fn new(name: &str, metric: &str, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: None,
            services: None,
            endpoints: None,
            flows: None,
            metric: metric.to_owned(),
            unit: unit.to_owned(),
            median: None,
            min: None,
            max: None,
            runs: 0,
            ratio: None,
            valid: true,
            reason: None,
        }
    }

    /// With the figures of the runs.
    #[must_use]
    pub fn with(mut self, runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        self.median = median(&sorted).map(round);
        self.min = sorted.first().copied().map(round);
        self.max = sorted.last().copied().map(round);
        self.runs = runs.len();
        self
    }

    /// With a doubt: the figures stand, but must not be quoted.
    #[must_use]
    pub fn invalid(mut self, reason: impl Into<String>) -> Self {
        self.valid = false;
        self.reason = Some(reason.into());
        self
    }
}

/// The middle of sorted numbers.
pub fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted {
        [] => None,
        _ if sorted.len() % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The value below which a share of sorted numbers lies.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index into numbers that fit in memory"
)]
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[(last as f64 * share).round() as usize])
}

/// To as many digits as such figures have.
fn round(value: f64) -> f64 {
    if value.abs() >= 1_000.0 {
        value.round()
    } else {
        (value * 1_000.0).round() / 1_000.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), Some(3.0));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 1.0), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_row_has_the_fields_that_its_readers_know() {
        let row = Row::new("xdp/empty", "ns_per_packet", "ns").with(&[6.0, 7.0, 5.0]);
        let json = serde_json::to_value(&row).expect("a row is plain");
        let fields: Vec<&str> = json
            .as_object()
            .expect("an object")
            .keys()
            .map(String::as_str)
            .collect();
        let mut expected = [
            "name",
            "path",
            "services",
            "endpoints",
            "flows",
            "metric",
            "unit",
            "median",
            "min",
            "max",
            "runs",
            "ratio",
            "valid",
        ];
        expected.sort_unstable();
        let mut sorted = fields.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
        assert_eq!((row.median, row.runs), (Some(6.0), 3));
        let doubted = serde_json::to_value(row.invalid("too noisy")).expect("a row is plain");
        assert_eq!(doubted["valid"], false);
        assert_eq!(doubted["reason"], "too noisy");
        for nothing in ["path", "services", "endpoints", "flows", "ratio"] {
            assert!(doubted[nothing].is_null(), "{nothing}");
        }
    }
}
