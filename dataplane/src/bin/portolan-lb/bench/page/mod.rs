//! The report as one HTML page that needs nothing else: charts are SVG in it, and it prints.

mod charts;

use std::{collections::BTreeSet, fmt::Write};

use portolan_dataplane::local_share::simulate::{Course, Policy, Scenario, Second, simulate};

use super::{noise, paths::Path, report::figure, row::Row};
use charts::{Axis, Bar, Line, bars, escape, lines};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem;break-after:avoid}table{border-collapse:collapse;font-size:.8rem;width:100%}\
td,th{padding:.15rem .5rem;border-bottom:1px solid #d8dee4;text-align:right}td:first-child,th:first-child,.l{text-align:left}\
figure{margin:1rem 0;break-inside:avoid}figcaption{font-weight:600}.no{color:#9a6700}svg{width:100%;height:auto}\
svg text{font:11px system-ui,sans-serif;fill:#1b1f24;white-space:pre}tr{break-inside:avoid}\
@media print{body{margin:0;max-width:none;font-size:11px}*{print-color-adjust:exact}}";

/// What is charted, and how to read it.
const CHARTS: [(&str, &str, &str); 17] = [
    (
        "paths/connect",
        "connections_per_second",
        "New connections a second (connect, request, response, close). More is better.",
    ),
    (
        "paths/connect",
        "cpu_us_per_connection",
        "CPU time of a connection, both ends and the node, in microseconds. Less is better.",
    ),
    (
        "paths/connect_latency",
        "p50",
        "Time until a connection stands, median, in microseconds. Less is better.",
    ),
    (
        "paths/connect_latency",
        "p99",
        "Time until a connection stands, 99th percentile, in microseconds. Less is better.",
    ),
    (
        "paths/tcp_rr",
        "p50",
        "Request and response on a standing connection, median, in microseconds. Less is better.",
    ),
    (
        "paths/udp_rr",
        "p50",
        "Request and response on a standing UDP flow, median, in microseconds. Less is better.",
    ),
    (
        "paths/udp_new_flow",
        "p50",
        "Request and response on a new UDP flow, median, in microseconds. Less is better.",
    ),
    (
        "paths/udp_new_flow",
        "p99",
        "Request and response on a new UDP flow, 99th percentile, in microseconds. Less is better.",
    ),
    (
        "paths/udp_flood",
        "packets_per_second",
        "UDP packets a second on one flow. More is better.",
    ),
    (
        "paths/udp_flood",
        "cpu_ns_per_packet",
        "CPU time of a UDP packet, both ends and the node, in nanoseconds. Less is better.",
    ),
    (
        "paths/tcp_stream",
        "throughput",
        "One TCP stream, in Gbit/s. More is better.",
    ),
    (
        "paths/churn",
        "lost_new",
        "Connections that could not be opened while the service's endpoints changed. None is right.",
    ),
    (
        "paths/churn",
        "lost_standing",
        "Connections that broke while the service's endpoints changed. None is right.",
    ),
    (
        "tables/load",
        "milliseconds",
        "Time to load all services, in milliseconds. Less is better.",
    ),
    (
        "tables/update_one",
        "milliseconds",
        "Time from the change of one endpoint until the first connection follows it, in milliseconds. Less is better.",
    ),
    (
        "memory/maps",
        "megabytes",
        "Memory that the kernel holds for the table, in megabytes. Less is better.",
    ),
    (
        "memory/agent",
        "megabytes",
        "Memory of the program that loads the table, in megabytes. Less is better.",
    ),
];

/// The page.
pub fn page(rows: &[Row], machine: &[(String, String)]) -> String {
    let mut body = String::new();
    let mut heading = "";
    for (name, metric, caption) in CHARTS {
        let chosen: Vec<&Row> = rows
            .iter()
            .filter(|row| row.name == name && row.metric == metric && row.median.is_some())
            .collect();
        if chosen.is_empty() {
            continue;
        }
        if heading != name {
            let _ = write!(body, "<h2>{name}</h2>");
            heading = name;
        }
        chart(&mut body, caption, &chosen);
    }
    micro(&mut body, rows);
    local_share(&mut body);
    let table = |pairs: &mut dyn Iterator<Item = (&str, &str)>| {
        pairs.fold(String::new(), |mut text, (what, value)| {
            let (what, value) = (escape(what), escape(value));
            let _ = write!(text, "<tr><td>{what}</td><td class=l>{value}</td></tr>");
            text
        })
    };
    let machine = if machine.is_empty() {
        "<p>These rows were read from a file.</p>".to_owned()
    } else {
        let facts = table(&mut (machine.iter()).map(|(what, value)| (&what[..], &value[..])));
        format!("<table>{facts}</table>")
    };
    let legend = table(&mut (Path::ALL.iter()).map(|path| (path.name(), path.description())));
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Forwarding paths</title><style>{STYLE}</style><h1>What each way through this host costs</h1>\
         <p>A service is an address and a port that clients connect to; something on the host has to rewrite their packets \
         so that they reach one of the servers behind it. This page compares ways to do that, and plain routing without any \
         (<b>direct</b>). Client and server share one CPU, so that a ratio is a ratio of cost. Runs of all paths were \
         interleaved and shuffled; figures are medians. Where latency is told, requests were due at fixed times, and each \
         was timed from when it was due. A pale bar is not to be quoted: the table at the end says why.</p>\
         <h2>The machine</h2>{machine}<h2>The paths</h2><table>{legend}</table>{}{body}{}",
        doubts(rows),
        all(rows)
    )
}

/// What the runs do not tell.
fn doubts(rows: &[Row]) -> String {
    let doubts = noise::not_told_apart(rows);
    if doubts.is_empty() {
        return String::new();
    }
    let items = doubts.iter().fold(String::new(), |mut items, doubt| {
        let _ = write!(items, "<li>{}", escape(doubt));
        items
    });
    format!("<h2>What the runs do not tell</h2><ul class=no>{items}</ul>")
}

/// Bars of the smallest table, and lines against what else was varied.
fn chart(body: &mut String, caption: &str, rows: &[&Row]) {
    let least = rows.iter().filter_map(|row| row.services).min();
    // Most rows have the endpoints that the comparison was made with.
    let usual = rows.iter().filter_map(|row| row.endpoints);
    let count = |endpoints| usual.clone().filter(|other| *other == endpoints).count();
    let usual_endpoints = usual.clone().max_by_key(|&endpoints| count(endpoints));
    let of_usual: Vec<&Row> = (rows.iter().copied())
        .filter(|row| row.endpoints == usual_endpoints)
        .collect();
    let smallest: Vec<Bar> = of_usual
        .iter()
        .filter(|row| row.services == least)
        .map(|row| Bar {
            label: row.path.clone().unwrap_or_else(|| row.name.clone()),
            value: row.median.unwrap_or(0.0),
            note: (row.ratio).map_or_else(String::new, |ratio| format!("{ratio:.2} of direct")),
            is_valid: row.valid,
        })
        .collect();
    let services = least.map_or_else(String::new, |least| format!(" Services: {least}."));
    bars(body, &format!("{caption}{services}"), &smallest);
    against(
        body,
        "The same against the number of services.",
        &of_usual,
        |row| row.services,
    );
    let of_least: Vec<&Row> = (rows.iter().copied())
        .filter(|row| row.services == least)
        .collect();
    against(
        body,
        "The same against the number of endpoints of a service.",
        &of_least,
        |row| row.endpoints,
    );
}

/// Lines, if there is more than one point to join.
fn against(body: &mut String, caption: &str, rows: &[&Row], at: fn(&Row) -> Option<u32>) {
    let points: BTreeSet<u32> = rows.iter().filter_map(|row| at(row)).collect();
    if points.len() > 1 {
        let mut series = series(rows, |row| row.path.clone().unwrap_or_default(), at);
        for line in &mut series {
            // What has no services costs the same beside any number of them.
            let is_flat = Path::ALL
                .iter()
                .any(|path| path.is_without_service() && path.name() == line.name);
            if let (true, [point], Some(&last)) = (is_flat, &line.points[..], points.last()) {
                let end = (f64::from(last), point.1);
                line.points.push(end);
            }
        }
        lines(body, caption, Axis::Logarithmic, &series);
    }
}

fn series(
    rows: &[&Row],
    name: impl Fn(&Row) -> String,
    at: impl Fn(&Row) -> Option<u32>,
) -> Vec<Line> {
    let mut series: Vec<Line> = Vec::new();
    for row in rows {
        let (Some(at), Some(median)) = (at(row), row.median) else {
            continue;
        };
        let (name, point) = (name(row), (f64::from(at), median));
        match series.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => series.push(Line {
                name,
                points: vec![point],
            }),
        }
    }
    for line in &mut series {
        line.points
            .sort_by(|one, other| f64::total_cmp(&one.0, &other.0));
    }
    series
}

fn micro(body: &mut String, rows: &[Row]) {
    let chosen: Vec<&Row> = rows
        .iter()
        .filter(|row| {
            row.metric == "ns_per_packet" && row.services == Some(1) && row.flows.is_some()
        })
        .collect();
    if chosen.is_empty() {
        return;
    }
    body.push_str("<h2>Programs by themselves</h2><p>By BPF_PROG_TEST_RUN: the packet is made anew before every run and \
                   checked after it. <b>floor</b> is what no flow table can beat: hash, one random line of memory, rewrite; \
                   <b>lru_hash</b> is the kernel's own LRU map.</p>");
    for family in ["ipv4_tcp", "ipv6_udp"] {
        let of_family: Vec<&Row> = chosen
            .iter()
            .copied()
            .filter(|row| row.name.ends_with(family))
            .collect();
        let caption =
            format!("Nanoseconds a packet against the number of flows, {family}. Less is better.");
        let series = series(&of_family, |row| row.name.clone(), |row| row.flows);
        lines(body, &caption, Axis::Logarithmic, &series);
    }
}

/// How the local share behaves, by a simulation: the same controller that agents run, and the same numbers every time.
fn local_share(body: &mut String) {
    type Of = fn(&Second) -> f64;

    let simulation = simulate(Scenario::new(1));
    let scenario = &simulation.scenario;
    let _ = write!(
        body,
        "<h2>Local while it can be: a simulation</h2><p>New flows stay on their own node as long as its backends can take \
         them. Here {} nodes have one backend and clients each, at six tenths of what a backend can serve. From second {} to \
         {} something else takes two thirds of one node's CPU. <b>load-aware</b> is what a service gets that asks for \
         nothing; <b>always-local</b> and <b>even</b> (as kube-proxy spreads) stand beside it. This part is not measured but \
         computed, and the same on every machine.</p>",
        scenario.nodes, scenario.hot.0, scenario.hot.1
    );
    let charts: [(&str, Of); 3] = [
        (
            "Part of the hot node's new flows that stay there.",
            |second| second.local_share,
        ),
        (
            "Part of all new flows that meet an overloaded backend. Less is better.",
            |second| second.overloaded,
        ),
        (
            "Part of all new flows that cross to another node. Less is better.",
            |second| second.remote,
        ),
    ];
    for (caption, of) in charts {
        let line = |course: &Course| Line {
            name: match course.policy {
                Policy::LoadAware => "load-aware",
                Policy::AlwaysLocal => "always-local",
                Policy::Even => "even",
            }
            .to_owned(),
            points: (course.seconds.iter())
                .map(|second| (seconds(second.second), of(second)))
                .collect(),
        };
        let series: Vec<Line> = simulation.courses.iter().map(line).collect();
        lines(body, caption, Axis::Linear, &series);
    }
}

fn seconds(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::NAN, f64::from)
}

