//! The ways to other nodes' pods, kept as the routing table names the nodes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};

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
    let mut complaints = Vec::new();
    loop {
        let peers = peers(&tables.borrow_and_update(), &node_name);
        let problems: Vec<String> = network
            .reconcile_peers(&peers)
            .await
            .iter()
            .map(|problem| chain(problem))
            .collect();
        // Said once, not every few seconds.
        if problems != complaints {
            for problem in &problems {
                tracing::warn!(problem, "no way to another node's pods");
            }
        }
        let pause = if problems.is_empty() {
            REPAIR_AFTER
        } else {
            RETRY_AFTER
        };
        complaints = problems;
        if let Ok(Err(_)) = timeout(pause, tables.changed()).await {
            return;
        }
    }
}

fn peers(table: &Table, node_name: &str) -> Vec<PeerNode> {
    let others = table.nodes.values().filter(|node| node.name != node_name);
    others.map(crate::routes::NodeRoute::as_peer).collect()
}
