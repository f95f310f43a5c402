//! XDP that does nothing, for the far end of a veth whose near end sends by XDP.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

/// Passes.
#[xdp(frags)]
pub fn xdp_pass(_context: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}