/// Every row.
fn all(rows: &[Row]) -> String {
    let mut text = String::from(
        "<h2>All figures</h2><table><tr><th>benchmark<th>path<th>services<th>endpoints<th>flows<th>metric<th>median<th>min<th>max<th>unit<th>runs<th>to direct<th class=l>doubt</tr>",
    );
    let number = |value: Option<u32>| value.map_or(String::new(), |value| value.to_string());
    for row in rows {
        let class = if row.valid { "" } else { " class=no" };
        let _ = write!(
            text,
            "<tr{class}><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td class=l>{}</tr>",
            escape(&row.name),
            row.path.as_deref().unwrap_or_default(),
            number(row.services),
            number(row.endpoints),
            number(row.flows),
            escape(&row.metric),
            figure(row.median),
            figure(row.min),
            figure(row.max),
            escape(&row.unit),
            row.runs,
            row.ratio
                .map_or(String::new(), |ratio| format!("{ratio:.3}")),
            escape(row.reason.as_deref().unwrap_or_default()),
        );
    }
    text + "</table>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_else_and_shows_every_row() {
        let mut rows = Vec::new();
        for (path, services) in [("direct", 1), ("tcx", 1), ("tcx", 10_000)] {
            let mut row = Row::new("paths/connect", "connections_per_second", "1/s").with(&[5e4]);
            row.path = Some(path.to_owned());
            row.services = Some(services);
            row.endpoints = Some(3);
            rows.push(row);
        }
        rows.push(Row::new("paths/connect", "none", "").invalid("no <such> path"));
        let page = page(&rows, &[("kernel".to_owned(), "6.18".to_owned())]);
        assert!(page.contains("<svg") && page.contains("no &lt;such&gt; path"));
        assert!(!page.contains("http") && !page.contains("<script"));
        assert_eq!(page.matches("<tr><td>paths/connect").count(), 3);
        assert!(page.contains("against the number of services"));
        assert!(page.contains("load-aware") && page.contains("@media print"));
    }
}
