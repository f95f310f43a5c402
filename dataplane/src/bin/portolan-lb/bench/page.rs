//! The report as one HTML page that needs nothing else: charts are SVG in it, and it prints.

use std::{collections::BTreeSet, fmt::Write};

use super::{paths::Path, report::figure, row::Row};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}table{border-collapse:collapse;font-size:.8rem;width:100%}\
td,th{padding:.15rem .5rem;border-bottom:1px solid #d8dee4;text-align:right}td:first-child,th:first-child,.l{text-align:left}\
figure{margin:1rem 0;break-inside:avoid}figcaption{font-weight:600}.no{color:#9a6700}svg{width:100%;height:auto}\
svg text{font:11px system-ui,sans-serif;fill:#1b1f24}@media print{body{margin:0;max-width:none}}";
const COLOURS: [&str; 10] = [
    "#0969da", "#cf222e", "#1a7f37", "#8250df", "#bf8700", "#1b7c83", "#bc4c00", "#6e7781",
    "#bf3989", "#57606a",
];

/// What is measured by each benchmark, and whether more is better.
const CHARTS: [(&str, &str, &str); 12] = [
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
        "paths/udp_new_flow",
        "p50",
        "Request and response on a new UDP flow, median, in microseconds. Less is better.",
    ),
    (
        "paths/udp_flood",
        "packets_per_second",
        "UDP packets a second on one flow. More is better.",
    ),
    (
        "paths/udp_flood",
        "cpu_ns_per_packet",
        "CPU time of a UDP packet, in nanoseconds. Less is better.",
    ),
    (
        "paths/tcp_stream",
        "throughput",
        "One TCP stream, in Gbit/s. More is better.",
    ),
    (
        "tables/load",
        "milliseconds",
        "Time to load all services, in milliseconds. Less is better.",
    ),
    (
        "tables/update_one",
        "milliseconds",
        "Time to change one endpoint, in milliseconds. Less is better.",
    ),
    (
        "memory/maps",
        "megabytes",
        "Memory of the kernel's maps, in megabytes. Less is better.",
    ),
];

/// The page.
pub fn page(rows: &[Row], machine: &[(String, String)]) -> String {
    let mut body = String::new();
    for (name, metric, caption) in CHARTS {
        let chosen: Vec<&Row> = rows
            .iter()
            .filter(|row| row.name == name && row.metric == metric && row.median.is_some())
            .collect();
        if chosen.is_empty() {
            continue;
        }
        let _ = write!(body, "<h2>{name}</h2>");
        bars(&mut body, caption, &chosen);
        let services: BTreeSet<u32> = chosen.iter().filter_map(|row| row.services).collect();
        if services.len() > 1 {
            let series = |row: &Row| row.path.clone().unwrap_or_default();
            lines(
                &mut body,
                "The same against the number of services",
                &chosen,
                series,
                |row| row.services,
            );
        }
    }
    micro(&mut body, rows);
    let facts = machine
        .iter()
        .fold(String::new(), |mut facts, (what, value)| {
            let _ = write!(
                facts,
                "<tr><td>{}</td><td class=l>{}</td></tr>",
                escape(what),
                escape(value)
            );
            facts
        });
    let legend = Path::ALL.iter().fold(String::new(), |mut legend, path| {
        let _ = write!(
            legend,
            "<tr><td>{}</td><td class=l>{}</td></tr>",
            path.name(),
            escape(path.description())
        );
        legend
    });
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>Forwarding paths</title><style>{STYLE}</style><h1>What each way through this host costs</h1>\
         <p>A service is an address and a port that clients connect to; something on the host has to rewrite their packets \
         so that they reach one of the servers behind it. This page compares ways to do that, and plain routing without any \
         (<b>direct</b>). Client and server share one CPU, so that a ratio is a ratio of cost. Runs of all paths were \
         interleaved and shuffled; figures are medians. A pale bar is not to be quoted: the table below says why.</p>\
         <h2>The machine</h2><table>{facts}</table><h2>The paths</h2><table>{legend}</table>{body}{}",
        all(rows)
    )
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
        lines(
            body,
            &caption,
            &of_family,
            |row| row.name.clone(),
            |row| row.flows,
        );
    }
}

