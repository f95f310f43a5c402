//! The tunnel to other nodes' pods, where what is between the nodes knows nothing of pods: VXLAN (RFC 7348).
//!
//! ```text
//!   10.244.2.0/24 via 10.244.2.0 dev portolan-vxlan        which node: by the routing table
//!   10.244.2.0 lladdr 06:... dev portolan-vxlan            its device's hardware address: made of the node's address
//!   06:... dst 10.89.0.12 dev portolan-vxlan               the node: by the device's forwarding table
//! ```
//!
//! Each entry follows from the node's addresses and pod CIDRs: nothing is learnt, asked or flooded.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{
    NetworkError, PeerNode,
    link_address::LinkAddress,
    netlink::Netlink,
    route::{Route, Via},
    sysctl,
};

/// The device, the same on every node.
pub const NAME: &str = "portolan-vxlan";
/// The number of the one network within the tunnel.
const NETWORK: u32 = 112;
/// The port that RFC 7348 gives to VXLAN.
const PORT: u16 = 4789;
/// What stands before a packet of a pod: the outer IP header, UDP, VXLAN and Ethernet.
const OVERHEAD_V4: u32 = 20 + 8 + 8 + 14;
const OVERHEAD_V6: u32 = 40 + 8 + 8 + 14;

/// A node's end of the tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device's number.
    index: u32,
    /// The longest packet of a pod that fits into the uplink with what stands before it.
    pub mtu: u32,
    /// What other nodes send to.
    local: IpAddr,
    /// Whom the node speaks to pods of other nodes as.
    sources: Vec<IpAddr>,
}

impl Tunnel {
    /// Makes the device, or takes over the one that an earlier agent has made. The tunnel runs over IPv4 if the node has
    /// such an address, else over IPv6; either carries both.
    pub async fn open(
        netlink: &Netlink,
        uplink_mtu: u32,
        addresses: &[IpAddr],
    ) -> Result<Self, NetworkError> {
        let mut by_family: Vec<IpAddr> = addresses.to_vec();
        by_family.sort_by_key(IpAddr::is_ipv6);
        let local = *by_family
            .first()
            .ok_or_else(|| failed("make", NAME, "the node has no address"))?;
        let overhead = if local.is_ipv4() {
            OVERHEAD_V4
        } else {
            OVERHEAD_V6
        };
        let mtu = uplink_mtu.saturating_sub(overhead);
        let hardware = LinkAddress::of_tunnel(local);
        let mut link = netlink.link(NAME).await?;
        if link
            .as_ref()
            .is_some_and(|link| link.address != Some(hardware) || link.mtu != mtu)
        {
            netlink.delete_link(NAME).await?;
            link = None;
        }
        if link.is_none() {
            netlink
                .create_vxlan(NAME, hardware, (NETWORK, PORT, local), mtu)
                .await?;
            link = netlink.link(NAME).await?;
        }
        let link = link.ok_or_else(|| NetworkError::NoInterface(NAME.to_owned()))?;
        blocking(configure).await?;
        if !link.up {
            netlink.set_up(link.index).await?;
        }
        Ok(Self {
            index: link.index,
            mtu,
            local,
            sources: by_family,
        })
    }

    /// Whether a route leads through it.
    pub fn has(&self, route: &Route) -> bool {
        matches!(&route.via, Via::Gateway { link, .. } if *link == self.index)
    }

    /// What leads to a node but routes: must be there before these.
    pub async fn ensure_way(
        &self,
        netlink: &Netlink,
        peer: &PeerNode,
    ) -> Result<LinkAddress, NetworkError> {
        let node = self.far_end(peer)?;
        let hardware = LinkAddress::of_tunnel(node);
        netlink
            .ensure_forwarding(self.index, hardware, node)
            .await?;
        let gateways = peer
            .pod_cidrs
            .iter()
            .map(|cidr| gateway(*cidr, hardware))
            .collect::<BTreeSet<_>>();
        for neighbour in gateways.iter().chain(&peer.addresses) {
            netlink
                .ensure_neighbour(self.index, *neighbour, hardware)
                .await?;
        }
        Ok(hardware)
    }

    /// Forgets every way but those to these.
    pub async fn keep_ways(
        &self,
        netlink: &Netlink,
        ways: &BTreeSet<LinkAddress>,
    ) -> Result<(), NetworkError> {
        netlink.forget_neighbours_except(self.index, ways).await
    }

    /// The route to some of a node's pods.
    pub fn route(&self, peer: &PeerNode, cidr: IpNet) -> Result<Route, NetworkError> {
        let hardware = LinkAddress::of_tunnel(self.far_end(peer)?);
        let same_family = |own: &&IpAddr| own.is_ipv4() == cidr.addr().is_ipv4();
        Ok(Route {
            destination: cidr.trunc(),
            via: Via::Gateway {
                link: self.index,
                gateway: gateway(cidr, hardware),
                on_link: true,
                source: self.sources.iter().find(same_family).copied(),
            },
        })
    }

    fn far_end(&self, peer: &PeerNode) -> Result<IpAddr, NetworkError> {
        let same_family = |address: &&IpAddr| address.is_ipv4() == self.local.is_ipv4();
        let found = peer.addresses.iter().find(same_family).copied();
        found.ok_or_else(|| {
            let family = if self.local.is_ipv4() { "IPv4" } else { "IPv6" };
            failed(
                "find a way to",
                format!("node {}", peer.name),
                format!("the tunnel runs over {family}, and the node has no such address"),
            )
        })
    }
}

/// Takes the device away; its routes and neighbours go with it.
pub async fn remove(netlink: &Netlink) -> Result<(), NetworkError> {
    netlink.delete_link(NAME).await
}

/// Whom packets for a CIDR are handed to: of IPv4 the address in it that no pod has, of IPv6 the link-local one that the
/// node's device has given itself.
fn gateway(cidr: IpNet, LinkAddress(link): LinkAddress) -> IpAddr {
    match cidr {
        IpNet::V4(cidr) => cidr.network().into(),
        IpNet::V6(_) => {
            // RFC 4291, appendix A: the link's address around ff:fe, with the bit for "universal" turned.
            let word = |at: usize| u16::from_be_bytes([link[at], link[at + 1]]);
            Ipv6Addr::new(
                0xfe80,
                0,
                0,
                0,
                word(0) ^ 0x200,
                u16::from_be_bytes([link[2], 0xff]),
                u16::from_be_bytes([0xfe, link[3]]),
                word(4),
            )
            .into()
        }
    }
}

fn failed(
    operation: &'static str,
    object: impl Into<String>,
    why: impl Into<String>,
) -> NetworkError {
    NetworkError::new::<String>(operation, object)(why.into())
}

fn configure() -> Result<(), NetworkError> {
    // What nodes send back to pods may come by the uplink or by the tunnel.
    sysctl::set(&format!("net/ipv4/conf/{NAME}/rp_filter"), "0")?;
    if sysctl::exists("net/ipv6")? {
        sysctl::set(&format!("net/ipv6/conf/{NAME}/accept_ra"), "0")?;
    }
    Ok(())
}

async fn blocking(
    work: impl FnOnce() -> Result<(), NetworkError> + Send + 'static,
) -> Result<(), NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_no_pods_address() {
        let hardware = LinkAddress([0x06, 1, 2, 3, 4, 5]);
        let of = |cidr: &str| gateway(cidr.parse().expect("a CIDR"), hardware).to_string();
        assert_eq!(of("10.244.2.0/24"), "10.244.2.0");
        assert_eq!(of("fd00:10:244:2::/64"), "fe80::401:2ff:fe03:405");
    }
}
