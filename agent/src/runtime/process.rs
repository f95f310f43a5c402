//! Which process is which: a pid alone may mean another process tomorrow, a pid with its start time never does.
#![forbid(unsafe_code)]

use std::{fs, io, os::fd::AsFd as _};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::sys::Pidfd;

/// One process, for as long as the machine is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the node sees it.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks after boot.
    pub start_ticks: u64,
}

impl ProcessId {
    /// The process that has `pid` now.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/stat: {stat}"),
            )
        })?;
        Ok(ProcessId { pid, start_ticks })
    }

    /// Whether it runs; one that has ended and was not reaped does not.
    pub fn is_alive(self) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else {
            return Ok(false);
        };
        let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, PollTimeout::ZERO)? == 0)
    }

    /// Opens it; `None` when it is gone, also when another process has its pid.
    pub fn open(self) -> io::Result<Option<Pidfd>> {
        let Some(pidfd) = Pidfd::open(self.pid)? else {
            return Ok(None);
        };
        // Compared after the pidfd is open: from here on the pid can't change hands unnoticed.
        match ProcessId::of(self.pid) {
            Ok(now) if now == self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The command name, which comes second, may hold spaces and parentheses: what follows the last one counts.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_command_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(start_ticks(stat), Some(4242));
        assert_eq!(start_ticks("7 (sh"), None);
    }

    #[test]
    fn another_process_with_the_same_pid_is_not_opened() {
        let own = i32::try_from(std::process::id()).expect("pids are positive");
        let here = ProcessId::of(own).expect("this process is in /proc");
        assert!(here.open().expect("pidfds work").is_some());
        let earlier = ProcessId {
            start_ticks: here.start_ticks - 1,
            ..here
        };
        assert!(earlier.open().expect("pidfds work").is_none());
    }
}
