//! `trace`: what the programs decide on chosen packets.

use std::{fmt::Write, net::IpAddr, sync::atomic::Ordering};

use anyhow::Result;
use clap::{Args, ValueEnum};
use portolan_dataplane::{
    View, Watcher,
    model::Protocol,
    report::{Filter, PacketReport},
};

use crate::apply::{self, PinArgs};

/// What `trace` needs to know.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Packets that come from or go to an address, before or after they are rewritten
    #[arg(long)]
    address: Option<IpAddr>,
    /// And a second address
    #[arg(long)]
    peer: Option<IpAddr>,
    /// A port, of either end
    #[arg(long)]
    port: Option<u16>,
    /// A transport
    #[arg(long, value_enum)]
    protocol: Option<Transport>,
    /// Only packets with which flows open and end
    #[arg(long)]
    flows: bool,
    /// End after so many packets
    #[arg(long)]
    count: Option<u32>,
    /// A line of JSON for each packet
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pins: PinArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Transport {
    Tcp,
    Udp,
    Sctp,
}

/// Follows packets until it is interrupted.
pub fn trace(args: &TraceArgs) -> Result<()> {
    let view = View::open(&args.pins.pins)?;
    let filter = Filter {
        packets: !args.flows,
        opened: args.flows,
        ended: args.flows,
        address: args.address,
        peer: args.peer,
        port: args.port,
        protocol: args.protocol.map(|transport| match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Sctp => Protocol::Sctp,
        }),
    };
    let mut watcher = Watcher::start(&args.pins.pins, &filter)?;
    let mut shown = 0;
    // An end by a signal, too, must turn the programs' reports off.
    let end = apply::end_by_signal()?;
    while !end.load(Ordering::Acquire) {
        if !watcher.wait(200)? {
            continue;
        }
        let observed = watcher.read();
        for report in view.describe(&observed) {
            if args.json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{}", in_lines(&report));
            }
            shown += 1;
            if args.count.is_some_and(|count| shown >= count) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A packet with what was decided on it, step by step.
fn in_lines(report: &PacketReport) -> String {
    let PacketReport { before, after, .. } = report;
    let mut lines = format!(
        "{} at {}: {:?} {} > {} {} {} bytes\n",
        report.program,
        report.interface,
        report.protocol,
        before.0,
        before.1,
        report.tcp_flags,
        report.length
    );
    if let Some(service) = &report.service {
        let _ = writeln!(lines, "  service  {}", service.0);
    }
    let _ = write!(lines, "  decision {}", word(&report.decision));
    if let Some(reason) = &report.reason {
        let _ = write!(lines, ", because {reason}");
    }
    if let Some(locality) = report.locality {
        let _ = write!(lines, ", backend on: {}", word(&locality));
    }
    lines.push('\n');
    if after != before {
        let _ = writeln!(lines, "  becomes  {} > {}", after.0, after.1);
    }
    let end = if report.ended {
        ", the flow is over"
    } else {
        ""
    };
    let _ = writeln!(lines, "  verdict  {}{end}", word(&report.verdict));
    lines
}

/// The word that an enum's variant has in JSON.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}
