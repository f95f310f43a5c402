//! Routes of ours, and the messages that stand for them.

#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use rtnetlink::RouteMessageBuilder;

/// The routing protocol number that our routes carry; free in `/etc/iproute2/rt_protos`.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// How.
    pub via: Via,
}

/// How a route's packets go on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Straight to the neighbour with the destination's address.
    Link {
        /// The interface.
        link: u32,
        /// The address that this node speaks from.
        source: Option<IpAddr>,
    },
    /// To a router.
    Gateway {
        /// The interface.
        link: u32,
        /// The router.
        gateway: IpAddr,
        /// Whether the router is taken to be reachable although no subnet of the interface has it.
        on_link: bool,
        /// The address that this node speaks from, if not the interface's.
        source: Option<IpAddr>,
    },
    /// Nowhere: senders are told so.
    Unreachable,
}

/// The message that asks for a route.
pub fn message(route: &Route) -> RouteMessage {
    let destination = route.destination;
    let mut message = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(destination.addr(), destination.prefix_len())
        .expect("a prefix length within its family")
        .protocol(PROTOCOL)
        .build();
    let mut push = |attribute| message.attributes.push(attribute);
    match &route.via {
        Via::Link { link, source } => {
            push(RouteAttribute::Oif(*link));
            if let Some(source) = source {
                push(RouteAttribute::PrefSource(RouteAddress::from(*source)));
            }
            message.header.scope = RouteScope::Link;
        }
        Via::Gateway {
            link,
            gateway,
            on_link,
            source,
        } => {
            push(RouteAttribute::Oif(*link));
            push(RouteAttribute::Gateway(RouteAddress::from(*gateway)));
            if let Some(source) = source {
                push(RouteAttribute::PrefSource(RouteAddress::from(*source)));
            }
            if *on_link {
                message.header.flags |= RouteFlags::Onlink;
            }
        }
        Via::Unreachable => message.header.kind = RouteType::Unreachable,
    }
    message
}

/// The route that a message tells of; `None` for one of a shape that we never make.
pub fn of(message: &RouteMessage) -> Option<Route> {
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut link, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip_of(address),
            RouteAttribute::PrefSource(address) => source = ip_of(address),
            _ => {}
        }
    }
    let via = match (message.header.kind, link, gateway) {
        (RouteType::Unreachable, _, _) => Via::Unreachable,
        (RouteType::Unicast, Some(link), Some(gateway)) => Via::Gateway {
            link,
            gateway,
            on_link: message.header.flags.contains(RouteFlags::Onlink),
            source,
        },
        (RouteType::Unicast, Some(link), None) => Via::Link { link, source },
        _ => return None,
    };
    let prefix = message.header.destination_prefix_length;
    let destination = IpNet::new(destination, prefix).ok()?;
    Some(Route { destination, via })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
