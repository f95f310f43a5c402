//! sendmsg(2) and sendto(2) on UDP with a receiver's address.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{Call, call_v4, call_v6};

/// Sends a datagram of IPv4 to a backend.
#[cgroup_sock_addr(sendmsg4)]
pub fn socket_send4(context: SockAddrContext) -> i32 {
    call_v4(&context, Call::Send)
}

/// Sends a datagram of IPv6 to a backend.
#[cgroup_sock_addr(sendmsg6)]
pub fn socket_send6(context: SockAddrContext) -> i32 {
    call_v6(&context, Call::Send)
}
