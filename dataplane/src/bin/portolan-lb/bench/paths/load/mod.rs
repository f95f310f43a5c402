//! The load: clients and servers on one CPU, so that what differs between two paths is what they cost.
//!
//! Rates are taken in a closed loop; latencies in an open one: requests are due at fixed times whether or not the last
//! one has been answered, and each is timed from when it was due.

mod churn;
mod client;
mod server;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use portolan_dataplane::model::Protocol;

use super::{
    plan::Path,
    stage::{Client, Stage},
};
pub use client::Targets;
pub use server::listeners;
use server::serve;

/// How long a client waits for anything before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(5);
const STREAM_CHUNK: usize = 64 * 1_024;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    Connect,
    ConnectLatency,
    TcpRr,
    UdpRr,
    UdpNewFlow,
    UdpFlood,
    TcpStream,
    Churn,
}

/// A figure of one run.
pub struct Figure {
    pub metric: &'static str,
    pub unit: &'static str,
    pub value: f64,
}

impl Figure {
    fn new(metric: &'static str, unit: &'static str, value: f64) -> Self {
        Self {
            metric,
            unit,
            value,
        }
    }
}

impl Measure {
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::ConnectLatency,
        Self::TcpRr,
        Self::UdpRr,
        Self::UdpNewFlow,
        Self::UdpFlood,
        Self::TcpStream,
        Self::Churn,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "paths/connect",
            Self::ConnectLatency => "paths/connect_latency",
            Self::TcpRr => "paths/tcp_rr",
            Self::UdpRr => "paths/udp_rr",
            Self::UdpNewFlow => "paths/udp_new_flow",
            Self::UdpFlood => "paths/udp_flood",
            Self::TcpStream => "paths/tcp_stream",
            Self::Churn => "paths/churn",
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::UdpRr | Self::UdpNewFlow | Self::UdpFlood => Protocol::Udp,
            _ => Protocol::Tcp,
        }
    }

    /// Whether it can be taken on a path: endpoints come and go only where there are services.
    pub fn fits(self, path: Path) -> bool {
        self != Self::Churn || !path.is_without_service()
    }

    /// Runs once on a stage. `turn` tells runs apart, so that no two use the same client ports.
    pub fn run(self, stage: &mut Stage, turn: u32, time: Duration) -> Result<Vec<Figure>> {
        let (client, topology, table) = stage.split();
        match self {
            Self::UdpFlood => {
                let servers = server::udp_sockets(&topology.servers, &client.plan)?;
                client::flood(client, &servers, turn, time)
            }
            Self::Churn => churn::run(client, topology, table, turn, time),
            _ => with_server(
                self,
                client,
                |stop| serve(self, &topology.servers, &client.plan, &stop),
                || self.load(client, turn, time),
            ),
        }
    }

    fn load(self, at: Client<'_>, turn: u32, time: Duration) -> Result<Vec<Figure>> {
        let targets = Targets::new(at, turn);
        match self {
            Self::Connect => client::connect_rate(&targets, time),
            Self::ConnectLatency => client::connect_latency(&targets, time),
            Self::TcpRr => client::tcp_requests(&targets, time),
            Self::UdpRr => client::udp_requests(&targets, time),
            Self::UdpNewFlow => client::udp_new_flows(&targets, time),
            Self::TcpStream => client::stream(&targets, time),
            Self::UdpFlood | Self::Churn => bail!("{} has a load of its own", self.name()),
        }
    }
}

/// Runs a client's load while a server runs.
fn with_server(
    measure: Measure,
    client: Client<'_>,
    server: impl FnOnce(server::Life<'_>) -> Result<()> + Send,
    load: impl FnOnce() -> Result<Vec<Figure>> + Send,
) -> Result<Vec<Figure>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (ready, wait) = std::sync::mpsc::channel();
        let server = scope.spawn(|| server(server::Life { ready, stop: &stop }));
        let started = wait
            .recv()
            .with_context(|| format!("start the server of {}", measure.name()));
        let figures = match &started {
            Ok(()) => client.enter(load).and_then(|figures| figures),
            Err(_) => Ok(Vec::new()),
        };
        stop.store(true, Ordering::Release);
        let answered = server
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // What the server says is why the client failed, if both did.
        answered.and(started).and(figures)
    })
}

/// One request through a fresh path, to show that it leads anywhere.
pub fn probe(stage: &mut Stage) -> Result<()> {
    let measure = if stage.plan.protocol == Protocol::Udp {
        Measure::UdpNewFlow
    } else {
        Measure::Connect
    };
    measure.run(stage, 0, Duration::from_millis(1))?;
    match stage.table.new_flows()? {
        Some(0) => bail!("requests were answered, but not by this path"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> =
            Measure::ALL.iter().map(|measure| measure.name()).collect();
        assert_eq!(names.len(), Measure::ALL.len());
        assert!(names.iter().all(|name| name.starts_with("paths/")));
    }
}
