//! Per-CPU counters of services, indexed by service id.

use crate::assert_layout;

/// What one CPU counted for one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceCount {
    /// New flows by [`crate::backend::class`].
    pub flows: [u64; 3],
    /// New flows refused because no backend could take them.
    pub refused: u64,
    /// Packets forwarded, both directions.
    pub packets: u64,
    /// Bytes forwarded from the IP header on, both directions.
    pub bytes: u64,
}

assert_layout!(
    ServiceCount,
    size = 48,
    align = 8,
    fields = [[u64; 3], u64, u64, u64]
);
