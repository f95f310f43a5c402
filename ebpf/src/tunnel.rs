//! Encapsulation on the way to a backend's node, and what that node does first with what it gets.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_FIXED_GSO,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::generated::{bpf_skb_adjust_room, bpf_xdp_adjust_head},
    programs::{TcContext, XdpContext},
};
use portolan_abi::{
    backend::Backend,
    bytes::Be16,
    config::NodeConfig,
    drop_reason::{DropReason, Event},
    network::kind,
    parse::{Bytes, NETWORK, Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
    tables::Tables,
    too_big,
};

use crate::{
    count,
    hops::{self, Hop},
    maps::{self, Family, Maps},
    skb,
    tc::DROP,
    xdp,
};

/// Takes the outer header off what a node of the cluster has sent to this one; whether there was one.
#[inline(always)]
pub fn decapsulate<A: Family>(context: &TcContext) -> bool {
    A::is_outer(skb::frame(context)) && open::<A>(context)
}

#[inline(never)]
fn open<A: Family>(context: &TcContext) -> bool {
    let (Some((from, to)), Some(config)) = (A::ends(skb::frame(context)), maps::config()) else {
        return false;
    };
    let maps = Maps { config };
    if to != A::node_address(config) || Tables::<A>::network(&maps, from) & kind::NODE == 0 {
        return false;
    }
    let less = -(A::OVERHEAD as i32);
    let fixed = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is the program's own.
    let opened =
        unsafe { bpf_skb_adjust_room(context.as_ptr().cast(), less, BPF_ADJ_ROOM_MAC, fixed) == 0 };
    if opened {
        count::event(Event::Decapsulated.index());
    }
    opened
}

/// Sends a client's packet as it is to the node of its backend.
// Not inlined, so that its share of the stack is free while the stages run.
#[inline(never)]
pub fn encapsulate<A: Family>(
    context: &TcContext,
    packet: &Packet<A>,
    backend: &Backend,
    config: &NodeConfig,
) -> i32 {
    if segment_length(context, packet) + A::OVERHEAD > config.uplink_mtu && config.uplink_mtu != 0 {
        return refuse(context, packet, config.uplink_mtu - A::OVERHEAD);
    }
    let family = if A::IS_V6 {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
    } else {
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
    };
    let flags = u64::from(family | BPF_F_ADJ_ROOM_FIXED_GSO);
    let outer = A::outer(
        A::node_address(config),
        A::from_words(backend.node),
        packet.length,
    );
    // SAFETY: the context is the program's own.
    let failed = unsafe {
        bpf_skb_adjust_room(
            context.as_ptr().cast(),
            A::OVERHEAD as i32,
            BPF_ADJ_ROOM_MAC,
            flags,
        ) != 0
    };
    if failed || skb::store(context, NETWORK, &outer).is_err() {
        count::dropped(DropReason::RewriteFailed.index());
        return DROP;
    }
    count::event(Event::Encapsulated.index());
    skb::to_neighbour(config.uplink)
}

/// The length from the IP header on of what leaves of a packet: that of a segment, where the kernel is still to cut it.
#[inline(always)]
fn segment_length<A>(context: &TcContext, packet: &Packet<A>) -> u32 {
    let segment = skb::segment_size(context);
    if segment == 0 {
        return packet.length;
    }
    let header = if packet.protocol == protocol::TCP {
        let offset = skb::frame(context).u8(packet.transport + field::TCP_OFFSET);
        u32::from(offset.unwrap_or(0) >> 4) * 4
    } else {
        8
    };
    (packet.transport - NETWORK) as u32 + header + segment
}

/// Tells the client how long its packets may be.
#[inline(never)]
fn refuse<A: Family>(context: &TcContext, packet: &Packet<A>, mtu: u32) -> i32 {
    count::dropped(DropReason::TooBig.index());
    if !refusal::is_quotable(packet) {
        return DROP;
    }
    let Some(answer) = maps::scratch() else {
        return DROP;
    };
    if too_big::answer(skb::frame(context), packet, mtu as u16, answer).is_none() {
        return DROP;
    }
    skb::answer(context, answer, A::TOO_BIG as u32, false).unwrap_or(DROP)
}

/// The same as [`encapsulate`] by XDP; what does not fit goes up, so that its sender is told.
#[inline(never)]
pub fn transmit<A: Family>(
    context: &XdpContext,
    packet: &Packet<A>,
    backend: &Backend,
    config: &NodeConfig,
) -> u32 {
    let way = Rewrite {
        source: A::node_address(config),
        destination: A::from_words(backend.node),
        source_port: Be16(0),
        destination_port: Be16(0),
    };
    let Some(hop) = hops::next_hop(context, &way, packet.length + A::OVERHEAD) else {
        return XDP_PASS;
    };
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(context.ctx, -(A::OVERHEAD as i32)) } != 0 {
        return XDP_PASS;
    }
    let frame = xdp::headers(context);
    let (Some(macs), Some(ether), Some(outer)) = (
        frame.at::<Hop>(0),
        frame.at::<Be16>(field::ETHER_TYPE),
        frame.at::<A::Header>(NETWORK),
    ) else {
        count::dropped(DropReason::RewriteFailed.index());
        return XDP_DROP;
    };
    // SAFETY: `at` checked every pointer, and BPF's stores need no alignment in packets.
    unsafe {
        *macs = hop;
        *ether = A::ETHER;
        *outer = A::outer(way.source, way.destination, packet.length);
    }
    count::forwarded(backend, packet);
    count::event(Event::Encapsulated.index());
    count::event(Event::XdpForwarded.index());
    XDP_TX
}
