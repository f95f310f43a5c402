//! The kernel interfaces that no safe wrapper covers: pidfds and what is inherited across exec.
#![allow(
    unsafe_code,
    reason = "raw system calls; each block says why it is sound"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use tokio::io::{Interest, unix::AsyncFd};

/// A handle on one process that can't come to mean another.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Pidfd {
    /// Opens the process that has `pid` now; `None` when there is none.
    pub fn open(pid: i32) -> io::Result<Option<Pidfd>> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::ESRCH) => Ok(None),
                _ => Err(error),
            };
        }
        let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
        Ok(Some(Pidfd(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Sends a signal; `false` when the process is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        // SAFETY: the descriptor is open for as long as `self` is; a null siginfo means "as kill does".
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            _ => Err(error),
        }
    }

    /// The wait status of a process that has been reaped, where the kernel keeps it (Linux 6.15 and later).
    pub fn wait_status(&self) -> io::Result<Option<i32>> {
        let mut info = PidfdInfo {
            mask: PIDFD_INFO_EXIT,
            ..PidfdInfo::default()
        };
        // SAFETY: the request's number carries the size of `PidfdInfo`, so the kernel writes no more than that into it.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                PIDFD_GET_INFO,
                std::ptr::from_mut(&mut info),
            )
        };
        if result != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // An older kernel, or one that has forgotten the process.
                Some(libc::ENOTTY | libc::EINVAL | libc::ESRCH) => Ok(None),
                _ => Err(error),
            };
        }
        Ok((info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code))
    }

    /// Becomes readable when the process has ended. Needs a tokio runtime.
    pub fn watch(self) -> io::Result<AsyncFd<Pidfd>> {
        // SAFETY: `as_fd` always returns the one descriptor that `self` owns, and it is closed only when the AsyncFd,
        // which takes `self`, is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        watched.map_err(io::Error::from)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `struct pidfd_info` in its first published size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid, and the eight user and group ids.
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xff, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::Ioctl =
    ((3 << 30) | ((size_of::<PidfdInfo>() as u64) << 16) | (0xff << 8) | 0x0b) as libc::Ioctl;

/// Whether the kernel has mount_setattr(2), by which libcontainer makes every mount of a container: Linux 5.12.
pub fn has_mount_attributes() -> bool {
    // SAFETY: no memory is handed over; without a valid descriptor the kernel refuses the call, if it knows it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            -1,
            std::ptr::null::<libc::c_char>(),
            0,
            std::ptr::null::<libc::c_void>(),
            0,
        )
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

/// Undoes what Rust's start-up and the parent left behind, so that a container starts with default signal handling.
pub fn reset_signals() -> io::Result<()> {
    // SAFETY: no handler function is installed; SIG_DFL is valid at any time.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Makes standard input, a terminal, the one that this session is controlled by: Ctrl-C reaches it then. To be called by
/// the session's leader.
pub fn control_terminal() -> io::Result<()> {
    // SAFETY: the request takes an integer and touches no memory of ours.
    let result = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
