//! The maps of this node's pods.

use std::{collections::BTreeMap, mem::offset_of, net::IpAddr, path::Path, sync::atomic::Ordering};

use portolan_abi::{
    address::{V4, V6},
    namespace::NamespaceEntry,
    pod::PodEntry,
    sender::{self, SenderEntry},
};

use crate::{
    Error, PodInterface,
    maps::{Maps, failed},
    sys,
};

/// Which addresses are in pods of this node, as the maps say.
#[derive(Debug)]
pub struct Pods {
    entries: BTreeMap<IpAddr, PodEntry>,
    /// By the cookie of the pod's network namespace, the node's end of its veth.
    namespaces: BTreeMap<u64, u32>,
}

impl Pods {
    /// Reads the maps.
    pub fn restore(maps: &Maps) -> Result<Self, Error> {
        let read = |error| failed("read", Path::new("the maps of pods"), error);
        let v4 = maps.pods_v4.entries::<V4, PodEntry>().map_err(read)?;
        let v6 = maps.pods_v6.entries::<V6, PodEntry>().map_err(read)?;
        let v4 = v4
            .into_iter()
            .map(|(address, entry)| (IpAddr::from(address.octets()), entry));
        let v6 = v6
            .into_iter()
            .map(|(address, entry)| (IpAddr::from(address.octets()), entry));
        let namespaces = maps.namespaces.entries::<u64, NamespaceEntry>();
        Ok(Self {
            entries: v4.chain(v6).collect(),
            namespaces: namespaces
                .map_err(read)?
                .into_iter()
                .map(|(netns, entry)| (netns, entry.interface))
                .collect(),
        })
    }

    /// The cookie of the network namespace of the pod behind an interface; zero if it is not known.
    fn netns(&self, interface: u32) -> u64 {
        let mut all = self.namespaces.iter();
        all.find(|(_, at)| **at == interface)
            .map_or(0, |(netns, _)| *netns)
    }

    /// Says whose sockets are in a network namespace, and in no other.
    pub fn settle(
        &mut self,
        maps: &Maps,
        interface: u32,
        (netns, addresses): (u64, &[IpAddr]),
    ) -> Result<(), Error> {
        self.unsettle(maps, |other, at| at == interface && other != netns)?;
        if netns == 0 {
            return Ok(());
        }
        let mut entry = NamespaceEntry {
            interface,
            ..NamespaceEntry::default()
        };
        for address in addresses.iter().rev() {
            match address {
                IpAddr::V4(address) => entry.v4 = V4::from_octets(address.octets()),
                IpAddr::V6(address) => entry.v6 = V6::from_octets(address.octets()),
            }
        }
        let written = maps.namespaces.set(&netns, &entry);
        written.map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::TableFull {
                table: "network namespaces of pods",
                capacity: maps.namespaces.max_entries(),
            },
            _ => failed("write network namespace", Path::new("NAMESPACES"), error),
        })?;
        self.namespaces.insert(netns, interface);
        Ok(())
    }

    /// Forgets the network namespaces that are meant, by cookie and interface.
    pub fn unsettle(
        &mut self,
        maps: &Maps,
        is_meant: impl Fn(u64, u32) -> bool,
    ) -> Result<(), Error> {
        let all = self.namespaces.iter();
        let gone: Vec<u64> = all
            .filter(|(netns, interface)| is_meant(**netns, **interface))
            .map(|(netns, _)| *netns)
            .collect();
        for netns in gone {
            let removed = maps.namespaces.remove(&netns);
            removed.map_err(|error| failed("forget namespace", Path::new("NAMESPACES"), error))?;
            self.namespaces.remove(&netns);
        }
        Ok(())
    }

    /// Every address that is in a pod.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.entries.keys().copied()
    }

    /// The pods whose interfaces exist, by interface.
    pub fn attached(&self) -> BTreeMap<String, PodInterface> {
        let mut attached: BTreeMap<String, PodInterface> = BTreeMap::new();
        for (address, entry) in &self.entries {
            let Ok(host_interface) = sys::name_of(entry.interface) else {
                continue;
            };
            let pod = attached
                .entry(host_interface.clone())
                .or_insert_with(|| PodInterface {
                    host_interface,
                    addresses: Vec::new(),
                    pod_mac: entry.pod_mac,
                    netns: self.netns(entry.interface),
                });
            pod.addresses.push(*address);
        }
        attached
    }

    /// How to put a packet into the pod with an address.
    pub fn get(&self, address: IpAddr) -> Option<PodEntry> {
        self.entries.get(&address).copied()
    }

    /// Lets packets into a pod.
    pub fn insert(&mut self, maps: &Maps, address: IpAddr, entry: PodEntry) -> Result<(), Error> {
        if self.entries.get(&address) == Some(&entry) {
            return Ok(());
        }
        let result = match address {
            IpAddr::V4(address) => maps.pods_v4.set(&V4::from_octets(address.octets()), &entry),
            IpAddr::V6(address) => maps.pods_v6.set(&V6::from_octets(address.octets()), &entry),
        };
        result.map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Error::TableFull {
                table: "pod addresses",
                capacity: maps.pods_v4.max_entries(),
            },
            _ => failed("write pod", Path::new(&address.to_string()), error),
        })?;
        self.entries.insert(address, entry);
        Ok(())
    }

    /// Notes whose addresses come out of an interface, in the interface's own place.
    pub fn admit(maps: &Maps, interface: u32, addresses: &[IpAddr]) {
        let mut entry = SenderEntry {
            interface,
            ..SenderEntry::default()
        };
        for address in addresses.iter().rev() {
            match address {
                IpAddr::V4(address) => entry.v4 = V4::from_octets(address.octets()),
                IpAddr::V6(address) => entry.v6 = V6::from_octets(address.octets()),
            }
        }
        let place = sender::place(interface);
        if maps.senders.get(place) == entry {
            return;
        }
        // While it is written, senders are looked up among the pods' addresses.
        bar(maps, place);
        maps.senders.set(
            place,
            SenderEntry {
                interface: 0,
                ..entry
            },
        );
        maps.senders
            .half(place, offset_of!(SenderEntry, interface))
            .store(interface, Ordering::Release);
    }

    /// Forgets an address.
    pub fn remove(&mut self, maps: &Maps, address: IpAddr) -> Result<(), Error> {
        let result = match address {
            IpAddr::V4(address) => maps.pods_v4.remove(&V4::from_octets(address.octets())),
            IpAddr::V6(address) => maps.pods_v6.remove(&V6::from_octets(address.octets())),
        };
        result.map_err(|error| failed("remove pod", Path::new(&address.to_string()), error))?;
        if let Some(entry) = self.entries.remove(&address) {
            let place = sender::place(entry.interface);
            if maps.senders.get(place).interface == entry.interface {
                bar(maps, place);
            }
        }
        Ok(())
    }
}

/// Empties a place of the map of senders.
fn bar(maps: &Maps, place: u32) {
    maps.senders
        .half(place, offset_of!(SenderEntry, interface))
        .store(0, Ordering::Release);
}
