//! The map of backends: ids are given out here, and taken back when no flow needs them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem::offset_of,
    net::IpAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use portolan_abi::{
    address::{Address, V4, V6},
    backend::{Backend, delivery, offers, state},
    bytes::Be16,
    choice::Load,
    masquerade::WORLD,
    pod::PodEntry,
};

use crate::{
    Error,
    allocation::Ids,
    choice::{class_of, locality_of},
    maps::Maps,
    model,
};

/// How long a program that read the service before its change may still make flows to a backend that left it.
const GRACE: Duration = Duration::from_secs(2);

/// One service's backend, as ids are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    pub service: u32,
    pub address: IpAddr,
    pub port: u16,
}

/// What this process knows of the map of backends.
#[derive(Debug)]
pub struct Backends {
    ids: Ids,
    known: HashMap<Identity, u32>,
    by_address: HashMap<IpAddr, Vec<u32>>,
    removed: BTreeMap<u32, Instant>,
    /// Those whose connections the next choice asks for.
    counted: BTreeSet<u32>,
    /// Whether one was released since that was last asked.
    any_released: bool,
}

impl Backends {
    /// Reads the map.
    pub fn restore(maps: &Maps) -> Self {
        let bound = maps.backends.len().min(WORLD);
        let mut backends = Self {
            ids: Ids::new(bound),
            known: HashMap::new(),
            by_address: HashMap::new(),
            removed: BTreeMap::new(),
            counted: BTreeSet::new(),
            any_released: false,
        };
        for id in 0..bound {
            let entry = maps.backends.get(id);
            if entry.state == state::FREE {
                continue;
            }
            backends.ids.reserve(id);
            backends.remember(id, identity(&entry));
            backends.note_counted(id, entry.offers);
            if entry.state != state::LIVE {
                backends.removed.insert(id, Instant::now());
            }
        }
        backends
    }

    fn remember(&mut self, id: u32, identity: Identity) {
        self.known.insert(identity, id);
        self.by_address
            .entry(identity.address)
            .or_default()
            .push(id);
    }

    fn note_counted(&mut self, id: u32, offers: u8) {
        if offers & offers::COUNTED == 0 {
            self.counted.remove(&id);
        } else {
            self.counted.insert(id);
        }
    }

    /// Corrects how many connections the backends have that are chosen by that; `connections` is by id.
    pub fn count(&self, maps: &Maps, connections: impl Fn(u32) -> u32) {
        for id in &self.counted {
            maps.loads
                .half(*id, offset_of!(Load, connections))
                .store(connections(*id), Ordering::Release);
        }
    }

    /// How many ids are given out, and how many there are.
    pub fn fill(&self) -> (usize, u32) {
        (self.ids.used(), self.ids.bound())
    }

    /// Every backend of every service that may get new flows, by service id.
    pub fn live(&self, maps: &Maps) -> BTreeMap<u32, Vec<model::Backend>> {
        let mut live: BTreeMap<u32, Vec<model::Backend>> = BTreeMap::new();
        for (identity, id) in &self.known {
            let entry = maps.backends.get(*id);
            if entry.state == state::LIVE {
                live.entry(identity.service)
                    .or_default()
                    .push(model(maps, *id));
            }
        }
        for backends in live.values_mut() {
            backends.sort_by_key(|backend| (backend.address, backend.port));
        }
        live
    }

    /// The id of a backend, if it has one.
    pub fn id(&self, identity: &Identity) -> Option<u32> {
        self.known.get(identity).copied()
    }

    /// The id of a backend, which is live from now on; a new one if it has none. `offers` is what it is to new flows.
    pub fn acquire(
        &mut self,
        maps: &Maps,
        identity: Identity,
        protocol: u8,
        (backend, offers): (&model::Backend, u8),
        place: &Place,
    ) -> Result<u32, Error> {
        let mut entry = Backend {
            address: words(identity.address),
            port: Be16::new(identity.port),
            state: state::LIVE,
            service: identity.service,
            protocol,
            family: if identity.address.is_ipv4() { 4 } else { 6 },
            class: class_of(backend.locality),
            terminating: u8::from(backend.terminating),
            offers,
            ..Backend::default()
        };
        place.apply(&mut entry);
        if let Some(&id) = self.known.get(&identity) {
            self.removed.remove(&id);
            for (offset, byte) in [
                (offset_of!(Backend, class), entry.class),
                (offset_of!(Backend, terminating), entry.terminating),
                (offset_of!(Backend, offers), entry.offers),
            ] {
                maps.backends
                    .byte(id, offset)
                    .store(byte, Ordering::Release);
            }
            self.note_counted(id, offers);
            set_weight(maps, id, backend.weight);
            set_place(maps, id, place);
            set_state(maps, id, state::LIVE);
            return Ok(id);
        }
        let id = self.ids.allocate().ok_or(Error::TableFull {
            table: "backends",
            capacity: self.ids.bound(),
        })?;
        maps.loads.set(id, Load::default());
        set_weight(maps, id, backend.weight);
        maps.backends.set(id, entry);
        self.remember(id, identity);
        self.note_counted(id, offers);
        Ok(id)
    }

    /// Ends new flows to a backend; what becomes of the old ones `state` says. Its id is freed by [`Self::collect`].
    pub fn release(&mut self, maps: &Maps, id: u32, state: u8) {
        set_state(maps, id, state);
        self.removed.insert(id, Instant::now());
        self.any_released = true;
    }

