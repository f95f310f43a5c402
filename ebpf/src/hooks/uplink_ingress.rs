//! tcx ingress on the uplink: what XDP passed up.

use aya_ebpf::{macros::classifier, programs::TcContext};
use portolan_abi::tables::Hook;

use crate::tc;

/// Routes what comes in from the world and from other nodes.
#[classifier]
pub fn uplink_ingress(context: TcContext) -> i32 {
    tc::handle(&context, Hook::UPLINK)
}
