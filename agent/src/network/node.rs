//! The node's own side: what its namespace must be set to, and the ways to the other nodes' pods.

#![forbid(unsafe_code)]

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    NetworkError,
    netlink::{Netlink, Route, Via},
    sysctl,
};

/// The interface that faces the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its number in the node's namespace.
    pub index: u32,
    /// Its largest packet, which the pods' interfaces share.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// Another node, as packets reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNode {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What its pods' addresses are taken from.
    pub pod_cidrs: Vec<IpNet>,
}

/// The network of a node, in the namespace in which the agent runs.
pub struct NodeNetwork {
    netlink: Netlink,
    uplink: Uplink,
}

impl NodeNetwork {
    /// Looks at the uplink and sets the namespace up to forward.
    pub async fn open(uplink: &str) -> Result<Self, NetworkError> {
        let netlink = Netlink::open(&tokio::runtime::Handle::current())?;
        let link = netlink
            .link(uplink)
            .await?
            .ok_or_else(|| NetworkError::NoInterface(uplink.to_owned()))?;
        if !link.up {
            netlink.set_up(link.index).await?;
        }
        let uplink = Uplink {
            name: uplink.to_owned(),
            index: link.index,
            mtu: link.mtu,
            addresses: netlink.addresses(link.index).await?,
        };
        let name = uplink.name.clone();
        blocking(move || forward_packets(&name)).await?;
        Ok(Self { netlink, uplink })
    }

    /// The interface that faces the other nodes.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Answers for the addresses of the node's own pod CIDRs that no pod has, instead of sending their packets out
    /// again: a client of a pod that is gone hears so at once.
    pub async fn claim_pod_cidrs(&self, cidrs: &[IpNet]) -> Result<(), NetworkError> {
        for cidr in cidrs {
            let route = Route {
                destination: cidr.trunc(),
                via: Via::Unreachable,
            };
            self.netlink.ensure_route(&route).await?;
        }
        Ok(())
    }

    /// Makes the routes to other nodes' pods be exactly these. What could not be routed is in the result, with the
    /// rest done all the same.
    pub async fn reconcile_peers(&self, peers: &[PeerNode]) -> Vec<NetworkError> {
        let (wanted, mut problems) = self.wanted_routes(peers);
        let present: BTreeSet<Route> = match self.netlink.own_routes().await {
            Ok(routes) => routes
                .into_iter()
                .filter(|route| self.is_peer_route(route))
                .collect(),
            Err(error) => {
                problems.push(error);
                return problems;
            }
        };
        let destinations: BTreeSet<IpNet> = wanted.iter().map(|route| route.destination).collect();
        for route in wanted.difference(&present) {
            problems.extend(self.netlink.ensure_route(route).await.err());
        }
        // A route whose destination is wanted by another way was replaced above.
        for route in present
            .iter()
            .filter(|route| !destinations.contains(&route.destination))
        {
            problems.extend(self.netlink.delete_route(route).await.err());
        }
        problems
    }

    /// Removes every route that this module made in the node's namespace.
    pub async fn remove_routes() -> Result<(), NetworkError> {
        let netlink = Netlink::open(&tokio::runtime::Handle::current())?;
        for route in netlink.own_routes().await? {
            netlink.delete_route(&route).await?;
        }
        Ok(())
    }

    fn is_peer_route(&self, route: &Route) -> bool {
        matches!(&route.via, Via::Gateway { link, .. } if *link == self.uplink.index)
    }

    fn wanted_routes(&self, peers: &[PeerNode]) -> (BTreeSet<Route>, Vec<NetworkError>) {
        let (mut wanted, mut problems) = (BTreeSet::new(), Vec::new());
        for peer in peers {
            for cidr in &peer.pod_cidrs {
                let same_family = |address: &&IpAddr| address.is_ipv4() == cidr.addr().is_ipv4();
                match peer.addresses.iter().find(same_family) {
                    Some(gateway) => {
                        wanted.insert(Route {
                            destination: cidr.trunc(),
                            via: Via::Gateway {
                                link: self.uplink.index,
                                gateway: *gateway,
                                on_link: false,
                            },
                        });
                    }
                    None => problems.push(NetworkError::new::<&str>(
                        "find a way to",
                        format!("{cidr} of node {}", peer.name),
                    )(
                        "the node has no address of that family"
                    )),
                }
            }
        }
        (wanted, problems)
    }
}

/// Runs sysctl writes off the async threads, which share the namespace with the thread that blocks.
async fn blocking(
    work: impl FnOnce() -> Result<(), NetworkError> + Send + 'static,
) -> Result<(), NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The node's own clients stay below the ports that the dataplane forwards node port traffic from, and above the ones
/// that services commonly have.
const LOCAL_PORTS: &str = "10240 29999";

fn forward_packets(uplink: &str) -> Result<(), NetworkError> {
    sysctl::set("net/ipv4/ip_local_port_range", LOCAL_PORTS)?;
    sysctl::set("net/ipv4/ip_forward", "1")?;
    // Replies may leave by another interface than the one that requests came by; pods' addresses are checked on their
    // own veths.
    for interface in ["all", "default", uplink] {
        sysctl::set(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        sysctl::set(&format!("net/ipv4/conf/{interface}/send_redirects"), "0")?;
    }
    if !sysctl::exists("net/ipv6")? {
        return Ok(());
    }
    // A router ignores router advertisements, and addresses that it had from them expire, unless told otherwise first.
    let accept_ra = format!("net/ipv6/conf/{uplink}/accept_ra");
    if sysctl::get(&accept_ra)? == "1" {
        sysctl::set(&accept_ra, "2")?;
    }
    sysctl::set("net/ipv6/conf/all/forwarding", "1")
}