    /// Whether a backend was released since the last call.
    pub fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.any_released)
    }

    /// The ids of the backends at an address, of all services.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        self.by_address.get(&address).into_iter().flatten().copied()
    }

    /// Frees the ids that no flow refers to; says how many.
    pub fn collect(&mut self, maps: &Maps, is_referred: impl Fn(u32) -> bool) -> u64 {
        let now = Instant::now();
        let over: Vec<u32> = self
            .removed
            .iter()
            .filter(|(id, since)| now.duration_since(**since) >= GRACE && !is_referred(**id))
            .map(|(id, _)| *id)
            .collect();
        for id in &over {
            let identity = identity(&maps.backends.get(*id));
            set_state(maps, *id, state::FREE);
            self.removed.remove(id);
            self.known.remove(&identity);
            self.counted.remove(id);
            if let Some(ids) = self.by_address.get_mut(&identity.address) {
                ids.retain(|other| other != id);
                if ids.is_empty() {
                    self.by_address.remove(&identity.address);
                }
            }
            self.ids.free(*id);
        }
        over.len() as u64
    }
}

/// Where an address is, as packets reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a pod of this node.
    Pod(PodEntry),
    /// At the node itself, or behind its routing table.
    Stack,
    /// Behind the uplink.
    Neighbour,
    /// Behind the uplink, and this node is its way to every client.
    Gateway,
    /// Behind the uplink, on a node with this address that answers clients by itself.
    Direct(IpAddr),
}

impl Place {
    fn delivery(&self) -> u8 {
        match self {
            Self::Pod(_) => delivery::PEER,
            Self::Stack => delivery::STACK,
            Self::Neighbour => delivery::NEIGHBOUR,
            Self::Gateway => delivery::GATEWAY,
            Self::Direct(_) => delivery::DIRECT,
        }
    }

    fn apply(&self, entry: &mut Backend) {
        entry.delivery = self.delivery();
        if let Self::Pod(pod) = self {
            entry.interface = pod.interface;
            entry.pod_mac = pod.pod_mac;
            entry.host_mac = pod.host_mac;
        }
        if let Self::Direct(node) = self {
            entry.node = words(*node);
        }
    }
}

/// Changes how packets reach a backend; they see the old way or the new one.
pub fn set_place(maps: &Maps, id: u32, place: &Place) {
    let delivery = maps.backends.byte(id, offset_of!(Backend, delivery));
    if let Place::Pod(pod) = place {
        let interface = maps.backends.half(id, offset_of!(Backend, interface));
        if interface.load(Ordering::Relaxed) != pod.interface {
            delivery.store(delivery::STACK, Ordering::Release);
        }
        interface.store(pod.interface, Ordering::Release);
        for (offset, mac) in [
            (offset_of!(Backend, pod_mac), pod.pod_mac),
            (offset_of!(Backend, host_mac), pod.host_mac),
        ] {
            for (index, byte) in mac.into_iter().enumerate() {
                maps.backends
                    .byte(id, offset + index)
                    .store(byte, Ordering::Release);
            }
        }
    }
    if let Place::Direct(node) = place {
        let [first, second] = words(*node);
        let at = offset_of!(Backend, node);
        let word = |offset| maps.backends.word(id, offset);
        if word(at).load(Ordering::Relaxed) != first
            || word(at + 8).load(Ordering::Relaxed) != second
        {
            // Until the address is whole, packets go the other way.
            delivery.store(delivery::NEIGHBOUR, Ordering::Release);
        }
        word(at).store(first, Ordering::Release);
        word(at + 8).store(second, Ordering::Release);
    }
    delivery.store(place.delivery(), Ordering::Release);
}

fn set_state(maps: &Maps, id: u32, state: u8) {
    maps.backends
        .byte(id, offset_of!(Backend, state))
        .store(state, Ordering::Release);
}

fn set_weight(maps: &Maps, id: u32, weight: u32) {
    maps.loads
        .half(id, offset_of!(Load, weight))
        .store(weight, Ordering::Release);
}

fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => V4::from_octets(address.octets()).words(),
        IpAddr::V6(address) => V6::from_octets(address.octets()).words(),
    }
}

/// The address of a backend's entry.
pub fn address(entry: &Backend) -> IpAddr {
    from_words(entry.family, entry.address)
}

fn from_words(family: u8, words: [u64; 2]) -> IpAddr {
    if family == 4 {
        IpAddr::from(V4::from_words(words).octets())
    } else {
        IpAddr::from(V6::from_words(words).octets())
    }
}

fn identity(entry: &Backend) -> Identity {
    Identity {
        service: entry.service,
        address: address(entry),
        port: entry.port.get(),
    }
}

/// A backend by its id, as callers know it.
pub fn model(maps: &Maps, id: u32) -> model::Backend {
    let entry = maps.backends.get(id);
    model::Backend {
        terminating: entry.terminating != 0,
        weight: maps.loads.get(id).weight,
        hinted_elsewhere: entry.offers & offers::HINTED_ELSEWHERE != 0,
        node: (entry.delivery == delivery::DIRECT).then(|| from_words(entry.family, entry.node)),
        ..model::Backend::new(address(&entry), entry.port.get(), locality_of(entry.class))
    }
}
