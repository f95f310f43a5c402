//! What pods send beyond the cluster: the masquerade. What comes back is a reply as any other.

use aya_ebpf::programs::TcContext;
use portolan_abi::{
    drop_reason::DropReason,
    masquerade::masquerade,
    outcome::Action,
    parse::Packet,
    rewrite::Rewrite,
    tables::{Hook, Stages, Tables},
};

use crate::{
    count, exits,
    maps::{Family, Maps},
    skb,
    tc::{DROP, PASS},
};

/// Sends on what no service is concerned with and what is for no pod of this node.
#[inline(always)]
pub fn leave<A: Family, const SLOW: bool>(
    context: &TcContext,
    packet: &Packet<A>,
    maps: Maps,
) -> Result<i32, DropReason>
where
    Maps: Stages<A>,
{
    let verdict = exits::tunnel(packet.destination, true, maps.config);
    if verdict != PASS {
        skb::pass_router(context, packet)?;
        return Ok(verdict);
    }
    if !Tables::<A>::masquerades(&maps) {
        return Ok(PASS);
    }
    let outcome = masquerade(packet, &maps);
    match outcome.action() {
        Action::Forward => {
            let rewrite = Rewrite {
                source: A::node_address(maps.config),
                destination: packet.destination,
                source_port: outcome.port(),
                destination_port: packet.destination_port,
            };
            skb::rewrite::<A, SLOW>(context, packet, &rewrite, (Hook::POD, 1))?;
            Ok(skb::to_neighbour(maps.config.uplink))
        }
        Action::Drop => {
            count::dropped(outcome.reason());
            Ok(DROP)
        }
        _ => Ok(PASS),
    }
}
