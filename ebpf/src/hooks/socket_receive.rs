//! recvmsg(2) and recvfrom(2) on UDP when they ask for the sender.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{tell_v4, tell_v6};

/// Names the frontend in place of the backend that sent.
#[cgroup_sock_addr(recvmsg4)]
pub fn socket_receive4(context: SockAddrContext) -> i32 {
    tell_v4(&context, false)
}

/// The same for IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn socket_receive6(context: SockAddrContext) -> i32 {
    tell_v6(&context, false)
}
