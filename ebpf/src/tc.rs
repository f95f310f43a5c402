//! What both tcx programs do with a packet.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use portolan_abi::{
    address::{V4, V6},
    backend::{Backend, delivery},
    bytes::Be16,
    config::NodeConfig,
    drop_reason::DropReason,
    outcome::{Action, Outcome},
    parse::{Bytes, ETHER_V4, ETHER_V6, NotParsed, Packet, field},
    protocol, refusal,
    report::program,
    rewrite::Rewrite,
    route::route,
    tables::{Hook, Stages, Tables},
};

use crate::{
    count, exits,
    known::Plain,
    maps::{self, Family, Maps},
    skb, tunnel,
    watch::{self, Watched},
    world,
};

/// Leaves the packet to whoever comes next: other programs, then the node's stack.
pub const PASS: i32 = TC_ACT_UNSPEC;
/// The packet goes no further.
pub const DROP: i32 = TC_ACT_SHOT;

/// Routes a packet.
#[inline(always)]
pub fn handle(context: &TcContext, hook: Hook) -> i32 {
    let Some(ether_type) = ether_type(context, hook) else {
        return PASS;
    };
    match ether_type {
        ETHER_V4 => arrived::<V4>(context, arrival::<V4>(context, hook)),
        ETHER_V6 => arrived::<V6>(context, arrival::<V6>(context, hook)),
        _ => PASS,
    }
}

#[inline(always)]
fn arrived<A: Plain + Watched>(context: &TcContext, hook: Hook) -> i32
where
    Maps: Stages<A>,
{
    let known = if hook == Hook::POD || hook == Hook::UPLINK {
        A::deliver(context, hook)
    } else {
        None
    };
    known.unwrap_or_else(|| settle(family::<A>(context, hook)))
}

/// The verdict; a failure is counted and drops the packet, which may be half rewritten.
#[inline(always)]
pub fn settle(verdict: Result<i32, DropReason>) -> i32 {
    match verdict {
        Ok(verdict) => verdict,
        Err(reason) => {
            count::dropped(reason.index());
            DROP
        }
    }
}

/// What a packet's link header says that it is.
#[inline(always)]
fn ether_type(context: &TcContext, hook: Hook) -> Option<Be16> {
    match skb::frame(context).u16(field::ETHER_TYPE).map(Be16)? {
        known @ (ETHER_V4 | ETHER_V6) => Some(known),
        _ if hook.is_node() => None,
        _ => skb::restore_link_header(context),
    }
}

// Not inlined, so that a packet of one family does not wait on the stack while the other's is looked at.
#[inline(never)]
fn family<A: Family + Watched>(context: &TcContext, hook: Hook) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    let mut parsed = A::parse(skb::frame(context));
    if matches!(parsed, Err(NotParsed::Truncated)) && skb::pull_headers(context) {
        parsed = A::parse(skb::frame(context));
    }
    let Some(config) = maps::config() else {
        return Ok(PASS);
    };
    let maps = Maps { config };
    let packet = match parsed {
        Ok(packet) => packet,
        Err(_) => match echo(context, &maps) {
            Some(packet) => packet,
            None => return foreign::<A>(context, hook),
        },
    };
    if hook == Hook::POD {
        check_sender(context, (packet.source, packet.destination))?;
    }
    let mut rewrite = Rewrite::unchanged(&packet);
    let outcome = match exits::judge_outer(&packet, hook, config) {
        Outcome::UNKNOWN => route(&packet, hook, &maps, &mut rewrite),
        judged => judged,
    };
    let verdict = match outcome.action() {
        Action::Forward => to_backend(context, &packet, (outcome, hook), maps, &mut rewrite),
        Action::Reply => {
            if let Some(backend) = maps::backend(outcome.number()) {
                count::forwarded(backend, &packet);
            }
            to_client(context, &packet, (&rewrite, hook), outcome, config)
        }
        Action::Refuse => Ok(refuse(context, &packet, outcome, hook)),
        Action::Drop => {
            count::dropped(outcome.reason());
            Ok(DROP)
        }
        Action::Pass | Action::Unknown | Action::Rechoose => onwards(context, &packet, hook, maps),
    };
    let place = watch::Place {
        program: if hook.is_uplink() {
            program::UPLINK_INGRESS
        } else if hook.is_node() {
            program::NODE_EGRESS
        } else {
            program::POD_EGRESS
        },
        interface: skb::interface(context),
    };
    watch::tc(config, &packet, &rewrite, outcome, place, verdict);
    verdict
}

/// Where a packet is taken to have been seen, without the outer header that another node may have given it.
#[inline(always)]
fn arrival<A: Family>(context: &TcContext, hook: Hook) -> Hook {
    if hook == Hook::UPLINK && tunnel::decapsulate::<A>(context) {
        Hook::TUNNEL
    } else {
        hook
    }
}

/// A pod speaks for itself alone, whatever protocol it speaks.
#[inline(always)]
fn check_sender<A: Family>(context: &TcContext, (from, to): (A, A)) -> Result<(), DropReason> {
    if maps::may_send(skb::interface(context), from, to) {
        Ok(())
    } else {
        Err(DropReason::SpoofedSource)
    }
}

