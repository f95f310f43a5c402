//! getpeername(2).

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{tell_v4, tell_v6};

/// Names the frontend in place of the backend that the socket is connected to.
#[cgroup_sock_addr(getpeername4)]
pub fn socket_peer4(context: SockAddrContext) -> i32 {
    tell_v4(&context, true)
}

/// The same for IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn socket_peer6(context: SockAddrContext) -> i32 {
    tell_v6(&context, true)
}
