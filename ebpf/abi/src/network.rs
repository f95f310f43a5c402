//! What the node knows of the networks around it: a longest-prefix map from addresses to [`kind`].
//!
//! Its keys are those of [`crate::source_range`], all of one set.

use crate::{
    address::Address, bytes::Be16, drop_reason::DropReason, outcome::Outcome, parse::Packet,
    protocol, tables::Tables,
};

/// The set that the keys are of.
pub const SET: u32 = 0;

/// Bits of a network's value. A network that is not in the map is beyond the cluster.
pub mod kind {
    /// Pods speak to it with their own addresses.
    pub const INSIDE: u32 = 1 << 0;
    /// The address of a node of the cluster, which may send encapsulated packets here and takes them from here.
    pub const NODE: u32 = 1 << 1;
    /// Other nodes' pods, which are reached through the tunnel if there is one.
    pub const PODS: u32 = 1 << 2;
    /// The address of another node. If there is a tunnel, what carries a pod's address goes there through it.
    pub const PEER: u32 = 1 << 3;
}

/// By which way a packet leaves the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By the uplink.
    Uplink,
    /// By the tunnel, where the routing table says to which node.
    Tunnel,
    /// By the tunnel, to the node whose address it is.
    TunnelToNode,
}

/// The way of a node that has a tunnel to a destination of a [`kind`]; `carries_pod`: the packet's source is a pod of
/// this node, whom nobody between the nodes need know. What nodes send each other as themselves needs no tunnel.
#[inline(always)]
#[must_use]
pub const fn exit(kind: u32, carries_pod: bool) -> Exit {
    if kind & kind::PODS != 0 {
        Exit::Tunnel
    } else if carries_pod && kind & kind::PEER != 0 {
        Exit::TunnelToNode
    } else {
        Exit::Uplink
    }
}

/// The port of VXLAN (RFC 7348).
pub const TUNNEL_PORT: Be16 = Be16::new(4789);

/// Judges what came in at the uplink for the tunnel's own port at this node: [`Outcome::PASS`] if it is another node's, a
/// drop if not, since whoever may send there can send to pods as anyone. [`Outcome::UNKNOWN`] for all other packets.
#[inline(always)]
pub fn judge_outer<A: Address, T: Tables<A>>(packet: &Packet<A>, tables: &T) -> Outcome {
    if packet.protocol != protocol::UDP
        || packet.destination_port != TUNNEL_PORT
        || packet.destination != tables.node_address()
    {
        Outcome::UNKNOWN
    } else if tables.network(packet.source) & kind::PEER != 0 {
        Outcome::PASS
    } else {
        Outcome::drop(DropReason::TunnelStranger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_behind_the_tunnel_and_nodes_for_pods_alone() {
        let (pods, peer) = (
            kind::INSIDE | kind::PODS,
            kind::INSIDE | kind::NODE | kind::PEER,
        );
        assert_eq!(exit(pods, false), Exit::Tunnel);
        assert_eq!(exit(pods, true), Exit::Tunnel);
        assert_eq!(exit(peer, true), Exit::TunnelToNode);
        for (kind, carries_pod) in [(peer, false), (kind::INSIDE | kind::NODE, true), (0, true)] {
            assert_eq!(exit(kind, carries_pod), Exit::Uplink);
        }
    }
}
