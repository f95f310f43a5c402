//! The ways to other nodes' pods, kept as the routing table names the nodes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    errors::chain,
    network::{NodeNetwork, PeerNode},
    routes::Table,
};

/// How soon what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How soon a route is back that someone else has taken away.
const REPAIR_AFTER: Duration = Duration::from_mins(1);

/// Keeps the routes until the table has no writer any more.
pub async fn keep_routes(
    network: NodeNetwork,
    node_name: String,
    mut tables: watch::Receiver<Arc<Table>>,
) {
    let (mut routed, mut complaints) = (None, Vec::new());
    let mut due = Instant::now();
    loop {
        let peers = peers(&tables.borrow_and_update(), &node_name);
        // Most changes of the table are of services.
        if routed.as_ref() != Some(&peers) || Instant::now() >= due {
            let problems = network.reconcile_peers(&peers).await;
            let problems: Vec<String> = problems.iter().map(|problem| chain(problem)).collect();
            let is_done = problems.is_empty();
            due = Instant::now() + if is_done { REPAIR_AFTER } else { RETRY_AFTER };
            complain(&mut complaints, problems);
            routed = Some(peers);
        }
        if let Ok(Err(_)) = timeout_at(due, tables.changed()).await {
            return;
        }
    }
}

/// Says what is wrong once, not every few seconds.
fn complain(known: &mut Vec<String>, problems: Vec<String>) {
    if problems != *known {
        for problem in &problems {
            tracing::warn!(problem, "no way to another node's pods");
        }
    }
    *known = problems;
}

/// The other nodes; one that has not said its addresses yet has no pods either.
fn peers(table: &Table, node_name: &str) -> Vec<PeerNode> {
    let others = table.nodes.values().filter(|node| node.name != node_name);
    let known = others.filter(|node| !node.addresses.is_empty());
    known.map(crate::routes::NodeRoute::as_peer).collect()
}
