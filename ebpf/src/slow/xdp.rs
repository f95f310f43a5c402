//! The slow program at XDP: as the fast one, it handles what leaves the node again, and passes up everything else.

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    programs::XdpContext,
};
use portolan_abi::{
    address::{V4, V6},
    backend::delivery,
    bytes::Be16,
    config::NodeConfig,
    drop_reason::{DropReason, Event},
    ip::kind,
    martian,
    open::is_transit,
    outcome::Action,
    parse::{Bytes, ETHER_V4, ETHER_V6, field},
    quoted, refusal,
    rewrite::Rewrite,
    tables::{Hook, Stages},
};

use crate::{
    count, edit, hops,
    maps::{self, Family, Maps, Slow},
    uplink,
    watch::Watched,
    xdp,
};

/// Sends on a packet that the other program has handed over.
#[inline(always)]
pub fn handle(context: &XdpContext) -> u32 {
    match xdp::headers(context).u16(field::ETHER_TYPE).map(Be16) {
        Some(ETHER_V4) => family::<V4>(context),
        Some(ETHER_V6) => family::<V6>(context),
        _ => XDP_PASS,
    }
}

#[inline(never)]
fn family<A: Family + Watched>(context: &XdpContext) -> u32
where
    Maps: Stages<A>,
{
    let (Some(config), Some(slow)) = (maps::config(), A::slow()) else {
        return XDP_PASS;
    };
    if let Some(ends) = A::ends(xdp::headers(context))
        && !martian::may_arrive(ends, Hook::TRANSIT)
    {
        return uplink::drop_martian();
    }
    match read(context, slow) {
        kind::PACKET => {
            slow.rewrite = Rewrite::unchanged(&slow.packet);
            uplink::forward::<A, true>(context, &slow.packet, &mut slow.rewrite, config)
        }
        kind::ERROR => error(context, slow, config),
        _ => XDP_PASS,
    }
}

#[inline(never)]
fn read<A: Family>(context: &XdpContext, slow: &mut Slow<A>) -> u32 {
    let Some(config) = maps::config() else {
        return kind::FOREIGN;
    };
    let frame = xdp::frame(context);
    let found = super::read(frame, slow, config);
    if found == kind::MESSAGE && super::read_error(frame, slow) {
        return kind::ERROR;
    }
    found
}

/// Brings an error to whoever sent the packet that it is about, if that is beyond this node.
#[inline(never)]
fn error<A: Family>(context: &XdpContext, slow: &mut Slow<A>, config: &'static NodeConfig) -> u32
where
    Maps: Stages<A>,
{
    let outcome = quoted::find(&slow.error.about, &Maps { config }, &mut slow.rewrite);
    let leaves = match outcome.action() {
        Action::Forward => match maps::backend(outcome.number()) {
            Some(backend) => {
                backend.delivery != delivery::DIRECT
                    && is_transit(backend.delivery, outcome.port() != Be16(0))
            }
            None => false,
        },
        Action::Reply => slow.rewrite.destination.pod().is_none(),
        _ => false,
    };
    if !leaves {
        return XDP_PASS;
    }
    let Some(hop) = hops::next_hop(context, &slow.rewrite, slow.packet.length) else {
        return XDP_PASS;
    };
    slow.error.edit(&slow.rewrite, &mut slow.edits);
    let frame = xdp::headers(context);
    if edit::error(frame, &slow.error, &slow.edits).is_none() || xdp::leave_by(frame, hop).is_none()
    {
        return XDP_PASS;
    }
    count::event(Event::ErrorTranslated.index());
    count::event(Event::XdpForwarded.index());
    XDP_TX
}

/// Tells the sender of a packet that it has been over as many routers as it may; unchanged if there is no room for that.
#[inline(never)]
pub fn expire<A: Family>(
    context: &XdpContext,
    packet: &portolan_abi::parse::Packet<A>,
    config: &NodeConfig,
) -> u32 {
    let Some(answer) = maps::scratch() else {
        return XDP_DROP;
    };
    let node = A::node_address(config);
    if refusal::expired(xdp::frame(context), packet, node, answer).is_none() {
        count::dropped(DropReason::HopsExhausted.index());
        return XDP_DROP;
    }
    if xdp::answer(context, answer, A::UNREACHABLE).is_none() {
        return XDP_PASS;
    }
    count::dropped(DropReason::HopsExhausted.index());
    XDP_TX
}
