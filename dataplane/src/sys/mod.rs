//! The system calls that no safe crate offers, each behind a safe function: maps by file descriptor, their memory,
//! and what the kernel says of network devices. All `unsafe` of the crate is here.

mod bpf;
mod device;
mod memory;
mod netlink;

pub use bpf::{Map, Plain, detach_link, link_interface, plain, possible_cpus};
pub use device::{driver, index_of, mac_of, name_of, offload_checksums};
pub use memory::Mapped;
pub use netlink::peer_runs_xdp;

/// Nanoseconds of the clock that the kernel programs tell flows' ages by.
pub fn coarse_now() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure is valid for writes, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
