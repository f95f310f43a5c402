//! The ways to other nodes' pods and what the dataplane knows of the networks around it, kept as the routing table names
//! the nodes.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use portolan_dataplane::model::{Network, NetworkRole};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    errors::chain,
    network::{NodeNetwork, PeerNode},
    routes::{DataplaneThread, Table},
};

/// How soon what failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How soon a route is back that someone else has taken away.
const REPAIR_AFTER: Duration = Duration::from_mins(1);

/// A node and what must know of the others.
pub struct Surroundings {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses.
    pub addresses: Vec<IpAddr>,
    /// What its pods' addresses are taken from.
    pub pod_cidrs: Vec<IpNet>,
    /// Where routes to other nodes' pods are made.
    pub network: NodeNetwork,
    /// What must know whom pods may speak to with their own addresses.
    pub dataplane: DataplaneThread,
}

impl Surroundings {
    /// Keeps routes and networks until the table has no writer any more.
    pub async fn keep(self, mut tables: watch::Receiver<Arc<Table>>) {
        let (mut known, mut complaints) = (None, Vec::new());
        let mut due = Instant::now();
        loop {
            let peers = peers(&tables.borrow_and_update(), &self.node_name);
            // Most changes of the table are of services.
            if known.as_ref() != Some(&peers) || Instant::now() >= due {
                let problems = self.tell(&peers).await;
                let is_done = problems.is_empty();
                due = Instant::now() + if is_done { REPAIR_AFTER } else { RETRY_AFTER };
                complain(&mut complaints, problems);
                known = Some(peers);
            }
            if let Ok(Err(_)) = timeout_at(due, tables.changed()).await {
                return;
            }
        }
    }

    /// Pods are known to be pods before there is a way to them.
    async fn tell(&self, peers: &[PeerNode]) -> Vec<String> {
        let networks = self.networks(peers);
        let told = self
            .dataplane
            .call(move |maps| maps.set_networks(&networks))
            .await;
        let problem = match told {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(stopped) => Some(chain(&stopped)),
        };
        let routes = self.network.reconcile_peers(peers).await;
        let routes = routes.iter().map(|problem| chain(problem));
        problem.into_iter().chain(routes).collect()
    }

    fn networks(&self, peers: &[PeerNode]) -> Vec<Network> {
        let one = |role| {
            move |address: &IpAddr| Network {
                prefix: (*address).into(),
                role,
            }
        };
        let many = |role| {
            move |prefix: &IpNet| Network {
                prefix: *prefix,
                role,
            }
        };
        let mut networks: Vec<Network> = Vec::new();
        networks.extend(self.pod_cidrs.iter().map(many(NetworkRole::Inside)));
        let uplink = &self.network.uplink().addresses;
        networks.extend(uplink.iter().map(one(NetworkRole::Inside)));
        networks.extend(self.addresses.iter().map(one(NetworkRole::Node)));
        for peer in peers {
            networks.extend(peer.pod_cidrs.iter().map(many(NetworkRole::Pods)));
            networks.extend(peer.addresses.iter().map(one(NetworkRole::Peer)));
        }
        networks
    }
}

/// Says what is wrong once, not every few seconds.
fn complain(known: &mut Vec<String>, problems: Vec<String>) {
    if problems != *known {
        for problem in &problems {
            tracing::warn!(
                problem,
                "something is amiss between this node's pods and others"
            );
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
