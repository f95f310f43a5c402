//! connect(2): a socket of a process of this node is to be connected.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{Call, call_v4, call_v6};

/// Connects a socket of IPv4 to a backend.
#[cgroup_sock_addr(connect4)]
pub fn socket_connect4(context: SockAddrContext) -> i32 {
    call_v4(&context, Call::Connect)
}

/// Connects a socket of IPv6 to a backend of either family.
#[cgroup_sock_addr(connect6)]
pub fn socket_connect6(context: SockAddrContext) -> i32 {
    call_v6(&context, Call::Connect)
}
