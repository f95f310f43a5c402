//! rtnetlink in the words of a pod network. A socket stays in the namespace in which it was opened.

#![forbid(unsafe_code)]

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags},
    link::{
        InfoData, InfoKind, InfoNetkit, InfoVeth, LinkAttribute, LinkFlags, LinkMessage, NetkitMode,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourState},
    route::RouteMessage,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan};
use tokio::task::JoinHandle;

use super::{
    NetworkError,
    device::DeviceKind,
    link_address::LinkAddress,
    route::{PROTOCOL, Route, message as route_message, of as route_of},
};

/// A connection to one network namespace's rtnetlink.
pub struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// An interface as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its largest packet.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its hardware address, if it has one of Ethernet's.
    pub address: Option<LinkAddress>,
}

/// A pair of interfaces to make.
pub struct DevicePair<'a> {
    /// The end here.
    pub host: &'a str,
    /// Its hardware address.
    pub host_address: LinkAddress,
    /// The other end.
    pub peer: &'a str,
    /// Its hardware address.
    pub peer_address: LinkAddress,
    /// Where the other end is made, if not here.
    pub peer_namespace: Option<BorrowedFd<'a>>,
    /// Of both.
    pub mtu: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace and runs it on `runtime`.
    pub fn open(runtime: &tokio::runtime::Handle) -> Result<Self, NetworkError> {
        let _context = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(NetworkError::new("open", "a netlink route socket"))?;
        Ok(Self {
            handle,
            driver: runtime.spawn(connection),
        })
    }

    /// Finds an interface.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await
            .map_err(Errno::from);
        match found {
            Ok(message) => Ok(message.as_ref().map(link_of)),
            Err(error) if error.is(libc::ENODEV) => Ok(None),
            Err(error) => Err(NetworkError::new("find interface", name)(error)),
        }
    }

    /// Makes a pair of interfaces, both ends at once in their namespaces.
    pub async fn create_pair(
        &self,
        kind: DeviceKind,
        pair: &DevicePair<'_>,
    ) -> Result<(), NetworkError> {
        let mut peer = LinkMessageBuilder::<LinkUnspec>::default()
            .name(pair.peer)
            .mtu(pair.mtu)
            .address(pair.peer_address.0.to_vec());
        if let Some(namespace) = pair.peer_namespace {
            peer = peer.setns_by_fd(namespace.as_raw_fd());
        }
        let peer = peer.build();
        let (kind_of_link, data) = match kind {
            DeviceKind::Veth => (InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(peer))),
            DeviceKind::Netkit => (
                InfoKind::Netkit,
                // Frames have Ethernet headers, as on a veth.
                InfoData::Netkit(vec![
                    InfoNetkit::Mode(NetkitMode::L2),
                    InfoNetkit::Peer(peer),
                ]),
            ),
        };
        let host = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(kind_of_link)
            .name(pair.host)
            .mtu(pair.mtu)
            .address(pair.host_address.0.to_vec())
            .set_info_data(data)
            .build();
        let result = self.handle.link().add(host).execute().await;
        result.map_err(|error| {
            NetworkError::new(
                match kind {
                    DeviceKind::Veth => "create veth pair",
                    DeviceKind::Netkit => "create netkit pair",
                },
                format!("{}, {}", pair.host, pair.peer),
            )(Errno::from(error))
        })
    }

    /// Makes a VXLAN device that learns nothing: its network's number, its port, and the address that it sends from.
    pub async fn create_vxlan(
        &self,
        name: &str,
        address: LinkAddress,
        (network, port, local): (u32, u16, IpAddr),
        mtu: u32,
    ) -> Result<(), NetworkError> {
        let device = LinkVxlan::new(name, network)
            .port(port)
            .learning(false)
            .mtu(mtu)
            .address(address.0.to_vec());
        let device = match local {
            IpAddr::V4(local) => device.local(local),
            IpAddr::V6(local) => device.local6(local),
        };
        let result = self.handle.link().add(device.build()).execute().await;
        result
            .map_err(|error| NetworkError::new("create VXLAN interface", name)(Errno::from(error)))
    }

    /// Says for good at which node a VXLAN device's hardware address is.
    pub async fn ensure_forwarding(
        &self,
        index: u32,
        address: LinkAddress,
        node: IpAddr,
    ) -> Result<(), NetworkError> {
        let request = self
            .handle
            .neighbours()
            .add_bridge(index, &address.0)
            .flags(NeighbourFlags::Own)
            .destination(node)
            .replace();
        request.execute().await.map_err(|error| {
            NetworkError::new("add forwarding entry for", node.to_string())(Errno::from(error))
        })
    }

    /// Forgets what was said for good of an interface's neighbours, and where they are, but of these.
    pub async fn forget_neighbours_except(
        &self,
        index: u32,
        keep: &BTreeSet<LinkAddress>,
    ) -> Result<(), NetworkError> {
        let failed = |error| {
            NetworkError::new("forget neighbours of", format!("interface {index}"))(Errno::from(
                error,
            ))
        };
        let families = [
            AddressFamily::Inet,
            AddressFamily::Inet6,
            AddressFamily::Bridge,
        ];
        for family in families {
            let request = self.handle.neighbours().get().set_address_family(family);
            let known: Vec<_> = request.execute().try_collect().await.map_err(failed)?;
            let of_interface = known.into_iter().filter(|known| {
                known.header.ifindex == index && known.header.state == NeighbourState::Permanent
            });
            for message in of_interface {
                let is_kept = message.attributes.iter().any(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(bytes) => {
                        keep.iter().any(|address| address.0 == bytes[..])
                    }
                    _ => false,
                });
                if !is_kept {
                    let request = self.handle.neighbours().del(message);
                    request.execute().await.map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Removes an interface (of a veth pair: both ends); one that is absent is fine.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetworkError> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        let result = self.handle.link().del(link.index).execute().await;
        match result.map_err(Errno::from) {
            Err(error) if !error.is(libc::ENODEV) => {
                Err(NetworkError::new("delete interface", name)(error))
            }
            _ => Ok(()),
        }
    }

    /// Sets an interface up.
    pub async fn set_up(&self, index: u32) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        let result = self.handle.link().change(message).execute().await;
        result.map_err(|error| {
            NetworkError::new("set up", format!("interface {index}"))(Errno::from(error))
        })
    }

    /// Gives an interface an address of its own, without a subnet and without asking whether others have it.
    pub async fn ensure_address(&self, index: u32, address: IpAddr) -> Result<(), NetworkError> {
        let length = host_prefix_length(address);
        let mut request = self.handle.address().add(index, address, length).replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(|error| {
            NetworkError::new("add address", address.to_string())(Errno::from(error))
        })
    }

    /// The addresses of an interface.
    pub async fn addresses(&self, index: u32) -> Result<Vec<IpAddr>, NetworkError> {
        let messages = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute();
        let messages: Vec<_> = messages.try_collect().await.map_err(|error| {
            NetworkError::new("list addresses of", format!("interface {index}"))(Errno::from(error))
        })?;
        let attributes = messages.into_iter().flat_map(|message| message.attributes);
        Ok(attributes
            .filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// Says for good which hardware address a neighbour has.
    pub async fn ensure_neighbour(
        &self,
        index: u32,
        neighbour: IpAddr,
        address: LinkAddress,
    ) -> Result<(), NetworkError> {
        let request = self
            .handle
            .neighbours()
            .add(index, neighbour)
            .link_layer_address(&address.0)
            .replace();
        request.execute().await.map_err(|error| {
            NetworkError::new("add neighbour", neighbour.to_string())(Errno::from(error))
        })
    }

    /// Adds a route of ours, in place of one to the same destination.
    pub async fn ensure_route(&self, route: &Route) -> Result<(), NetworkError> {
        let request = self.handle.route().add(route_message(route)).replace();
        request.execute().await.map_err(|error| {
            NetworkError::new("add route", route.destination.to_string())(Errno::from(error))
        })
    }

    /// Removes a route of ours; one that is absent is fine.
    pub async fn delete_route(&self, route: &Route) -> Result<(), NetworkError> {
        let result = self
            .handle
            .route()
            .del(route_message(route))
            .execute()
            .await;
        match result.map_err(Errno::from) {
            Err(error) if !error.is(libc::ESRCH) => Err(NetworkError::new(
                "delete route",
                route.destination.to_string(),
            )(error)),
            _ => Ok(()),
        }
    }

    /// Every route of ours, both families.
    pub async fn own_routes(&self) -> Result<Vec<Route>, NetworkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let mut answers = std::pin::pin!(self.handle.route().get(query).execute());
            while let Some(answer) = answers.next().await {
                let message = answer
                    .map_err(|error| NetworkError::new("list", "routes")(Errno::from(error)))?;
                if message.header.protocol == PROTOCOL {
                    routes.extend(route_of(&message));
                }
            }
        }
        Ok(routes)
    }
}

/// The length of the prefix that is one address.
pub fn host_prefix_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn link_of(message: &LinkMessage) -> Link {
    let mtu = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => Some(LinkAddress(bytes.as_slice().try_into().ok()?)),
            _ => None,
        });
    Link {
        address,
        index: message.header.index,
        mtu: mtu.unwrap_or(1500),
        up: message.header.flags.contains(LinkFlags::Up),
    }
}

/// The kernel's answer, without the bytes of the request that rtnetlink prints beside it.
#[derive(Debug, thiserror::Error)]
enum Errno {
    #[error(transparent)]
    Kernel(io::Error),
    #[error(transparent)]
    Library(rtnetlink::Error),
}

impl Errno {
    fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Kernel(error) if error.raw_os_error() == Some(errno))
    }
}

impl From<rtnetlink::Error> for Errno {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Kernel(message.to_io()),
            other => Self::Library(other),
        }
    }
}
