//! The short way through the programs: a packet of a known flow leaves again at once, by one look at each map.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_TX},
    programs::{TcContext, XdpContext},
};
use portolan_abi::{
    address::{Address, V4, V6},
    backend::{Backend, delivery},
    bytes::Be16,
    checksum::{self, Difference},
    config::{NodeConfig, flags},
    drop_reason::Event,
    hash, hit,
    outcome::Outcome,
    parse::{Bytes, Packet, field},
    protocol, refusal,
    rewrite::Rewrite,
    tables::Hook,
    tcp,
};

use crate::{
    count,
    frame::Head,
    hops::{self, Hop},
    maps::{self, Family, Maps},
    skb, tc, xdp,
};

/// A family whose headers are as long as they are without options.
pub trait Plain: Family {
    /// Sends a packet of XDP on, if it is one of those that need no closer look.
    fn transmit(context: &XdpContext) -> Option<u32>;

    /// The same for a packet of tcx.
    fn deliver(context: &TcContext, hook: Hook) -> Option<i32>;
}

/// No verdict: every other number may be one.
const NONE: i32 = -99;

macro_rules! plain {
    ($family:ty, $head:expr, $xdp:ident, $tc:ident) => {
        // Not inlined, so that each has a stack of its own.
        #[inline(never)]
        fn $xdp(context: &XdpContext) -> u32 {
            transmit::<$family, { $head }>(context).unwrap_or(XDP_ABORTED)
        }

        #[inline(never)]
        fn $tc(context: &TcContext, hook: u32) -> i32 {
            deliver::<$family, { $head }>(context, Hook(hook)).unwrap_or(NONE)
        }

        impl Plain for $family {
            #[inline(always)]
            fn transmit(context: &XdpContext) -> Option<u32> {
                let verdict = $xdp(context);
                (verdict != XDP_ABORTED).then_some(verdict)
            }

            #[inline(always)]
            fn deliver(context: &TcContext, hook: Hook) -> Option<i32> {
                let verdict = $tc(context, hook.0);
                (verdict != NONE).then_some(verdict)
            }
        }
    };
}

plain!(
    V4,
    field::V4_VERSION + 20 + 20,
    known_by_xdp_v4,
    known_by_tc_v4
);
plain!(
    V6,
    field::V6_TRANSPORT + 20,
    known_by_xdp_v6,
    known_by_tc_v6
);

/// IPv4 without options.
const PLAIN_V4: u8 = 0x45;

/// The packet in a head, unless somebody watches, it has options, moves its flow on, or is for the node itself.
#[inline(always)]
fn plain<A: Family, const HEAD: usize>(head: Head<HEAD>, config: &NodeConfig) -> Option<Packet<A>> {
    if config.flags & flags::WATCHED != 0 || !A::IS_V6 && head.u8(field::V4_VERSION)? != PLAIN_V4 {
        return None;
    }
    let packet = A::parse(head).ok()?;
    // What moves its flow on is not for here, and is not looked up in vain.
    let is_plain = packet.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0
        && !packet.is_expired()
        && packet.destination != A::node_address(config);
    is_plain.then_some(packet)
}

/// The backend of a client's packet.
#[inline(always)]
fn backend_of<A: Family>(
    packet: &Packet<A>,
    config: &'static NodeConfig,
) -> Option<&'static Backend> {
    let hash = hash::of_client(
        config.seed,
        packet.source,
        packet.source_port,
        packet.protocol,
    );
    hit::backend_of(packet, hash, &Maps { config }).and_then(maps::backend)
}

#[inline(always)]
fn deliver<A: Family, const HEAD: usize>(context: &TcContext, hook: Hook) -> Option<i32> {
    let config = maps::config()?;
    let packet = plain::<A, HEAD>(skb::frame(context).head::<HEAD>()?, config)?;
    if hook == Hook::POD
        && !maps::may_send(skb::interface(context), packet.source, packet.destination)
    {
        return None;
    }
    let verdict = if let Some(backend) = backend_of(&packet, config) {
        if backend.delivery == delivery::DIRECT && hook.is_uplink() {
            return None;
        }
        count::forwarded(backend, &packet);
        let rewrite = Rewrite {
            destination: A::from_words(backend.address),
            destination_port: backend.port,
            ..Rewrite::unchanged(&packet)
        };
        let way = (backend, config);
        tc::to_address::<A, false>(context, &packet, &rewrite, (Outcome::PASS, hook), way)
    } else {
        let (backend, source, source_port) = hit::reply_of(&packet, &Maps { config })?;
        count::forwarded(maps::backend(backend)?, &packet);
        let rewrite = Rewrite {
            source,
            source_port,
            ..Rewrite::unchanged(&packet)
        };
        tc::to_client::<A, false>(context, &packet, &rewrite, (Outcome::PASS, hook), config)
    };
    Some(tc::settle(verdict))
}

#[inline(always)]
fn transmit<A: Family, const HEAD: usize>(context: &XdpContext) -> Option<u32> {
    let config = maps::config()?;
    let head = xdp::linear(context).head::<HEAD>()?;
    let packet = plain::<A, HEAD>(head, config)?;
    // What a device is still to complete, only tcx can send on.
    if refusal::is_partial(&packet) {
        return None;
    }
    let backend = backend_of(&packet, config)?;
    if backend.delivery != delivery::GATEWAY {
        return None;
    }
    let mut rewrite = Rewrite::unchanged(&packet);
    rewrite.destination = A::from_words(backend.address);
    rewrite.destination_port = backend.port;
    let hop = hops::next_hop(context, &rewrite, packet.length)?;
    write(head, &packet, &rewrite, hop)?;
    count::forwarded(backend, &packet);
    count::event(Event::XdpForwarded.index());
    Some(XDP_TX)
}

/// Gives the packet its destination and its next hop.
#[inline(always)]
fn write<A: Address, const HEAD: usize>(
    head: Head<HEAD>,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    hop: Hop,
) -> Option<()> {
    let address = Difference::NONE.address(packet.destination, rewrite.destination);
    let port = Difference::NONE.port(packet.destination_port, rewrite.destination_port);
    let (transport, destination) = if A::IS_V6 {
        (field::V6_TRANSPORT, field::V6_DESTINATION)
    } else {
        (field::V4_VERSION + 20, field::V4_DESTINATION)
    };
    let macs = head.at::<Hop>(0)?;
    let destination = head.at::<A>(destination)?;
    let limit = head.at::<u8>(field::V6_HOP_LIMIT)?;
    let word = head.at::<u32>(field::V4_TTL)?;
    let to = head.at::<Be16>(transport + field::DESTINATION_PORT)?;
    let tcp = head.at::<Be16>(transport + field::TCP_CHECKSUM)?;
    let udp = head.at::<Be16>(transport + field::UDP_CHECKSUM)?;
    // SAFETY: the head has all of these bytes, and BPF's stores need no alignment in packets.
    unsafe {
        (*macs)[0] = hop[0];
        (*macs)[1] = hop[1];
        (*macs)[2] = hop[2];
        if A::IS_V6 {
            *limit = packet.hops.wrapping_sub(1);
        } else {
            *word = rewrite.head(packet, *word, 1);
        }
        *destination = rewrite.destination;
        *to = rewrite.destination_port;
        if packet.protocol == protocol::TCP {
            *tcp = checksum::apply(packet.checksum, address.and(port));
        } else {
            *udp = checksum::apply_udp(packet.checksum, address.and(port));
        }
    }
    Some(())
}
