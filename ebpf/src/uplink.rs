//! What XDP does with a packet at the uplink.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    programs::XdpContext,
};
use portolan_abi::{
    address::{V4, V6},
    backend::delivery,
    bytes::Be16,
    config::{NodeConfig, flags},
    drop_reason::{DropReason, Event},
    martian,
    outcome::{Action, Outcome},
    parse::{Bytes, ETHER_V4, ETHER_V6, Packet, field},
    protocol, refusal,
    report::program,
    rewrite::Rewrite,
    route::route,
    tables::{Hook, Stages},
};

use crate::{
    count, hops,
    known::Plain,
    maps::{self, Family, Maps},
    slow, tunnel,
    watch::{self, Watched},
    xdp,
};

/// Sends on what only passes through.
#[inline(always)]
pub fn handle(context: &XdpContext) -> u32 {
    let Some(config) = maps::config() else {
        return XDP_PASS;
    };
    if config.flags & flags::XDP_TRANSMIT == 0 {
        return XDP_PASS;
    }
    match xdp::headers(context).u16(field::ETHER_TYPE).map(Be16) {
        Some(ETHER_V4) => match V4::transmit(context) {
            Some(verdict) => verdict,
            None => settle(context, family::<V4>(context)),
        },
        Some(ETHER_V6) => match V6::transmit(context) {
            Some(verdict) => verdict,
            None => settle(context, family::<V6>(context)),
        },
        _ => XDP_PASS,
    }
}

/// No verdict: the packet takes more to read or to answer than there is room for here, and goes on to the slow program.
const HARD: u32 = 0x7000;

#[inline(always)]
fn settle(context: &XdpContext, verdict: u32) -> u32 {
    if verdict != HARD {
        return verdict;
    }
    maps::hand_over_xdp(context);
    XDP_PASS
}

// Not inlined, so that each family has a stack of its own: old kernels add up what calls take.
#[inline(never)]
fn family<A: Family + Watched>(context: &XdpContext) -> u32
where
    Maps: Stages<A>,
{
    let Some(config) = maps::config() else {
        return XDP_PASS;
    };
    let packet = match A::parse(xdp::frame(context)) {
        Ok(packet) if !packet.is_expired() => packet,
        _ => return HARD,
    };
    if !martian::may_arrive((packet.source, packet.destination), Hook::TRANSIT) {
        return drop_martian();
    }
    let mut rewrite = Rewrite::unchanged(&packet);
    forward::<A, false>(context, &packet, &mut rewrite, config)
}

/// Drops what has a loopback address.
#[inline(always)]
pub fn drop_martian() -> u32 {
    count::dropped(DropReason::Martian.index());
    XDP_DROP
}

/// Decides on a packet and does it. Without `SLOW` it is one of TCP or UDP, whole, and may go over another router.
#[inline(always)]
pub fn forward<A: Family + Watched, const SLOW: bool>(
    context: &XdpContext,
    packet: &Packet<A>,
    rewrite: &mut Rewrite<A>,
    config: &'static NodeConfig,
) -> u32
where
    Maps: Stages<A>,
{
    // What a device is still to complete, only tcx can send on.
    if refusal::is_partial(packet) {
        return XDP_PASS;
    }
    let maps = Maps { config };
    let outcome = route(packet, Hook::TRANSIT, &maps, rewrite);
    let verdict = match outcome.action() {
        Action::Forward => to_backend::<A, SLOW>(context, packet, outcome, config, rewrite),
        Action::Reply if rewrite.destination.pod().is_none() => {
            if SLOW && packet.is_expired() {
                slow::expire(context, packet, config)
            } else {
                transmit::<A, SLOW>(context, packet, rewrite, outcome.number())
            }
        }
        // Rare, and tcx knows how.
        Action::Refuse if SLOW && packet.protocol == protocol::SCTP => XDP_PASS,
        Action::Refuse => refuse(context, packet, outcome),
        Action::Drop => {
            count::dropped(outcome.reason());
            XDP_DROP
        }
        _ => XDP_PASS,
    };
    let place = watch::Place {
        program: program::XDP_UPLINK,
        interface: xdp::interface(context),
    };
    watch::xdp(config, packet, rewrite, outcome, place, verdict);
    verdict
}

#[inline(always)]
fn to_backend<A: Family, const SLOW: bool>(
    context: &XdpContext,
    packet: &Packet<A>,
    outcome: Outcome,
    config: &NodeConfig,
    rewrite: &mut Rewrite<A>,
) -> u32 {
    let Some(backend) = maps::backend(outcome.number()) else {
        return XDP_PASS;
    };
    // The flow has its slot now: should no next hop be known yet, tcx forwards the packet as one of a known flow.
    count::outcome(outcome, backend);
    if SLOW && packet.is_expired() {
        return slow::expire(context, packet, config);
    }
    if backend.delivery == delivery::DIRECT {
        return tunnel::transmit(context, packet, backend, config);
    }
    rewrite.to_backend(packet, backend, outcome.port(), A::node_address(config));
    transmit::<A, SLOW>(context, packet, rewrite, outcome.number())
}

/// Rewrites a packet and sends it out again, if XDP can; else the packet is as it was and goes up.
// Not inlined, so that its share of the stack is free while the stages run.
#[inline(never)]
fn transmit<A: Family, const SLOW: bool>(
    context: &XdpContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    backend: u32,
) -> u32 {
    let Some(hop) = hops::next_hop(context, rewrite, packet.length) else {
        return XDP_PASS;
    };
    let frame = xdp::headers(context);
    let written = if SLOW {
        xdp::rewrite_slow(frame, packet, rewrite, hop)
    } else {
        xdp::rewrite(frame, packet, rewrite, hop)
    };
    if written.is_none() {
        return XDP_PASS;
    }
    if let Some(backend) = maps::backend(backend) {
        count::forwarded(backend, packet);
    }
    count::event(Event::XdpForwarded.index());
    XDP_TX
}

#[inline(never)]
fn refuse<A: Family>(context: &XdpContext, packet: &Packet<A>, outcome: Outcome) -> u32 {
    if !refusal::is_answerable(packet) {
        count::dropped(outcome.reason());
        return XDP_DROP;
    }
    if answer(context, packet).is_none() {
        return XDP_PASS;
    }
    count::refused(outcome.number());
    count::dropped(outcome.reason());
    count::event(Event::XdpRefused.index());
    XDP_TX
}

#[inline(always)]
fn answer<A: Family>(context: &XdpContext, packet: &Packet<A>) -> Option<()> {
    let answer = maps::scratch()?;
    refusal::answer(xdp::frame(context), packet, answer)?;
    if packet.protocol == protocol::TCP {
        xdp::answer(context, answer, A::RESET)
    } else {
        xdp::answer(context, answer, A::UNREACHABLE)
    }
}
