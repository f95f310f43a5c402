//! The maps of services: a hash map a family from what a client knocks at to where the choice tables lie.

use crate::{
    address::{V4, V6},
    assert_layout,
    bytes::Be16,
};

/// What a client knocks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServiceKey<A> {
    /// The address.
    pub address: A,
    /// The port.
    pub port: Be16,
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero; fills the key to a multiple of eight in the family whose addresses are aligned to eight.
    pub padding: [u8; 4],
}

assert_layout!(
    ServiceKey<V4>,
    size = 12,
    align = 4,
    fields = [V4, Be16, u8, u8, [u8; 4]]
);
assert_layout!(
    ServiceKey<V6>,
    size = 24,
    align = 8,
    fields = [V6, Be16, u8, u8, [u8; 4]]
);

impl<A> ServiceKey<A> {
    /// A key.
    #[inline(always)]
    pub const fn new(address: A, port: Be16, protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            reserved: 0,
            padding: [0; 4],
        }
    }
}

/// A choice table: lines of [`crate::choice::LANES`] backend ids in the choice map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ChoiceTable {
    /// The first line.
    pub first_line: u32,
    /// How many lines, a power of two; 0 for a class without backends.
    pub lines: u32,
}

/// Indexes of [`ServiceEntry::tables`]. Which backends stand in which is userspace's to say, by the service's distribution.
pub mod table {
    /// What new flows choose from, as far as no other table is named; empty if no backend can serve.
    pub const PREFERRED: usize = 0;
    /// What the share of new flows chooses from that is to leave the node, with [`super::flags::LOAD_AWARE`].
    pub const OTHER: usize = 1;
    /// What clients choose from whose policy is Local.
    pub const LOCAL_ONLY: usize = 2;
}

/// One service port as one of its frontends sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceEntry {
    /// The service port's id, which its counters are indexed by.
    pub id: u32,
    /// [`flags`].
    pub flags: u32,
    /// By [`table`].
    pub tables: [ChoiceTable; 3],
    /// For so many seconds after its last new flow a client keeps its backend; 0: it does not.
    pub affinity_seconds: u32,
    /// With [`flags::SOURCE_RANGES`]: the set of [`crate::source_range`] that clients must be in.
    pub source_ranges: u32,
    /// Zero; with it an entry is a cache line.
    pub reserved: [u32; 6],
}

assert_layout!(ChoiceTable, size = 8, align = 4, fields = [u32, u32]);
assert_layout!(
    ServiceEntry,
    size = 64,
    align = 4,
    fields = [u32, u32, [ChoiceTable; 3], u32, u32, [u32; 6]]
);

/// Bits of [`ServiceEntry::flags`].
pub mod flags {
    /// Clients in pods get backends of this node only.
    pub const INTERNAL_LOCAL: u32 = 1 << 0;
    /// Clients beyond the cluster get backends of this node only.
    pub const EXTERNAL_LOCAL: u32 = 1 << 1;
    /// Clients beyond the node may knock.
    pub const EXTERNAL: u32 = 1 << 2;
    /// A node port, which belongs to every address of the node.
    pub const NODE_PORT: u32 = 1 << 3;
    /// A load balancer's address.
    pub const LOAD_BALANCER: u32 = 1 << 4;
    /// Only clients of its source ranges may knock.
    pub const SOURCE_RANGES: u32 = 1 << 5;
    /// Of two backends, the one with fewer connections is chosen.
    pub const LEAST_CONNECTIONS: u32 = 1 << 6;
    /// A share of new flows, which the node sets, leaves the preferred backends for others.
    pub const LOAD_AWARE: u32 = 1 << 7;
}

/// How many bytes of a service's name the map of names holds.
pub const NAME_BYTES: usize = 180;

/// What userspace keeps of a service port beside its entries, so that a new process finds its ids again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRecord {
    /// For so many seconds a client keeps its backend; 0: it does not.
    pub affinity_seconds: u32,
    /// [`record`].
    pub options: u16,
    /// How many bytes of the name are used.
    pub name_length: u8,
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// Userspace's number of the distribution.
    pub distribution: u8,
    /// Userspace's number of the algorithm.
    pub algorithm: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// The name in UTF-8.
    pub name: [u8; NAME_BYTES],
}

assert_layout!(
    ServiceRecord,
    size = 192,
    align = 4,
    fields = [u32, u16, u8, u8, u8, u8, [u8; 2], [u8; NAME_BYTES]]
);

/// Bits of [`ServiceRecord::options`].
pub mod record {
    /// A policy of Local for clients in pods.
    pub const INTERNAL_LOCAL: u16 = 1 << 0;
    /// A policy of Local for clients beyond the cluster.
    pub const EXTERNAL_LOCAL: u16 = 1 << 1;
    /// Backends get flows though they are not ready.
    pub const PUBLISH_NOT_READY: u16 = 1 << 2;
    /// Packets of backends on other nodes go back straight from there.
    pub const DIRECT_RETURN: u16 = 1 << 3;
}
