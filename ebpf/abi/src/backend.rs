//! The map of backends: an array indexed by backend id, one cache line each.
//!
//! An id belongs to one (service, address, port) and outlives the backend's removal until no flow refers to it.

use crate::{address::Address, assert_layout, bytes::Be16};

/// The largest backend id plus one: what a flow's meta word has room for.
pub const MAX_BACKENDS: u32 = 1 << 20;

/// One backend of one service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// Its address, as [`Address::words`] gives it.
    pub address: [u64; 2],
    /// The port that it listens on.
    pub port: Be16,
    /// [`state`].
    pub state: u8,
    /// [`delivery`].
    pub delivery: u8,
    /// The service port that it serves.
    pub service: u32,
    /// For [`delivery::PEER`]: the node's end of the pod's veth.
    pub interface: u32,
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// 4 or 6.
    pub family: u8,
    /// [`class`].
    pub class: u8,
    /// Nonzero: it finishes its flows and is chosen only when every other backend does too.
    pub terminating: u8,
    /// For [`delivery::PEER`]: the MAC address of the pod's own end.
    pub pod_mac: [u8; 6],
    /// For [`delivery::PEER`]: the MAC address of the node's end.
    pub host_mac: [u8; 6],
    /// [`offers`].
    pub offers: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// For [`delivery::DIRECT`]: the address of its node, as [`Address::words`] gives it.
    pub node: [u64; 2],
}

assert_layout!(
    Backend,
    size = 64,
    align = 64,
    fields = [
        [u64; 2], Be16, u8, u8, u32, u32, u8, u8, u8, u8, [u8; 6], [u8; 6], u8, [u8; 3], [u64; 2]
    ]
);

/// What may be sent to a backend.
pub mod state {
    /// The id is free.
    pub const FREE: u8 = 0;
    /// New flows and old ones.
    pub const LIVE: u8 = 1;
    /// It left its service: established TCP flows finish, everything else chooses again.
    pub const REMOVED: u8 = 2;
    /// Its pod is gone: established TCP flows are reset, everything else chooses again.
    pub const GONE: u8 = 3;
}

/// How packets reach an address.
pub mod delivery {
    /// Through this node's own stack.
    pub const STACK: u8 = 0;
    /// Straight into a pod of this node.
    pub const PEER: u8 = 1;
    /// Out of the uplink, to the next hop that the routing table says.
    pub const NEIGHBOUR: u8 = 2;
    /// The same, and this node is on the backend's way to every client: packets keep their source, replies come back.
    pub const GATEWAY: u8 = 3;
    /// Out of the uplink; packets of clients beyond the cluster go to its node as they are, which answers by itself.
    pub const DIRECT: u8 = 4;

    /// Whether packets leave this node by the uplink.
    #[inline(always)]
    pub const fn leaves(delivery: u8) -> bool {
        delivery == NEIGHBOUR || delivery == GATEWAY || delivery == DIRECT
    }
}

/// How far away a backend is; also the index of its table in a service's entry.
pub mod class {
    /// On this node.
    pub const NODE: u8 = 0;
    /// On another node of this zone.
    pub const ZONE: u8 = 1;
    /// Anywhere else.
    pub const ELSEWHERE: u8 = 2;
}

/// Bits of [`Backend::offers`]: what it is to new flows.
pub mod offers {
    /// It takes those that a policy of Cluster allows.
    pub const CLUSTER: u8 = 1 << 0;
    /// It takes those that a policy of Local allows.
    pub const LOCAL: u8 = 1 << 1;
    /// Its connections are counted where they begin, for the next choice.
    pub const COUNTED: u8 = 1 << 2;
    /// Topology hints leave it to the clients of other nodes. Read by userspace alone.
    pub const HINTED_ELSEWHERE: u8 = 1 << 3;
}

impl Backend {
    /// Whether this is where a packet with this source came from.
    #[inline(always)]
    pub fn is_at<A: Address>(&self, address: A, port: Be16) -> bool {
        A::from_words(self.address) == address && self.port == port
    }
}
