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
    drop_reason::Event,
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
    tunnel,
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
        Some(ETHER_V4) => V4::transmit(context).unwrap_or_else(|| family::<V4>(context, config)),
        Some(ETHER_V6) => V6::transmit(context).unwrap_or_else(|| family::<V6>(context, config)),
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn family<A: Family + Watched>(context: &XdpContext, config: &'static NodeConfig) -> u32
where
    Maps: Stages<A>,
{
    let Ok(packet) = A::parse(xdp::frame(context)) else {
        return XDP_PASS;
    };
    // What a device is still to complete, only tcx can send on.
    if refusal::is_partial(&packet) {
        return XDP_PASS;
    }
    let maps = Maps { config };
    let mut rewrite = Rewrite::unchanged(&packet);
    let outcome = route(&packet, Hook::TRANSIT, &maps, &mut rewrite);
    let verdict = match outcome.action() {
        Action::Forward => to_backend(context, &packet, outcome, config, &mut rewrite),
        Action::Reply if rewrite.destination.pod().is_none() => {
            transmit(context, &packet, &rewrite, outcome.number())
        }
        Action::Refuse => refuse(context, &packet, outcome),
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
    watch::xdp(config, &packet, &rewrite, outcome, place, verdict);
    verdict
}

#[inline(always)]
fn to_backend<A: Family>(
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
    if backend.delivery == delivery::DIRECT {
        return tunnel::transmit(context, packet, backend, config);
    }
    rewrite.to_backend(packet, backend, outcome.port(), A::node_address(config));
    transmit(context, packet, rewrite, outcome.number())
}

/// Rewrites a packet and sends it out again, if XDP can; else the packet is as it was and goes up.
// Not inlined, so that its share of the stack is free while the stages run.
#[inline(never)]
fn transmit<A: Family>(
    context: &XdpContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    backend: u32,
) -> u32 {
    let Some(hop) = hops::next_hop(context, rewrite, packet.length) else {
        return XDP_PASS;
    };
    if xdp::rewrite(xdp::headers(context), packet, rewrite, hop).is_none() {
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
