//! From a service's frontends to the keys of the service maps.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use portolan_abi::{
    address::{V4, V6},
    bytes::Be16,
    protocol,
    service::{ServiceEntry, ServiceKey, flags},
};

use crate::{
    Error,
    maps::{Maps, failed},
    model::{Frontend, Protocol, Scope, Service, TrafficPolicy},
};

/// The flags that say what a key is; others say what stands behind it.
pub const FLAGS: u32 = flags::INTERNAL_LOCAL
    | flags::EXTERNAL_LOCAL
    | flags::EXTERNAL
    | flags::NODE_PORT
    | flags::LOAD_BALANCER;

/// A key of a service map, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: u8,
}

impl Key {
    fn v4(&self, address: Ipv4Addr) -> ServiceKey<V4> {
        ServiceKey::new(
            V4::from_octets(address.octets()),
            Be16::new(self.port),
            self.protocol,
        )
    }

    fn v6(&self, address: Ipv6Addr) -> ServiceKey<V6> {
        ServiceKey::new(
            V6::from_octets(address.octets()),
            Be16::new(self.port),
            self.protocol,
        )
    }

    /// Lets the entry be found by packets from now on, in place of what was there.
    pub fn publish(&self, maps: &Maps, entry: &ServiceEntry) -> Result<(), Error> {
        let result = match self.address {
            IpAddr::V4(address) => maps.services_v4.set(&self.v4(address), entry),
            IpAddr::V6(address) => maps.services_v6.set(&self.v6(address), entry),
        };
        result.map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::TableFull {
                table: "frontends",
                capacity: maps.services_v4.max_entries(),
            },
            _ => failed(
                "write frontend",
                std::path::Path::new(&self.to_string()),
                error,
            ),
        })
    }

    /// Lets packets find nothing here any more.
    pub fn withdraw(&self, maps: &Maps) -> Result<(), Error> {
        let result = match self.address {
            IpAddr::V4(address) => maps.services_v4.remove(&self.v4(address)),
            IpAddr::V6(address) => maps.services_v6.remove(&self.v6(address)),
        };
        result.map_err(|error| {
            failed(
                "remove frontend",
                std::path::Path::new(&self.to_string()),
                error,
            )
        })
    }

    /// Everything that stands in the maps.
    pub fn all(maps: &Maps) -> Result<Vec<(Self, ServiceEntry)>, Error> {
        let read = |error| failed("read", std::path::Path::new("the service maps"), error);
        let v4 = maps
            .services_v4
            .entries::<ServiceKey<V4>, ServiceEntry>()
            .map_err(read)?;
        let v6 = maps
            .services_v6
            .entries::<ServiceKey<V6>, ServiceEntry>()
            .map_err(read)?;
        let v4 = v4.into_iter().map(|(key, entry)| {
            let address = IpAddr::from(key.address.octets());
            (
                Self {
                    address,
                    port: key.port.get(),
                    protocol: key.protocol,
                },
                entry,
            )
        });
        let v6 = v6.into_iter().map(|(key, entry)| {
            let address = IpAddr::from(key.address.octets());
            (
                Self {
                    address,
                    port: key.port.get(),
                    protocol: key.protocol,
                },
                entry,
            )
        });
        Ok(v4.chain(v6).collect())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            protocol::TCP => "TCP",
            protocol::UDP => "UDP",
            _ => "SCTP",
        };
        write!(
            formatter,
            "{}/{protocol}",
            std::net::SocketAddr::new(self.address, self.port)
        )
    }
}

/// The IANA number of a protocol that services may have.
pub fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => protocol::TCP,
        Protocol::Udp => protocol::UDP,
        Protocol::Sctp => protocol::SCTP,
    }
}

/// The protocol of an IANA number that services may have.
pub fn protocol(number: u8) -> Protocol {
    match number {
        protocol::TCP => Protocol::Tcp,
        protocol::SCTP => Protocol::Sctp,
        _ => Protocol::Udp,
    }
}

/// Where packets may find a service, with the flags of each place.
pub fn keys(service: &Service, protocol: u8, node_addresses: &[IpAddr]) -> BTreeMap<Key, u32> {
    let mut keys = BTreeMap::new();
    for frontend in &service.frontends {
        match *frontend {
            Frontend::Address {
                address,
                port,
                scope,
            } => {
                let external = scope != Scope::Cluster;
                let kind = match scope {
                    Scope::Cluster => 0,
                    Scope::External => flags::EXTERNAL,
                    Scope::LoadBalancer => flags::EXTERNAL | flags::LOAD_BALANCER,
                };
                let flags = kind | policies(service, external);
                keys.insert(
                    Key {
                        address,
                        port,
                        protocol,
                    },
                    flags,
                );
            }
            Frontend::NodePort { port } => {
                let flags = flags::EXTERNAL | flags::NODE_PORT | policies(service, true);
                for &address in node_addresses {
                    keys.insert(
                        Key {
                            address,
                            port,
                            protocol,
                        },
                        flags,
                    );
                }
            }
        }
    }
    keys
}

/// Pods that knock at an external address are no worse off than at the cluster IP: the external policy is not theirs.
fn policies(service: &Service, external: bool) -> u32 {
    match (external, service.internal_policy, service.external_policy) {
        (true, _, TrafficPolicy::Local) => flags::EXTERNAL_LOCAL,
        (false, TrafficPolicy::Local, _) => flags::INTERNAL_LOCAL,
        _ => 0,
    }
}

/// The frontends that keys with these flags stand for.
pub fn frontends<'a>(keys: impl Iterator<Item = (&'a Key, &'a u32)>) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    for (key, flag) in keys {
        let frontend = if flag & flags::NODE_PORT != 0 {
            Frontend::NodePort { port: key.port }
        } else {
            let scope = if flag & flags::LOAD_BALANCER != 0 {
                Scope::LoadBalancer
            } else if flag & flags::EXTERNAL != 0 {
                Scope::External
            } else {
                Scope::Cluster
            };
            Frontend::Address {
                address: key.address,
                port: key.port,
                scope,
            }
        };
        if !frontends.contains(&frontend) {
            frontends.push(frontend);
        }
    }
    frontends
}
