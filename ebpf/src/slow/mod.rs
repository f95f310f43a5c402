//! The slow programs: what takes more to read or to answer than the others have room for. They are reached by a tail call
//! from those, so that they have a stack and a budget of instructions of their own, and what is common pays one branch.
//!
//! Fragments, IPv6 extension headers, SCTP, ICMP, and whatever may go over no more routers. A slow program starts anew
//! from the packet's bytes.

mod tc;
mod xdp;

pub use tc::handle as tc;
pub use xdp::{expire, handle as xdp};

use portolan_abi::{
    config::NodeConfig,
    icmp,
    ip::{self, kind},
    tables::Tables,
};

use crate::{
    frame::Frame,
    maps::{self, Family, Maps, Slow},
};

/// Reads a packet, by its [`kind`].
// Into a map's memory: what the verifier has learned on each of the many ways to a packet, it forgets there, and looks at
// what follows once.
#[inline(always)]
fn read<A: Family>(frame: Frame, slow: &mut Slow<A>, config: &'static NodeConfig) -> u32 {
    let seed = config.seed;
    let kind = ip::read(
        frame,
        seed,
        &mut slow.ip,
        &mut slow.packet,
        &mut slow.fragment,
    );
    if slow.fragment.tag == 0 {
        return kind;
    }
    let now = Tables::<A>::now(&Maps { config });
    if kind == kind::PACKET {
        let noted = slow.fragment.note(&slow.packet, now);
        maps::note(slow.fragment.place(), noted);
    } else if kind == kind::FOLLOWS {
        let noted = maps::noted(slow.fragment.place());
        if slow.fragment.recall(noted, &mut slow.packet, now) {
            return kind::PACKET;
        }
    }
    kind
}

/// Reads the error that a message is, if it is one about a packet that may be a flow's.
#[inline(always)]
fn read_error<A: Family>(frame: Frame, slow: &mut Slow<A>) -> bool {
    icmp::read(frame, &slow.packet, &mut slow.quoted, &mut slow.error).is_some()
}
