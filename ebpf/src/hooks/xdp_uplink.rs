//! XDP on the uplink: what only passes through this node never enters its stack.

use aya_ebpf::{macros::xdp, programs::XdpContext};

use crate::uplink;

/// Sends source-NATed flows on, refuses what nobody serves, and passes everything else up.
#[xdp(frags)]
pub fn xdp_uplink(context: XdpContext) -> u32 {
    uplink::handle(&context)
}
