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
    count, exits,
    known::Plain,
    maps::{self, Family, Maps},
    skb, stages, tunnel,
    watch::{self, Watched},
    world,
};

/// Leaves the packet to whoever comes next: other programs, then the node's stack.
pub const PASS: i32 = TC_ACT_UNSPEC;
/// The packet goes no further.
pub const DROP: i32 = TC_ACT_SHOT;

/// No verdict: the packet takes more to read or to answer than there is room for here, and goes on to the slow program.
const HARD: i32 = 0x7000;

/// Routes a packet.
#[inline(always)]
pub fn handle(context: &TcContext, hook: Hook) -> i32 {
    // A frame of a VLAN belongs to that VLAN's own interface, which sees it next.
    if skb::is_of_vlan(context) {
        return PASS;
    }
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
    if let Some(verdict) = known {
        return verdict;
    }
    let verdict = family::<A>(context, hook);
    if matches!(verdict, Ok(HARD)) {
        maps::hand_over_tc(context);
        return PASS;
    }
    settle(verdict)
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
    let Some(config) = maps::config() else {
        return Ok(PASS);
    };
    let packet = match A::parse(skb::frame(context)) {
        Ok(packet) if !packet.is_expired() => packet,
        _ => {
            skb::leave_hook(context, hook);
            return Ok(HARD);
        }
    };
    admit(context, (packet.source, packet.destination), hook)?;
    let mut rewrite = Rewrite::unchanged(&packet);
    forward::<A, false>(context, &packet, &mut rewrite, hook, Maps { config })
}

/// Decides on a packet and does it. Without `SLOW` it is one of TCP or UDP, whole, and may go over another router.
#[inline(always)]
pub fn forward<A: Family + Watched, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &mut Rewrite<A>,
    hook: Hook,
    maps: Maps,
) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    let config = maps.config;
    let outcome = match exits::judge_outer(packet, hook, config) {
        Outcome::UNKNOWN => route(packet, hook, &maps, rewrite),
        judged => judged,
    };
    let verdict = match outcome.action() {
        Action::Forward => to_backend::<A, SLOW>(context, packet, (outcome, hook), maps, rewrite),
        Action::Reply => {
            if let Some(backend) = maps::backend(outcome.number()) {
                count::forwarded(backend, packet);
            }
            to_client::<A, SLOW>(context, packet, rewrite, (outcome, hook), config)
        }
        Action::Refuse => Ok(refuse::<A, SLOW>(context, packet, outcome, hook)),
        Action::Drop => {
            count::dropped(outcome.reason());
            Ok(DROP)
        }
        Action::Pass | Action::Unknown | Action::Rechoose => {
            onwards::<A, SLOW>(context, packet, hook, maps)
        }
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
    watch::tc(config, packet, rewrite, outcome, place, verdict);
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

/// Whatever protocol it speaks, a pod speaks for itself alone, and nothing on a wire has a loopback address.
#[inline(always)]
pub fn admit<A: Family>(context: &TcContext, ends: (A, A), hook: Hook) -> Result<(), DropReason> {
    if hook == Hook::POD && !maps::may_send(skb::interface(context), ends.0, ends.1) {
        return Err(DropReason::SpoofedSource);
    }
    if martian::may_arrive(ends, hook) {
        Ok(())
    } else {
        Err(DropReason::Martian)
    }
}

/// Leaves a packet to whoever comes next as it is.
#[inline(always)]
pub fn pass<A: Family>(context: &TcContext, ends: (A, A), hook: Hook) -> Result<i32, DropReason> {
    if hook.is_node() && !skb::is_at_loopback(context) && !martian::may_leave(ends) {
        return Err(DropReason::Martian);
    }
    Ok(PASS)
}

/// No service is concerned: a pod of this node is reached without a visit to the stack all the same.
#[inline(always)]
fn onwards<A: Family, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    hook: Hook,
    maps: Maps,
) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    // Of what may go no further, the stack tells the sender.
    if hook.is_node() || SLOW && packet.is_expired() {
        return pass(context, (packet.source, packet.destination), hook);
    }
    match packet.destination.pod() {
        Some(pod) => {
            skb::pass_router(context, packet)?;
            skb::to_pod(context, pod.interface, [pod.pod_mac, pod.host_mac], hook)
        }
        None if hook == Hook::POD => world::leave::<A, SLOW>(context, packet, maps),
        None => Ok(PASS),
    }
}

#[inline(always)]
fn to_backend<A: Family, const SLOW: bool>(
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
    if SLOW && routers(backend, hook) != 0 && packet.is_expired() {
        return Ok(expire(context, packet, maps.config));
    }
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
    let way = (backend, maps.config);
    to_address::<A, SLOW>(context, packet, rewrite, (outcome, hook), way)
}

