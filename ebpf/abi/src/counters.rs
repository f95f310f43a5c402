//! Per-CPU counters of services, indexed by service id.

use crate::assert_layout;

/// What one CPU counted for the backends of one class. Half a cache line, which is all that a packet touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClassCount {
    /// New flows.
    pub flows: u64,
    /// Packets forwarded, both directions.
    pub packets: u64,
    /// Bytes forwarded from the IP header on, both directions.
    pub bytes: u64,
    /// TCP resets forwarded, both directions.
    pub resets: u64,
}

/// What one CPU counted for one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceCount {
    /// By [`crate::backend::class`].
    pub classes: [ClassCount; 3],
    /// New flows refused because no backend could take them.
    pub refused: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

assert_layout!(
    ClassCount,
    size = 32,
    align = 8,
    fields = [u64, u64, u64, u64]
);
assert_layout!(
    ServiceCount,
    size = 128,
    align = 8,
    fields = [[ClassCount; 3], u64, [u64; 3]]
);
