//! `status` and `watch`: services, devices and counters as they stand in the maps.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use portolan_dataplane::{
    Hook, View,
    model::{DropCount, EventCount, Frontend, Service, ServiceCounters},
};
use serde::Serialize;

use crate::apply::PinArgs;

/// What `status` needs to know.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: PinArgs,
}

/// What `watch` needs to know.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0)]
    every: f64,
    /// End after so many looks
    #[arg(long)]
    count: Option<u32>,
    #[command(flatten)]
    pins: PinArgs,
}

#[derive(Serialize)]
struct Status {
    devices: Vec<Hook>,
    services: Vec<Report>,
    drops: Vec<DropCount>,
    events: Vec<EventCount>,
}

#[derive(Serialize)]
struct Report {
    service: Service,
    counters: ServiceCounters,
}

fn look(pins: &Path) -> Result<Status> {
    let view = View::open(pins)?;
    let services = view.services()?.into_iter();
    Ok(Status {
        devices: View::hooks(pins)?,
        services: services
            .map(|(service, counters)| Report { service, counters })
            .collect(),
        drops: view.drops()?,
        events: view.events()?,
    })
}

/// Shows everything once.
pub fn status(args: &StatusArgs) -> Result<()> {
    let status = look(&args.pins.pins)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(());
    }
    let devices = status.devices.iter().map(|hook| {
        let mode = if hook.present {
            hook.mode.clone()
        } else {
            "interface is gone".into()
        };
        vec![hook.interface.clone(), hook.program.clone(), mode]
    });
    print!("{}", table(&["DEVICE", "PROGRAM", "HOOK"], devices));
    println!();
    print!("{}", services_table(&status, &BTreeMap::new(), 0.0));
    let drops = status.drops.iter().filter(|drop| drop.packets > 0);
    let rows: Vec<_> = drops
        .map(|drop| {
            vec![
                drop.reason.clone(),
                drop.packets.to_string(),
                drop.description.clone(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        println!();
        print!(
            "{}",
            table(&["DROPPED BECAUSE", "PACKETS", "MEANING"], rows.into_iter())
        );
    }
    Ok(())
}

/// Shows a table that goes on, with rates.
pub fn watch(args: &WatchArgs) -> Result<()> {
    let every = Duration::from_secs_f64(args.every);
    let mut before = BTreeMap::new();
    let mut looks = 0;
    loop {
        let status = look(&args.pins.pins)?;
        let seconds = if before.is_empty() { 0.0 } else { args.every };
        let text = services_table(&status, &before, seconds);
        if std::io::stdout().is_terminal() {
            // Home, then each line over what was there, then nothing below.
            print!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
        } else {
            println!("{text}");
        }
        std::io::stdout().flush()?;
        before = status
            .services
            .iter()
            .map(|report| (report.service.name.0.clone(), totals(&report.counters)))
            .collect();
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        thread::sleep(every);
    }
}

/// New flows, packets and bytes of all classes.
fn totals(counters: &ServiceCounters) -> [u64; 3] {
    counters.classes().iter().fold([0; 3], |sum, (_, class)| {
        [
            sum[0] + class.flows,
            sum[1] + class.packets,
            sum[2] + class.bytes,
        ]
    })
}

fn services_table(status: &Status, before: &BTreeMap<String, [u64; 3]>, seconds: f64) -> String {
    let headers = [
        "SERVICE",
        "LISTENS AT",
        "BACKENDS",
        "FLOWS",
        "PACKETS",
        "BYTES",
        "REFUSED",
        "FLOWS/s",
        "PACKETS/s",
        "Mbit/s",
    ];
    let headers = if seconds > 0.0 {
        &headers[..]
    } else {
        &headers[..7]
    };
    let rows = status.services.iter().map(|report| {
        let (service, now) = (&report.service, totals(&report.counters));
        let mut row = vec![
            service.name.0.clone(),
            service
                .frontends
                .iter()
                .map(frontend)
                .collect::<Vec<_>>()
                .join(" "),
            service.backends.len().to_string(),
            now[0].to_string(),
            now[1].to_string(),
            now[2].to_string(),
            report.counters.refused.to_string(),
        ];
        if seconds > 0.0 {
            let then = before.get(&service.name.0).copied().unwrap_or(now);
            let rate = |at: usize, unit: f64| rate(now[at], then[at], seconds) * unit;
            row.push(format!("{:.0}", rate(0, 1.0)));
            row.push(format!("{:.0}", rate(1, 1.0)));
            row.push(format!("{:.1}", rate(2, 8e-6)));
        }
        row
    });
    table(headers, rows)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what comes in a second is exact enough"
)]
fn rate(now: u64, then: u64, seconds: f64) -> f64 {
    now.saturating_sub(then) as f64 / seconds
}

fn frontend(frontend: &Frontend) -> String {
    match frontend {
        Frontend::Address { address, port, .. } => {
            std::net::SocketAddr::new(*address, *port).to_string()
        }
        Frontend::NodePort { port } => format!("*:{port}"),
    }
}

/// Columns as wide as what stands in them.
pub fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = headers.iter().map(|&header| header.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0);
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["long".to_owned(), "2".to_owned()],
        ];
        assert_eq!(
            table(&["X", "Y"], rows.into_iter()),
            "X     Y\na     1\nlong  2\n"
        );
    }
}
