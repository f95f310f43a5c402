//! Services, affinities and a bucket of sockets in plain memory.

use std::{cell::RefCell, collections::HashMap};

use portolan_abi::{
    address::{Address, V4},
    affinity::{AffinityEntry, AffinityKey},
    backend::{Backend, class, state},
    bytes::Be16,
    choice::{ChoiceLine, Load, Place},
    flow::{Bucket, Meta},
    outcome::{Action, Outcome},
    protocol::{TCP, UDP},
    service::{ChoiceTable, ServiceEntry, ServiceKey, flags, table},
    socket::Wish,
    socket_table::{End, SocketBucket, Sockets, Translation},
    tables::Tables,
};

pub const VIP: V4 = V4::from_octets([10, 96, 0, 1]);
pub const NODE: V4 = V4::from_octets([10, 89, 0, 11]);
pub const POD: V4 = V4::from_octets([10, 244, 1, 200]);
/// Cookies of the network namespaces of the node and of a pod.
pub const NODE_NETNS: u64 = 1;
pub const POD_NETNS: u64 = 2;
pub const PORT: Be16 = Be16::new(80);
pub const NODE_PORT: Be16 = Be16::new(30_080);

/// One bucket, as its single user sees it.
#[derive(Default)]
pub struct Memory(pub RefCell<SocketBucket>);

impl Sockets for &Memory {
    fn owner(&self, way: u32) -> u64 {
        self.0.borrow().owners[way as usize]
    }

    fn exchange(&self, way: u32, expected: u64, owner: u64) -> bool {
        let is_it = self.owner(way) == expected;
        if is_it {
            self.set_owner(way, owner);
        }
        is_it
    }

    fn set_owner(&self, way: u32, owner: u64) {
        self.0.borrow_mut().owners[way as usize] = owner;
    }

    fn frontend(&self, way: u32) -> End {
        let translation = self.0.borrow().translations[way as usize];
        End {
            address: translation.frontend,
            port: translation.frontend_port,
        }
    }

    fn backend(&self, way: u32) -> End {
        let translation = self.0.borrow().translations[way as usize];
        End {
            address: translation.backend,
            port: translation.backend_port,
        }
    }

    fn id(&self, way: u32) -> u32 {
        self.0.borrow().translations[way as usize].id
    }

    fn kind(&self, way: u32) -> u32 {
        self.0.borrow().translations[way as usize].kind
    }

    fn write(&self, way: u32, translation: &Translation) {
        self.0.borrow_mut().translations[way as usize] = *translation;
    }
}

/// Sockets have no flows.
#[derive(Clone, Copy)]
pub struct NoBucket;

impl Bucket<V4> for NoBucket {
    fn meta(&self, _: u32) -> Meta {
        unreachable!("sockets have no flows")
    }
    fn client(&self, _: u32) -> V4 {
        unreachable!("sockets have no flows")
    }
    fn frontend(&self, _: u32) -> V4 {
        unreachable!("sockets have no flows")
    }
    fn exchange(&self, _: u32, _: Meta, _: Meta) -> bool {
        unreachable!("sockets have no flows")
    }
    fn try_lock(&self) -> bool {
        unreachable!("sockets have no flows")
    }
    fn unlock(&self) {
        unreachable!("sockets have no flows")
    }
    fn publish(&self, _: u32, _: Meta) {
        unreachable!("sockets have no flows")
    }
    fn write(&self, _: u32, _: V4, _: V4) {
        unreachable!("sockets have no flows")
    }
}

/// Services whose backends are 10.244.1.ID:8080.
pub struct Model {
    pub services: HashMap<ServiceKey<V4>, ServiceEntry>,
    pub lines: Vec<ChoiceLine>,
    pub backends: Vec<Backend>,
    pub connections: RefCell<Vec<u32>>,
    pub affinities: RefCell<HashMap<AffinityKey, AffinityEntry>>,
    pub range: Option<V4>,
    pub now: u64,
}

