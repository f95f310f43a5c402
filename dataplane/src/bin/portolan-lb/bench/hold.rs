//! What a table of services takes of time and memory, told by a process that does nothing else.

use std::{net::IpAddr, process};

use anyhow::{Context, Result};
use clap::Args;
use portolan_dataplane::{
    Dataplane,
    model::{Protocol, Service},
};
use serde::{Deserialize, Serialize};

use super::paths::{Plan, Variant, ours};
use crate::{
    pins::{self, Pins},
    space::{OWN_MEMORY, Space, memory_of},
};

/// Which table.
#[derive(Debug, Args)]
pub struct HoldOptions {
    services: u32,
    endpoints: u32,
}

/// What it took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Milliseconds to load it.
    pub milliseconds: f64,
    /// Bytes of memory of the process that did, without pages of files such as its code.
    pub process: u64,
    /// Bytes of the kernel's memory.
    pub kernel: u64,
}

/// Loads a table and says what that took, as JSON.
pub fn hold(options: &HoldOptions) -> Result<()> {
    pins::hide()?;
    let plan = Plan {
        services: options.services,
        endpoints: options.endpoints,
        protocol: Protocol::Tcp,
    };
    let pins = Pins::temporary();
    let config = ours::config(&plan, &pins, IpAddr::from([169, 254, 1, 1]));
    let mut dataplane = Dataplane::open(config)?;
    // One at a time, as an agent is told of them.
    let mut milliseconds = 0.0;
    for number in 0..plan.services {
        let service: Service = plan.model(number, Variant::Loaded, true);
        milliseconds += ours::fill(&mut dataplane, &[service])?.as_secs_f64() * 1e3;
    }
    let held = Held {
        milliseconds,
        process: memory_of(process::id(), OWN_MEMORY).context("read this process's memory")?,
        kernel: dataplane.map_memory()?.iter().map(|(_, bytes)| bytes).sum(),
    };
    println!("{}", serde_json::to_string(&held)?);
    drop(dataplane);
    drop(pins);
    Ok(())
}

/// Asks a process of its own.
pub fn ask(space: &Space, plan: &Plan) -> Result<Held> {
    let program = std::env::current_exe().context("find this program")?;
    let program = program.to_string_lossy().into_owned();
    let numbers = [plan.services, plan.endpoints].map(|number| number.to_string());
    let arguments = ["hold", &numbers[0], &numbers[1]];
    let text = space.output(&program, &arguments, &[])?;
    serde_json::from_str(&text).context("read what the other process says")
}
