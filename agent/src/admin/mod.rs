//! The admin socket: STATE/agent.sock, for root alone. A request is a line of JSON, and so is its answer.
//!
//! ```text
//!   {"request":"services"}                  ->  {"ok":[...]}   or   {"error":"..."}
//!   {"watch":{"packets":true}}              ->  {"ok":null}, then {"ok":{...}} a packet until the connection is closed
//! ```

#![forbid(unsafe_code)]

use std::{net::IpAddr, path::PathBuf};

use portolan_dataplane::model::{Service, ServiceCounters, ServiceName, TableUse, TcMode, XdpMode};
use portolan_dataplane::report::Filter;
use serde::{Deserialize, Serialize};

mod client;
mod server;

pub use client::{AdminClientError, ask, follow};
pub use server::{AdminServer, AdminServerError, Answers};

use crate::{
    network::{DeviceChoice, PodRouting},
    pod::PodSnapshot,
    run::SocketState,
};

/// Where an agent listens.
pub fn socket_path(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("agent.sock")
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// [`AgentStatus`].
    Status,
    /// A list of [`ServiceReport`].
    Services,
    /// A list of [`portolan_dataplane::model::Flow`].
    Flows,
    /// A list of [`portolan_dataplane::model::DropCount`].
    Drops,
}

/// A line that a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// Answered once.
    Ask(Request),
    /// Answered with nothing, once packets are being watched, then with a
    /// [`portolan_dataplane::report::PacketReport`] each.
    Watch {
        /// Which packets.
        watch: Filter,
    },
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// The answer, by the kind of the request.
    Ok(serde_json::Value),
    /// Why there is none.
    Error(String),
}

/// A service with its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: ServiceName,
    /// As it stands in the maps; `None` for one that could not get in.
    pub service: Option<Service>,
    /// Why its newest version is not in the maps; what stands there stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What has been counted.
    pub counters: ServiceCounters,
}

/// How an agent is.
#[derive(Clone, Debug, Serialize)]
pub struct AgentStatus {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// Containers that ran already when this agent started.
    pub adopted: usize,
    /// How long it took to take them over.
    pub adoption_ms: u64,
    /// How the uplink's XDP program runs.
    pub xdp: XdpMode,
    /// How the tc programs are attached.
    pub tc: TcMode,
    /// What became of the socket hooks.
    pub sockets: SocketState,
    /// How packets reach other nodes' pods.
    pub pod_network: PodRouting,
    /// What joins new pods to the node.
    pub pod_device: DeviceChoice,
    /// Whether the control plane's routes are being followed right now.
    pub connected: bool,
    /// The history that `generation` counts in.
    pub epoch: String,
    /// The generation of routes that the maps hold.
    pub generation: u64,
    /// Services whose newest version the maps refused.
    pub failed_services: usize,
    /// How full the dataplane's tables are.
    pub tables: Vec<TableUse>,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The pods.
    pub pods: Vec<PodSnapshot>,
}
