//! Takes away everything that an agent made outside its state directory, and what it remembers of it inside.

#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context, bail};
use portolan_dataplane::Dataplane;

use crate::{
    admin::socket_path,
    bpffs, files,
    lock::StateLock,
    network::{self, NodeNetwork},
    pod,
    run::{self, AgentRecord},
};

/// Tears a node down. Goes on past what fails, and then says what it was.
pub async fn teardown(state_dir: &Path) -> anyhow::Result<()> {
    if !state_dir.is_dir() {
        return Ok(());
    }
    let _lock = StateLock::take_soon(state_dir)
        .await
        .context("stop the agent first")?;
    let Some(record) = AgentRecord::load(state_dir)? else {
        return Ok(());
    };
    let mut failures = Vec::new();
    let mut note = |what: &str, outcome: anyhow::Result<()>| {
        if let Err(error) = outcome {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    note(
        "containers",
        pod::teardown(state_dir, &record.cgroup_root).map_err(Into::into),
    );
    note(
        "pod networks",
        network::remove_all(state_dir).await.map_err(Into::into),
    );
    note(
        "routes",
        NodeNetwork::remove_routes().await.map_err(Into::into),
    );
    note(
        "dataplane",
        Dataplane::remove_pins(&record.pin_dir).map_err(Into::into),
    );
    if record.pin_dir == run::default_pin_dir(state_dir) {
        note("bpffs", bpffs::remove(&record.pin_dir).map_err(Into::into));
    }
    for name in ["routes.json", "agent.json"] {
        let removed = files::remove_if_present(&state_dir.join(name));
        note(name, removed.map_err(Into::into));
    }
    note(
        "pod CIDRs",
        run::forget_pod_cidrs(state_dir).map_err(Into::into),
    );
    note(
        "socket",
        files::remove_if_present(&socket_path(state_dir)).map_err(Into::into),
    );
    if !failures.is_empty() {
        bail!("not all could be removed: {}", failures.join("; "));
    }
    Ok(())
}
