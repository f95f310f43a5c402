//! Where packets leave the node: by the uplink, or by the tunnel to other nodes and their pods.

use portolan_abi::{
    config::NodeConfig,
    network::{self, Exit},
    outcome::Outcome,
    parse::Packet,
    tables::{Hook, Tables},
};

use crate::{
    maps::{Family, Maps},
    skb,
    tc::PASS,
};

/// Sends a packet out of the node, if it can leave. `carries_pod`: its source is a pod of this node.
#[inline(always)]
pub fn leave<A: Family>(destination: A, carries_pod: bool, config: &'static NodeConfig) -> i32 {
    let verdict = tunnel(destination, carries_pod, config);
    if verdict == PASS && config.uplink != 0 {
        return skb::to_neighbour(config.uplink);
    }
    verdict
}

/// Sends a packet through the tunnel, if there is one and it leads to the destination.
#[inline(always)]
pub fn tunnel<A: Family>(destination: A, carries_pod: bool, config: &'static NodeConfig) -> i32 {
    if config.tunnel == 0 {
        return PASS;
    }
    let [first, second] = destination.words();
    into_tunnel::<A>(first, second, carries_pod, config)
}

// Not inlined, so that a next hop's share of the stack is free elsewhere; and given words, since the linker cannot copy
// an address here.
#[inline(never)]
fn into_tunnel<A: Family>(
    first: u64,
    second: u64,
    carries_pod: bool,
    config: &'static NodeConfig,
) -> i32 {
    let destination = A::from_words([first, second]);
    let kind = Tables::<A>::network(&Maps { config }, destination);
    match network::exit(kind, carries_pod) {
        Exit::Uplink => PASS,
        Exit::Tunnel => skb::to_neighbour(config.tunnel),
        Exit::TunnelToNode => skb::to_next_hop(config.tunnel, destination),
    }
}

/// [`network::judge_outer`], where there is a tunnel.
#[inline(always)]
pub fn judge_outer<A: Family>(
    packet: &Packet<A>,
    hook: Hook,
    config: &'static NodeConfig,
) -> Outcome {
    if config.tunnel != 0 && hook == Hook::UPLINK {
        judge(packet, config)
    } else {
        Outcome::UNKNOWN
    }
}

#[inline(never)]
fn judge<A: Family>(packet: &Packet<A>, config: &'static NodeConfig) -> Outcome {
    network::judge_outer(packet, &Maps { config })
}