/// A bar for each row, as long as its median.
fn bars(body: &mut String, caption: &str, rows: &[&Row]) {
    let most = rows
        .iter()
        .filter_map(|row| row.median)
        .fold(f64::MIN_POSITIVE, f64::max);
    let height = rows.len() * 20 + 10;
    let _ = write!(
        body,
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 800 {height}\">",
        escape(caption)
    );
    for (index, row) in rows.iter().enumerate() {
        let median = row.median.unwrap_or(0.0);
        let services = row
            .services
            .map_or(String::new(), |services| format!(" {services}"));
        let label = format!("{}{services}", row.path.as_deref().unwrap_or(&row.name));
        let ratio = row
            .ratio
            .map_or(String::new(), |ratio| format!("  {ratio:.2} of direct"));
        let (y, width) = (index * 20 + 4, median / most * 440.0);
        let colour = if row.valid { COLOURS[0] } else { "#b6d4fe" };
        let _ = write!(
            body,
            "<text x=0 y={} >{}</text><rect x=180 y={y} width={width:.1} height=15 fill=\"{colour}\"/><text x={:.1} y={}>{}{ratio}</text>",
            y + 12,
            escape(&label),
            186.0 + width,
            y + 12,
            figure(row.median),
        );
    }
    body.push_str("</svg></figure>");
}

/// A line for each series over a logarithmic axis.
fn lines(
    body: &mut String,
    caption: &str,
    rows: &[&Row],
    series: impl Fn(&Row) -> String,
    at: impl Fn(&Row) -> Option<u32>,
) {
    let points: BTreeSet<u32> = rows.iter().filter_map(|row| at(row)).collect();
    let (Some(&first), Some(&last)) = (points.first(), points.last()) else {
        return;
    };
    let most = rows
        .iter()
        .filter_map(|row| row.median)
        .fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: u32| f64::from(value.max(1)).ln();
    let span = (scale(last) - scale(first)).max(1e-9);
    let x = |value: u32| 60.0 + (scale(value) - scale(first)) / span * 540.0;
    let y = |value: f64| 220.0 - value / most * 200.0;
    let _ = write!(
        body,
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 800 250\"><path d=\"M60 20V220H610\" fill=none stroke=\"#6e7781\"/>\
         <text x=0 y=26>{}</text><text x=40 y=224>0</text>",
        escape(caption),
        figure(Some(most)),
    );
    for &point in &points {
        let _ = write!(
            body,
            "<text x={:.0} y=238 text-anchor=middle>{point}</text>",
            x(point)
        );
    }
    let names: BTreeSet<String> = rows.iter().map(|row| series(row)).collect();
    for (index, name) in names.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut of_series: Vec<(u32, f64)> = rows
            .iter()
            .filter(|row| series(row) == *name)
            .filter_map(|row| Some((at(row)?, row.median?)))
            .collect();
        of_series.sort_by_key(|(point, _)| *point);
        let path: Vec<String> = of_series
            .iter()
            .map(|&(point, value)| format!("{:.1} {:.1}", x(point), y(value)))
            .collect();
        let _ = write!(
            body,
            "<path d=\"M{}\" fill=none stroke=\"{colour}\" stroke-width=2 />",
            path.join("L")
        );
        for &(point, value) in &of_series {
            let _ = write!(
                body,
                "<circle cx={:.1} cy={:.1} r=3 fill=\"{colour}\"/>",
                x(point),
                y(value)
            );
        }
        let _ = write!(
            body,
            "<rect x=625 y={} width=10 height=10 fill=\"{colour}\"/><text x=640 y={}>{}</text>",
            20 + index * 16,
            29 + index * 16,
            escape(name)
        );
    }
    body.push_str("</svg></figure>");
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
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
            rows.push(row);
        }
        rows.push(Row::new("paths/connect", "none", "").invalid("no <such> path"));
        let page = page(&rows, &[("kernel".to_owned(), "6.18".to_owned())]);
        assert!(page.contains("<svg") && page.contains("no &lt;such&gt; path"));
        assert!(!page.contains("http") && !page.contains("<script"));
        assert_eq!(page.matches("<tr><td>paths/connect").count(), 3);
    }
}
