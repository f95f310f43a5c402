//! The node's configuration: an array map with one value, written by userspace, read by every program.

use crate::{
    address::{V4, V6},
    assert_layout,
};

/// What programs know of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NodeConfig {
    /// [`crate::ABI_VERSION`] of whoever made the maps. The first word in every version.
    pub abi_version: u32,
    /// [`flags`].
    pub flags: u32,
    /// Stirred into every hash, so that nobody outside can aim at a bucket.
    pub seed: u64,
    /// The number of buckets of the IPv4 flow table, minus one.
    pub flow_mask_v4: u32,
    /// The number of buckets of the IPv6 flow table, minus one.
    pub flow_mask_v6: u32,
    /// The uplink; 0 as long as there is none.
    pub uplink: u32,
    /// The address that source NAT gives to IPv4 packets; zero if the node has none.
    pub node_v4: V4,
    /// The address that source NAT gives to IPv6 packets; zero if the node has none.
    pub node_v6: V6,
    /// The interface of the tunnel to other nodes' pods; 0 where they are routed.
    pub tunnel: u32,
    /// The longest packet that the uplink takes, from the IP header on; 0 if that is unknown.
    pub uplink_mtu: u32,
    /// The cookie of the node's own network namespace.
    pub netns: u64,
    /// The number of buckets of the map of sockets, minus one.
    pub socket_mask: u32,
    /// Zero.
    pub padding: u32,
    /// Zero.
    pub reserved: [u64; 7],
}

assert_layout!(
    NodeConfig,
    size = 128,
    align = 8,
    fields = [
        u32, u32, u64, u32, u32, u32, V4, V6, u32, u32, u64, u32, u32, [u64; 7]
    ]
);

/// Bits of [`NodeConfig::flags`].
pub mod flags {
    /// XDP may send packets out of the uplink itself.
    pub const XDP_TRANSMIT: u32 = 1 << 0;
    /// Somebody watches: programs look at the map of the watch and report what it asks for.
    pub const WATCHED: u32 = 1 << 1;
    /// What pods send beyond the cluster leaves with the node's address.
    pub const MASQUERADE: u32 = 1 << 2;
}
