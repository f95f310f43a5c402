//! What the XDP program hands over.

use aya_ebpf::{macros::xdp, programs::XdpContext};

use crate::slow;

/// Sends on what takes more to read.
#[xdp(frags)]
pub fn slow_uplink(context: XdpContext) -> u32 {
    slow::xdp(&context)
}
