//! tcx ingress on the node's end of a pod's veth: what comes out of the pod.

use aya_ebpf::{macros::classifier, programs::TcContext};
use portolan_abi::tables::Hook;

use crate::tc;

/// Routes what a pod sends.
#[classifier]
pub fn pod_egress(context: TcContext) -> i32 {
    tc::handle(&context, Hook::POD)
}