/// Rewrites a packet and sends it to its backend's address.
#[inline(always)]
pub fn to_address<A: Family, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    (outcome, hook): (Outcome, Hook),
    (backend, config): (&Backend, &'static NodeConfig),
) -> Result<i32, DropReason> {
    skb::rewrite::<A, SLOW>(context, packet, rewrite, (hook, routers(backend, hook)))?;
    let to = (backend, rewrite.destination);
    deliver(context, to, (outcome, hook), config)
}

/// How many routers are on the way to a backend: what the node's own stack has sent or is to get goes over none here.
#[inline(always)]
fn routers(backend: &Backend, hook: Hook) -> u8 {
    u8::from(backend.delivery != delivery::STACK && !hook.is_node())
}

/// Sends a packet the way that leads to a backend.
#[inline(always)]
pub fn deliver<A: Family>(
    context: &TcContext,
    (backend, destination): (&Backend, A),
    (outcome, hook): (Outcome, Hook),
    config: &'static NodeConfig,
) -> Result<i32, DropReason> {
    match backend.delivery {
        delivery::PEER => skb::to_pod(
            context,
            backend.interface,
            [backend.pod_mac, backend.host_mac],
            hook,
        ),
        way if delivery::leaves(way) => {
            let carries_pod = hook == Hook::POD && outcome.port().0 == 0;
            Ok(exits::leave(destination, carries_pod, config))
        }
        // The stack takes no packet with the node's own address as its source from any other interface.
        delivery::STACK if hook.is_node() || outcome.port().0 != 0 => skb::to_node(context),
        _ => Ok(PASS),
    }
}

/// Rewrites a reply and sends it to its client.
#[inline(always)]
pub fn to_client<A: Family, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    rewrite: &Rewrite<A>,
    (outcome, hook): (Outcome, Hook),
    config: &'static NodeConfig,
) -> Result<i32, DropReason> {
    let routers = u8::from(!outcome.is_to_node() && !hook.is_node());
    if SLOW && routers != 0 && packet.is_expired() {
        return Ok(expire(context, packet, config));
    }
    skb::rewrite::<A, SLOW>(context, packet, rewrite, (hook, routers))?;
    give_back(context, rewrite.destination, (outcome, hook), config)
}

/// Sends a packet the way that leads to a client.
#[inline(always)]
pub fn give_back<A: Family>(
    context: &TcContext,
    client: A,
    (outcome, hook): (Outcome, Hook),
    config: &'static NodeConfig,
) -> Result<i32, DropReason> {
    if outcome.is_to_node() {
        return skb::to_node(context);
    }
    // A process of the node answers, and the packet is on the client's way already.
    if hook.is_node() && !outcome.takes_port() {
        return Ok(PASS);
    }
    match client.pod() {
        Some(pod) => skb::to_pod(context, pod.interface, [pod.pod_mac, pod.host_mac], hook),
        // It carries the address that the client knocked at.
        None => Ok(exits::leave(client, false, config)),
    }
}

/// Tells the sender of a packet that it has been over as many routers as it may.
#[inline(never)]
fn expire<A: Family>(context: &TcContext, packet: &Packet<A>, config: &NodeConfig) -> i32 {
    count::dropped(DropReason::HopsExhausted.index());
    let Some(answer) = maps::scratch() else {
        return DROP;
    };
    let node = A::node_address(config);
    if refusal::expired(skb::frame(context), packet, node, answer).is_none() {
        return DROP;
    }
    skb::answer(context, answer, A::UNREACHABLE as u32, false).unwrap_or(DROP)
}

/// Answers a client that nobody serves, at once.
#[inline(never)]
fn refuse<A: Family, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    outcome: Outcome,
    hook: Hook,
) -> i32 {
    count::dropped(outcome.reason());
    if !refusal::is_answerable(packet) {
        return DROP;
    }
    let verdict = answer::<A, SLOW>(context, packet, hook);
    if verdict == DROP {
        count::dropped(DropReason::RefusalFailed.index());
    } else {
        count::refused(outcome.number());
    }
    verdict
}

#[inline(always)]
fn answer<A: Family, const SLOW: bool>(context: &TcContext, packet: &Packet<A>, hook: Hook) -> i32 {
    let Some(answer) = maps::scratch() else {
        return DROP;
    };
    let bytes = skb::frame(context);
    let (written, length) = if SLOW && packet.protocol == protocol::SCTP {
        (refusal::abort(bytes, packet, answer, stages::crc), A::ABORT)
    } else if packet.protocol == protocol::TCP {
        (refusal::answer(bytes, packet, answer), A::RESET)
    } else {
        (refusal::answer(bytes, packet, answer), A::UNREACHABLE)
    };
    if written.is_none() {
        return DROP;
    }
    skb::answer(context, answer, length as u32, hook.is_node()).unwrap_or(DROP)
}
