//! tcx egress on the node's loopback interface, its uplink and its ends of pods' veths: what its own processes send.

use aya_ebpf::{macros::classifier, programs::TcContext};
use portolan_abi::tables::Hook;

use crate::{skb, tc};

/// Routes what a process on the node sends: a client's packet to a backend, a backend's reply to its client.
#[classifier]
pub fn node_egress(context: TcContext) -> i32 {
    // What came in by an interface was seen there.
    if skb::came_in(&context) {
        return tc::PASS;
    }
    tc::handle(&context, Hook::NODE)
}