impl Model {
    pub fn new(count: u8) -> Self {
        let backends = (0..count)
            .map(|last| Backend {
                address: V4::from_octets([10, 244, 1, last]).words(),
                port: Be16::new(8_080),
                state: state::LIVE,
                class: class::NODE,
                ..Backend::default()
            })
            .collect();
        Self {
            services: HashMap::new(),
            lines: Vec::new(),
            backends,
            connections: RefCell::default(),
            affinities: RefCell::default(),
            range: None,
            now: 0,
        }
    }

    /// A frontend whose flows go to these backends.
    pub fn serve(&mut self, address: V4, port: Be16, protocol: u8, flags: u32, ids: &[u32]) {
        let mut entry = ServiceEntry {
            id: 7,
            flags,
            ..ServiceEntry::default()
        };
        if !ids.is_empty() {
            let mut line = ChoiceLine::default();
            for (lane, id) in line.backends.iter_mut().zip(ids.iter().cycle()) {
                *lane = *id;
            }
            entry.tables[table::PREFERRED] = ChoiceTable {
                first_line: u32::try_from(self.lines.len()).expect("a few"),
                lines: 1,
            };
            self.lines.push(line);
        }
        self.services
            .insert(ServiceKey::new(address, port, protocol), entry);
    }

    pub fn web(ids: &[u32]) -> Self {
        let mut model = Self::new(8);
        for protocol in [TCP, UDP] {
            model.serve(VIP, PORT, protocol, 0, ids);
            model.serve(
                NODE,
                NODE_PORT,
                protocol,
                flags::EXTERNAL | flags::NODE_PORT,
                ids,
            );
        }
        model
    }
}

impl Tables<V4> for Model {
    type Bucket = NoBucket;

    fn seed(&self) -> u64 {
        99
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn node_netns(&self) -> u64 {
        NODE_NETNS
    }
    fn client(&self, netns: u64) -> V4 {
        if netns == POD_NETNS {
            POD
        } else {
            V4::default()
        }
    }
    fn node_address(&self) -> V4 {
        NODE
    }
    fn flows(&self, _: u64) -> Option<NoBucket> {
        None
    }
    fn source_nat(&self, _: u32) -> Option<NoBucket> {
        None
    }
    fn service(&self, key: &ServiceKey<V4>) -> Option<&ServiceEntry> {
        self.services.get(key)
    }
    fn choice(&self, place: Place) -> Option<u32> {
        let line = self.lines.get(place.line as usize)?;
        Some(line.backends[place.lane as usize])
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }
    fn away(&self, _: u32) -> u32 {
        0
    }
    fn load(&self, _: u32) -> Option<Load> {
        None
    }
    fn add_connection(&self, backend: u32) {
        self.connections.borrow_mut().push(backend);
    }
    fn is_in_ranges(&self, _: u32, client: V4) -> bool {
        self.range == Some(client)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinities.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, entry: &AffinityEntry) {
        self.affinities.borrow_mut().insert(*key, *entry);
    }
}

pub fn wish(cookie: u64, protocol: u8) -> Wish<V4> {
    Wish {
        cookie,
        address: VIP,
        port: PORT,
        protocol,
        netns: POD_NETNS,
    }
}

pub fn backend_end(id: u32) -> End {
    let last = u8::try_from(id).expect("a few");
    End {
        address: V4::from_octets([10, 244, 1, last]).mapped(),
        port: Be16::new(8_080),
    }
}

pub fn frontend_end(address: V4, port: Be16) -> End {
    End {
        address: address.mapped(),
        port,
    }
}

pub fn owned(memory: &Memory) -> usize {
    let bucket = memory.0.borrow();
    bucket.owners.iter().filter(|owner| **owner != 0).count()
}

pub fn forwarded(outcome: Outcome) -> u32 {
    assert_eq!(outcome.action(), Action::Forward, "{outcome:?}");
    outcome.number()
}
