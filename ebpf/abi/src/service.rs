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

/// The index of the table that a policy of Local chooses from, beside those of [`crate::backend::class`].
pub const LOCAL_ONLY: usize = 3;

/// One service port as one of its frontends sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceEntry {
    /// The service port's id, which its counters are indexed by.
    pub id: u32,
    /// [`flags`].
    pub flags: u32,
    /// By [`crate::backend::class`], then [`LOCAL_ONLY`].
    pub tables: [ChoiceTable; 4],
    /// Zero; with it an entry is a cache line.
    pub reserved: [u32; 6],
}

assert_layout!(ChoiceTable, size = 8, align = 4, fields = [u32, u32]);
assert_layout!(
    ServiceEntry,
    size = 64,
    align = 4,
    fields = [u32, u32, [ChoiceTable; 4], [u32; 6]]
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
}

/// How many bytes of a service's name the map of names holds.
pub const NAME_BYTES: usize = 248;

/// What userspace keeps of a service port beside its entries, so that a new process finds its ids again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceRecord {
    /// How many bytes of the name are used.
    pub name_length: u16,
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// Nonzero for a policy of Local.
    pub internal_local: u8,
    /// Nonzero for a policy of Local.
    pub external_local: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// The name in UTF-8.
    pub name: [u8; NAME_BYTES],
}

assert_layout!(
    ServiceRecord,
    size = 256,
    align = 2,
    fields = [u16, u8, u8, u8, [u8; 3], [u8; NAME_BYTES]]
);
