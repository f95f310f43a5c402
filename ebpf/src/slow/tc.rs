//! The slow program at tcx.

use aya_ebpf::programs::TcContext;
use portolan_abi::{
    address::{V4, V6},
    backend::delivery,
    bytes::Be16,
    drop_reason::{DropReason, Event},
    echo,
    ip::{self, kind},
    outcome::Action,
    parse::{Bytes, ETHER_V4, ETHER_V6, field},
    quoted,
    rewrite::Rewrite,
    tables::{Hook, Stages, Tables},
};

use crate::{
    count, edit,
    maps::{self, Family, Maps, Slow},
    skb,
    tc::{self, PASS},
    tunnel,
    watch::Watched,
};

/// Routes a packet that another program has handed over.
#[inline(always)]
pub fn handle(context: &TcContext) -> i32 {
    if !skb::pull(context, ip::HEADERS) {
        return PASS;
    }
    let verdict = match skb::frame(context).u16(field::ETHER_TYPE).map(Be16) {
        Some(ETHER_V4) => family::<V4>(context),
        Some(ETHER_V6) => family::<V6>(context),
        _ => return PASS,
    };
    tc::settle(verdict)
}

#[inline(never)]
fn family<A: Family + Watched>(context: &TcContext) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    let (Some(config), Some(slow)) = (maps::config(), A::slow()) else {
        return Ok(PASS);
    };
    if let Some(ends) = A::ends(skb::frame(context)) {
        tc::admit(context, ends, skb::left_hook(context))?;
    }
    let maps = Maps { config };
    let kind = read(context, slow);
    let hook = skb::left_hook(context);
    match kind {
        kind::PACKET => {
            slow.rewrite = Rewrite::unchanged(&slow.packet);
            tc::forward::<A, true>(context, &slow.packet, &mut slow.rewrite, hook, maps)
        }
        kind::FOLLOWS => {
            count::event(Event::FragmentUnknown.index());
            pass::<A>(context, hook)
        }
        kind::ERROR => error(context, slow, hook, maps),
        _ => pass::<A>(context, hook),
    }
}

/// Leaves to whoever comes next what no flow is concerned with.
#[inline(always)]
fn pass<A: Family>(context: &TcContext, hook: Hook) -> Result<i32, DropReason> {
    match A::ends(skb::frame(context)) {
        Some(ends) => tc::pass(context, ends, hook),
        None => Ok(PASS),
    }
}

/// Reads a packet, an error, or an echo, which belongs to a flow only where pods' are masqueraded.
#[inline(never)]
fn read<A: Family>(context: &TcContext, slow: &mut Slow<A>) -> u32
where
    Maps: Stages<A>,
{
    let Some(config) = maps::config() else {
        return kind::FOREIGN;
    };
    let frame = skb::frame(context);
    let found = super::read(frame, slow, config);
    if found != kind::MESSAGE {
        return found;
    }
    if super::read_error(frame, slow) {
        return kind::ERROR;
    }
    if Tables::<A>::masquerades(&Maps { config }) && echo::read(frame, &mut slow.packet).is_some() {
        return kind::PACKET;
    }
    kind::FOREIGN
}

/// Brings an error to whoever sent the packet that it is about; one about no flow's packet is left to the stack.
#[inline(never)]
fn error<A: Family>(
    context: &TcContext,
    slow: &mut Slow<A>,
    hook: Hook,
    maps: Maps,
) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    let config = maps.config;
    let outcome = quoted::find(&slow.error.about, &maps, &mut slow.rewrite);
    match outcome.action() {
        Action::Forward => {
            let Some(backend) = maps::backend(outcome.number()) else {
                // Whom a pod has spoken to beyond the cluster.
                translate(context, slow)?;
                return tc::give_back(context, slow.rewrite.destination, (outcome, hook), config);
            };
            if backend.delivery == delivery::DIRECT && hook.is_uplink() {
                // Its node knows the flow as the client does.
                return Ok(tunnel::encapsulate(context, &slow.packet, backend, config));
            }
            translate(context, slow)?;
            let to = (backend, slow.rewrite.destination);
            tc::deliver(context, to, (outcome, hook), config)
        }
        Action::Reply => {
            translate(context, slow)?;
            tc::give_back(context, slow.rewrite.destination, (outcome, hook), config)
        }
        _ => pass::<A>(context, hook),
    }
}

#[inline(never)]
fn translate<A: Family>(context: &TcContext, slow: &mut Slow<A>) -> Result<(), DropReason> {
    slow.error.edit(&slow.rewrite, &mut slow.edits);
    edit::error(skb::frame(context), &slow.error, &slow.edits).ok_or(DropReason::RewriteFailed)?;
    count::event(Event::ErrorTranslated.index());
    Ok(())
}
