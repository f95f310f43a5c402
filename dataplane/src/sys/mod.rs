//! The system calls that no safe crate offers, each behind a safe function: maps by file descriptor, their memory,
//! and what the kernel says of network devices. All `unsafe` of the crate is here.

mod bpf;
pub mod clock;
mod device;
mod diag;
mod memory;
mod netlink;
pub mod probe;

pub use bpf::{
    Map, Plain, detach_link, link_cgroup, link_interface, plain, possible_cpus, replace_program,
};
pub use device::{driver, index_of, mac_of, mtu_of, name_of, offload_checksums};
pub use diag::end_sockets;
pub use memory::Mapped;
pub use netlink::peer_runs_xdp;

/// Lets this process have as many maps and programs as it needs: before 5.11 they count as locked memory.
///
/// Where the limit cannot be lifted, it is what making a map fails with.
pub fn lift_memory_limit() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the structure is valid for reads.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) };
}

/// The cookie of the calling thread's network namespace; zero where the kernel has none to tell.
pub fn netns_cookie() -> u64 {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let Ok(socket) = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)) else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut length = 8;
    // SAFETY: the number is writable for its length.
    unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    cookie
}