/// An echo, which belongs to a flow only where pods' are masqueraded.
#[inline(always)]
fn echo<A: Family>(context: &TcContext, maps: &Maps) -> Option<Packet<A>> {
    if Tables::<A>::masquerades(maps) && skb::pull_headers(context) {
        A::echo(skb::frame(context))
    } else {
        None
    }
}

/// What neither a service nor a flow can be concerned with.
#[inline(always)]
fn foreign<A: Family>(context: &TcContext, hook: Hook) -> Result<i32, DropReason> {
    // A sender may leave even addresses beyond what can be read directly; what has none goes nowhere by itself.
    if hook == Hook::POD
        && skb::pull_headers(context)
        && let Some(ends) = A::ends(skb::frame(context))
    {
        check_sender(context, ends)?;
    }
    Ok(PASS)
}

/// No service is concerned: a pod of this node is reached without a visit to the stack all the same.
#[inline(always)]
fn onwards<A: Family>(
    context: &TcContext,
    packet: &Packet<A>,
    hook: Hook,
    maps: Maps,
) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    if hook.is_node() {
        return Ok(PASS);
    }
    match packet.destination.pod() {
        Some(pod) => skb::to_pod(context, pod.interface, [pod.pod_mac, pod.host_mac], hook),
        None if hook == Hook::POD => world::leave(context, packet, maps),
        None => Ok(PASS),
    }
}

#[inline(always)]
fn to_backend<A: Family>(
    context: &TcContext,
    packet: &Packet<A>,
    (outcome, hook): (Outcome, Hook),
    maps: Maps,
    rewrite: &mut Rewrite<A>,
) -> Result<i32, DropReason> {
    let Some(backend) = maps::backend(outcome.number()) else {
        return Ok(PASS);
    };
    count::outcome(outcome, backend);
    count::forwarded(backend, packet);
    if backend.delivery == delivery::DIRECT && hook.is_uplink() {
        return Ok(tunnel::encapsulate(context, packet, backend, maps.config));
    }
    rewrite.to_backend(
        packet,
        backend,
        outcome.port(),
        A::node_address(maps.config),
    );
    to_address(
        context,
        packet,
        (rewrite, hook),
        (outcome, backend),
        maps.config,
    )
}

/// Rewrites a packet and sends it to its backend's address.
#[inline(always)]
pub fn to_address<A: Family>(
    context: &TcContext,
    packet: &Packet<A>,
    (rewrite, hook): (&Rewrite<A>, Hook),
    (outcome, backend): (Outcome, &Backend),
    config: &'static NodeConfig,
) -> Result<i32, DropReason> {
    skb::rewrite(context, packet, rewrite, hook)?;
    match backend.delivery {
        delivery::PEER => skb::to_pod(
            context,
            backend.interface,
            [backend.pod_mac, backend.host_mac],
            hook,
        ),
        way if delivery::leaves(way) => {
            let carries_pod = hook == Hook::POD && outcome.port().0 == 0;
            Ok(exits::leave(rewrite.destination, carries_pod, config))
        }
        // The stack takes no packet with the node's own address as its source from any other interface.
        delivery::STACK if hook.is_node() || outcome.port().0 != 0 => skb::to_node(context),
        _ => Ok(PASS),
    }
}

/// Rewrites a reply and sends it to its client.
#[inline(always)]
pub fn to_client<A: Family>(
    context: &TcContext,
    packet: &Packet<A>,
    (rewrite, hook): (&Rewrite<A>, Hook),
    outcome: Outcome,
    config: &'static NodeConfig,
) -> Result<i32, DropReason> {
    skb::rewrite(context, packet, rewrite, hook)?;
    if outcome.is_to_node() {
        return skb::to_node(context);
    }
    // A process of the node answers, and the packet is on the client's way already.
    if hook.is_node() && !outcome.takes_port() {
        return Ok(PASS);
    }
    match rewrite.destination.pod() {
        Some(pod) => skb::to_pod(context, pod.interface, [pod.pod_mac, pod.host_mac], hook),
        // It carries the address that the client knocked at.
        None => Ok(exits::leave(rewrite.destination, false, config)),
    }
}

/// Answers a client that nobody serves, at once.
#[inline(never)]
fn refuse<A: Family>(context: &TcContext, packet: &Packet<A>, outcome: Outcome, hook: Hook) -> i32 {
    count::dropped(outcome.reason());
    if !refusal::is_answerable(packet) {
        return DROP;
    }
    let verdict = answer(context, packet, hook);
    if verdict == DROP {
        count::dropped(DropReason::RefusalFailed.index());
    } else {
        count::refused(outcome.number());
    }
    verdict
}

#[inline(always)]
fn answer<A: Family>(context: &TcContext, packet: &Packet<A>, hook: Hook) -> i32 {
    let Some(answer) = maps::scratch() else {
        return DROP;
    };
    if refusal::answer(skb::frame(context), packet, answer).is_none() {
        return DROP;
    }
    let length = if packet.protocol == protocol::TCP {
        A::RESET
    } else {
        A::UNREACHABLE
    };
    skb::answer(context, answer, length as u32, hook.is_node()).unwrap_or(DROP)
}
