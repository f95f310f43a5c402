//! `/metrics`: what Prometheus reads of the control plane, in its text format.

use std::fmt::Write;

use axum::body::Body;
use http::{Response, StatusCode};

use super::respond;
use crate::routing::Latency;

const DURATION: &str = "portolan_network_programming_duration_seconds";
const GENERATION: &str = "portolan_node_routes_generation";

/// The page.
pub fn answer(latency: &Latency) -> Response<Body> {
    respond::text(StatusCode::OK, page(latency))
}

fn page(latency: &Latency) -> String {
    let mut page = String::new();
    let mut line = |text: String| writeln!(page, "{text}").expect("strings take anything");
    line(format!(
        "# HELP {DURATION} From a change of Services or their endpoints until every connected node has it in its maps"
    ));
    line(format!("# TYPE {DURATION} histogram"));
    let mut count = 0;
    for (end, within) in &latency.buckets {
        count += within;
        let end = match end {
            #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
            Some(milliseconds) => (*milliseconds as f64 / 1_000.0).to_string(),
            None => "+Inf".to_owned(),
        };
        line(format!("{DURATION}_bucket{{le=\"{end}\"}} {count}"));
    }
    line(format!("{DURATION}_sum {}", latency.total.as_secs_f64()));
    line(format!("{DURATION}_count {count}"));
    line(format!(
        "# HELP {GENERATION} The generation of routes that a connected node has in its maps"
    ));
    line(format!("# TYPE {GENERATION} gauge"));
    for (node, generation) in &latency.nodes {
        line(format!("{GENERATION}{{node=\"{node}\"}} {generation}"));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buckets_add_up() {
        let latency = Latency {
            buckets: vec![(Some(1), 2), (Some(50), 3), (None, 1)],
            total: Duration::from_millis(1_500),
            slowest: Duration::from_secs(1),
            nodes: [("n1".to_owned(), 42)].into(),
        };
        let page = page(&latency);
        for line in [
            "portolan_network_programming_duration_seconds_bucket{le=\"0.001\"} 2",
            "portolan_network_programming_duration_seconds_bucket{le=\"0.05\"} 5",
            "portolan_network_programming_duration_seconds_bucket{le=\"+Inf\"} 6",
            "portolan_network_programming_duration_seconds_sum 1.5",
            "portolan_network_programming_duration_seconds_count 6",
            "portolan_node_routes_generation{node=\"n1\"} 42",
        ] {
            assert!(page.lines().any(|other| other == line), "{line} in\n{page}");
        }
    }
}
