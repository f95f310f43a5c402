//! The last close(2) of a socket.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::socket::release;

/// Forgets what the socket was given.
#[cgroup_sock(sock_release)]
pub fn socket_release(context: SockContext) -> i32 {
    release(&context)
}
