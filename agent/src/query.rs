//! What the command line prints of a running agent: tables for people, JSON for programs.

#![forbid(unsafe_code)]

use std::{fmt::Write, path::Path};

use portolan_dataplane::{
    model::{Backend, ClassCounters, DropCount, Flow, Frontend, Locality, Protocol, Scope},
    report::{Filter, PacketReport},
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    admin::{AdminClientError, Request, ServiceReport, ask, follow},
    image,
};

/// Why nothing can be printed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The agent did not answer.
    #[error(transparent)]
    Agent(#[from] AdminClientError),
    /// It is an agent of another version.
    #[error("the agent's answer is not understood")]
    Answer(#[from] serde_json::Error),
}

/// The images on the node; needs no running agent.
pub fn images(state_dir: &Path, json: bool) -> anyhow::Result<String> {
    let images = image::list(state_dir)?;
    if json {
        return Ok(serde_json::to_string_pretty(&images)? + "\n");
    }
    let rows = images.into_iter().map(|image| {
        let size = format!("{} KiB", image.size.div_ceil(1024));
        [image.name, image.digest, size]
            .map(|cell| vec![cell])
            .to_vec()
    });
    Ok(table(&["IMAGE", "DIGEST", "SIZE"], rows))
}

/// Asks, and renders the answer.
pub fn query(state_dir: &Path, request: Request, json: bool) -> Result<String, QueryError> {
    let answer = ask(state_dir, request)?;
    if json {
        return Ok(serde_json::to_string_pretty(&answer)? + "\n");
    }
    match request {
        Request::Status => Ok(status_text(&answer)),
        Request::Services => {
            let head = head_line(&ask(state_dir, Request::Status)?);
            Ok(head + &services_table(&parse::<Vec<ServiceReport>>(answer)?))
        }
        Request::Flows => Ok(flows_table(&parse::<Vec<Flow>>(answer)?)),
        Request::Drops => Ok(drops_table(&parse::<Vec<DropCount>>(answer)?)),
    }
}

/// Prints what the programs report of packets, until that many have been printed or it is interrupted.
pub fn watch(
    state_dir: &Path,
    filter: Filter,
    count: Option<u64>,
    json: bool,
) -> Result<(), QueryError> {
    let mut left = count.unwrap_or(u64::MAX);
    let mut outcome = Ok(());
    follow(state_dir, filter, |report| {
        outcome = print_report(report, json);
        left = left.saturating_sub(1);
        outcome.is_ok() && left > 0
    })?;
    outcome
}

fn print_report(report: Value, json: bool) -> Result<(), QueryError> {
    if json {
        println!("{report}");
    } else {
        println!("{}", parse::<PacketReport>(report)?);
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(answer: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(answer)
}

fn head_line(status: &Value) -> String {
    format!(
        "node {}  generation {}  XDP {}\n\n",
        text(&status["node"]),
        text(&status["generation"]),
        text(&status["xdp"]),
    )
}

fn sockets_words(sockets: &Value) -> String {
    let state = text(&sockets["state"]);
    match state.as_str() {
        "attached" => format!("attached to {}", text(&sockets["cgroup"])),
        "unavailable" => format!("unavailable: {}", text(&sockets["reason"])),
        _ => state,
    }
}

fn fill_words(table: &Value) -> String {
    let fill = format!("{} of {}", text(&table["used"]), text(&table["capacity"]));
    match table["configured"].as_u64() {
        Some(configured) => format!("{fill} ({configured} once they are made anew)"),
        None => fill,
    }
}

fn device_words(device: &Value) -> String {
    let kind = text(&device["kind"]);
    match device["fallback"].as_str() {
        Some(why) => format!("{kind}, since there is no netkit: {why}"),
        None => kind,
    }
}

fn status_text(status: &Value) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(out, "{name:<14}{value}").expect("strings take anything");
    };
    line("node", text(&status["node"]));
    line("process", text(&status["pid"]));
    let connected = match status["connected"].as_bool() {
        Some(true) => "connected",
        _ => "not connected; serving the last routes",
    };
    line("control plane", connected.to_owned());
    line("generation", text(&status["generation"]));
    line("XDP", text(&status["xdp"]));
    line("tc", text(&status["tc"]));
    line("pod network", text(&status["pod_network"]));
    line("pod device", device_words(&status["pod_device"]));
    line("sockets", sockets_words(&status["sockets"]));
    for table in status["tables"].as_array().into_iter().flatten() {
        line(&text(&table["table"]), fill_words(table));
    }
    let adopted = text(&status["adopted"]);
    line(
        "adopted",
        format!(
            "{adopted} containers in {} ms",
            text(&status["adoption_ms"])
        ),
    );
    let pods = status["pods"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    line("pods", pods.len().to_string());
    if pods.is_empty() {
        return out;
    }
    out + "\n" + &pods_table(pods)
}

/// A pod's containers stand below one another.
fn pods_table(pods: &[Value]) -> String {
    let rows = pods.iter().map(|pod| {
        let of_containers = |field: &str| {
            let containers = pod["containers"].as_array().into_iter().flatten();
            containers
                .map(|container| text(&container[field]))
                .collect()
        };
        let addresses = pod["addresses"].as_array().into_iter().flatten();
        vec![
            vec![text(&pod["namespace"])],
            vec![text(&pod["name"])],
            addresses.map(text).collect(),
            of_containers("name"),
            of_containers("pid"),
            of_containers("restarts"),
        ]
    });
    let headers = [
        "NAMESPACE",
        "POD",
        "ADDRESSES",
        "CONTAINERS",
        "PIDS",
        "RESTARTS",
    ];
    table(&headers, rows)
}

fn services_table(reports: &[ServiceReport]) -> String {
    let headers = [
        "SERVICE",
        "FRONTENDS",
        "BACKENDS",
        "STAYS",
        "LOCAL",
        "ZONE",
        "REMOTE",
        "REFUSED",
        "PACKETS",
        "RESETS",
    ];
    let rows = reports.iter().map(|report| {
        let service = report.service.as_ref();
        let frontends = service.into_iter().flat_map(|service| &service.frontends);
        let backends = service.into_iter().flat_map(|service| &service.backends);
        let counters = &report.counters;
        let refusal = report
            .error
            .iter()
            .map(|error| format!("not in the maps: {error}"));
        let stays = counters.local_share.map_or_else(
            || "-".to_owned(),
            |share| format!("{}.{} %", share / 10, share % 10),
        );
        let mut row = vec![
            vec![report.name.0.clone()],
            frontends.map(frontend_text).chain(refusal).collect(),
            backends.map(backend_text).collect(),
            vec![stays],
        ];
        let classes = counters.classes().map(|(_, class)| class);
        let sum = |of: fn(&ClassCounters) -> u64| classes.iter().map(of).sum::<u64>();
        row.extend(
            [
                counters.local.flows,
                counters.zone.flows,
                counters.remote.flows,
                counters.refused,
                sum(|class| class.packets),
                sum(|class| class.resets),
            ]
            .map(|count| vec![count.to_string()]),
        );
        row
    });
    table(&headers, rows)
}

fn backend_text(backend: &Backend) -> String {
    let locality = locality_text(backend.locality);
    let ending = if backend.terminating {
        ", terminating"
    } else {
        ""
    };
    let weight = match backend.weight {
        Backend::ORDINARY_WEIGHT => String::new(),
        weight => format!(", weight {weight}"),
    };
    format!(
        "{} ({locality}{ending}{weight})",
        endpoint_text((backend.address, backend.port))
    )
}

fn flows_table(flows: &[Flow]) -> String {
    let headers = [
        "PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "LOCALITY", "STATE", "IDLE", "SERVICE",
    ];
    let rows = flows.iter().map(|flow| {
        [
            protocol_text(flow.protocol).to_owned(),
            endpoint_text(flow.client),
            endpoint_text(flow.frontend),
            endpoint_text(flow.backend),
            locality_text(flow.locality).to_owned(),
            flow.state.clone(),
            format!("{} s", flow.idle_seconds),
            flow.service
                .as_ref()
                .map_or_else(|| "-".to_owned(), |name| name.0.clone()),
        ]
        .map(|cell| vec![cell])
        .to_vec()
    });
    table(&headers, rows)
}

fn drops_table(drops: &[DropCount]) -> String {
    let rows = drops.iter().map(|drop| {
        [
            drop.reason.clone(),
            drop.packets.to_string(),
            drop.description.clone(),
        ]
        .map(|cell| vec![cell])
        .to_vec()
    });
    table(&["REASON", "PACKETS", "MEANING"], rows)
}

fn frontend_text(frontend: &Frontend) -> String {
    match frontend {
        Frontend::Address {
            address,
            port,
            scope,
        } => {
            let kind = match scope {
                Scope::Cluster => "",
                Scope::External => " (external)",
                Scope::LoadBalancer => " (load balancer)",
            };
            format!("{}{kind}", endpoint_text((*address, *port)))
        }
        Frontend::NodePort { port } => format!("node port {port}"),
    }
}

fn endpoint_text(endpoint: (std::net::IpAddr, u16)) -> String {
    std::net::SocketAddr::from(endpoint).to_string()
}

fn locality_text(locality: Locality) -> &'static str {
    match locality {
        Locality::Node => "node",
        Locality::Zone => "zone",
        Locality::Elsewhere => "elsewhere",
    }
}

fn protocol_text(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// A value without JSON's quotes.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns that are as wide as their widest cell; a cell may have several lines.
fn table(headers: &[&str], rows: impl Iterator<Item = Vec<Vec<String>>>) -> String {
    let mut lines: Vec<Vec<String>> =
        vec![headers.iter().map(|&header| header.to_owned()).collect()];
    for row in rows {
        let height = row.iter().map(Vec::len).max().unwrap_or_default();
        for number in 0..height {
            let line = row
                .iter()
                .map(|cell| cell.get(number).cloned().unwrap_or_default());
            lines.push(line.collect());
        }
    }
    let width_of = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headers.len()).map(width_of).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"));
        let text = cells.collect::<Vec<_>>().join("   ");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_shown_with_their_backends_below_each_other() {
        let reports = json!([{
            "name": "default/web:80/TCP",
            "service": {
                "name": "default/web:80/TCP", "protocol": "TCP",
                "frontends": [
                    {"Address": {"address": "10.96.0.10", "port": 80, "scope": "cluster"}},
                    {"NodePort": {"port": 30080}}
                ],
                "backends": [
                    {"address": "10.244.1.1", "port": 8080, "locality": "node", "terminating": false, "weight": 100},
                    {"address": "fd00::1", "port": 8080, "locality": "elsewhere", "terminating": true, "weight": 100}
                ],
                "internal_policy": "cluster", "external_policy": "cluster"
            },
            "counters": {
                "local": {"flows": 99, "packets": 990, "bytes": 63000, "resets": 2},
                "zone": {"flows": 0, "packets": 0, "bytes": 0, "resets": 0},
                "remote": {"flows": 1, "packets": 10, "bytes": 1000, "resets": 0},
                "refused": 0, "local_share": 925
            }
        }, {
            "name": "default/web:81/TCP", "service": null, "error": "10.96.0.10:80 belongs to default/web:80/TCP already",
            "counters": {
                "local": {"flows": 0, "packets": 0, "bytes": 0, "resets": 0},
                "zone": {"flows": 0, "packets": 0, "bytes": 0, "resets": 0},
                "remote": {"flows": 0, "packets": 0, "bytes": 0, "resets": 0},
                "refused": 0
            }
        }]);
        let reports: Vec<ServiceReport> = parse(reports).expect("reports");
        let shown = services_table(&reports);
        let expected = [
            "SERVICE              FRONTENDS                                                              BACKENDS                                  STAYS    LOCAL   ZONE   REMOTE   REFUSED   PACKETS   RESETS",
            "default/web:80/TCP   10.96.0.10:80                                                          10.244.1.1:8080 (node)                    92.5 %   99      0      1        0         1000      2",
            "                     node port 30080                                                        [fd00::1]:8080 (elsewhere, terminating)",
            "default/web:81/TCP   not in the maps: 10.96.0.10:80 belongs to default/web:80/TCP already                                             -        0       0      0        0         0         0",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected, "\n{shown}");
    }

    #[test]
    fn status_names_what_was_adopted() {
        let status = json!({
            "node": "n1", "pid": 7, "connected": false, "generation": 42, "xdp": "native",
            "tc": "clsact", "sockets": {"state": "attached", "cgroup": "/sys/fs/cgroup"}, "adopted": 12, "adoption_ms": 84, "pods": [],
            "pod_network": "vxlan", "pod_device": {"kind": "veth", "fallback": "create netkit pair: no"},
            "tables": [{"table": "services", "used": 3, "capacity": 16, "configured": 32}]
        });
        let shown = status_text(&status);
        assert!(
            shown.contains("adopted       12 containers in 84 ms"),
            "{shown}"
        );
        assert!(shown.contains("not connected"), "{shown}");
        assert!(shown.contains("pod network   vxlan\n"), "{shown}");
        assert!(
            shown.contains("pod device    veth, since there is no netkit: create netkit pair: no"),
            "{shown}"
        );
        assert!(
            shown.contains("services      3 of 16 (32 once they are made anew)"),
            "{shown}"
        );
        assert!(shown.contains("tc            clsact"), "{shown}");
        assert!(
            shown.contains("sockets       attached to /sys/fs/cgroup"),
            "{shown}"
        );
    }
}
