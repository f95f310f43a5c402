//! The node's own side: what its namespace must be set to, and the ways to the other nodes' pods.

#![forbid(unsafe_code)]

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    NetworkError,
    netlink::Netlink,
    route::{Route, Via},
    sysctl,
    tunnel::{self, Tunnel},
};

/// How packets reach other nodes' pods; the same on all nodes of a cluster.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PodRouting {
    /// As they are, by routes over the nodes' addresses: nodes share a link, or what is between them has such routes too.
    #[default]
    Routed,
    /// In packets from node to node (UDP port 4789): whatever carries these will do.
    Vxlan,
}

/// The interface that faces the other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its number in the node's namespace.
    pub index: u32,
    /// Its largest packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Uplink {
    /// The route to some of a node's pods.
    fn route(&self, peer: &PeerNode, cidr: IpNet) -> Result<Route, NetworkError> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == cidr.addr().is_ipv4();
        let gateway = peer.addresses.iter().find(same_family).ok_or_else(|| {
            NetworkError::new::<&str>("find a way to", format!("{cidr} of node {}", peer.name))(
                "the node has no address of that family",
            )
        })?;
        Ok(Route {
            destination: cidr.trunc(),
            via: Via::Gateway {
                link: self.index,
                gateway: *gateway,
                on_link: false,
                source: None,
            },
        })
    }
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
    tunnel: Option<Tunnel>,
}

impl NodeNetwork {
    /// Looks at the uplink and sets the namespace up to forward. `addresses` are those by which other nodes know this one.
    pub async fn open(
        uplink: &str,
        routing: PodRouting,
        addresses: &[IpAddr],
    ) -> Result<Self, NetworkError> {
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
        let tunnel = match routing {
            PodRouting::Vxlan => Some(Tunnel::open(&netlink, uplink.mtu, addresses).await?),
            PodRouting::Routed => {
                tunnel::remove(&netlink).await?;
                None
            }
        };
        Ok(Self {
            netlink,
            uplink,
            tunnel,
        })
    }

    /// The interface that leads to other nodes' pods, if that is not the uplink.
    pub fn tunnel(&self) -> Option<&'static str> {
        self.tunnel.as_ref().map(|_| tunnel::NAME)
    }

    /// The longest packet of the pods' interfaces.
    pub fn pod_mtu(&self) -> u32 {
        self.tunnel
            .as_ref()
            .map_or(self.uplink.mtu, |tunnel| tunnel.mtu)
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
        problems.extend(self.reconcile_ways(peers).await);
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

    /// Makes the tunnel know these nodes and no others.
    async fn reconcile_ways(&self, peers: &[PeerNode]) -> Vec<NetworkError> {
        let (mut ways, mut problems) = (BTreeSet::new(), Vec::new());
        let Some(tunnel) = &self.tunnel else {
            return problems;
        };
        for peer in peers {
            match tunnel.ensure_way(&self.netlink, peer).await {
                Ok(way) => {
                    ways.insert(way);
                }
                Err(error) => problems.push(error),
            }
        }
        problems.extend(tunnel.keep_ways(&self.netlink, &ways).await.err());
        problems
    }

    /// Removes every route that this module made in the node's namespace, and the tunnel.
    pub async fn remove_routes() -> Result<(), NetworkError> {
        let netlink = Netlink::open(&tokio::runtime::Handle::current())?;
        tunnel::remove(&netlink).await?;
        for route in netlink.own_routes().await? {
            netlink.delete_route(&route).await?;
        }
        Ok(())
    }

    fn is_peer_route(&self, route: &Route) -> bool {
        matches!(&route.via, Via::Gateway { link, .. } if *link == self.uplink.index)
            || self.tunnel.as_ref().is_some_and(|tunnel| tunnel.has(route))
    }

    fn wanted_routes(&self, peers: &[PeerNode]) -> (BTreeSet<Route>, Vec<NetworkError>) {
        let (mut wanted, mut problems) = (BTreeSet::new(), Vec::new());
        for peer in peers {
            for cidr in &peer.pod_cidrs {
                let route = match &self.tunnel {
                    Some(tunnel) => tunnel.route(peer, *cidr),
                    None => self.uplink.route(peer, *cidr),
                };
                match route {
                    Ok(route) => {
                        wanted.insert(route);
                    }
                    // Of the tunnel, that there is no way to the node is told once for all of its pods.
                    Err(error) if self.tunnel.is_none() => problems.push(error),
                    Err(_) => {}
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
