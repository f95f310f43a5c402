//! The shim's long life: it empties the container's pipes into the log until the container ends, and writes down how.
#![forbid(unsafe_code)]

use std::{
    io::{self, Read as _},
    os::fd::AsFd,
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::waitpid,
    unistd::Pid,
};

use super::{
    super::{
        bundle::{Bundle, Exit, ShimConfig, Started},
        cgroup,
        log::ContainerLog,
        sys::Pidfd,
    },
    During, ShimError,
    attach::Attached,
    console::Console,
};

/// As much as a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;
/// How often a pipe is read after the container's end.
const DRAIN_READS: usize = 64;
/// How long pid 1 may take to reap a container.
const REAP_MILLIS: u16 = 2_000;

/// Where what a container prints comes from and goes to.
pub struct Outputs {
    /// The container's streams.
    pub console: Console,
    /// Who watches.
    pub attached: Attached,
    /// What is kept.
    pub log: ContainerLog,
}

/// Who may wait for the container's first process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// This shim built it.
    Us,
    /// The shim that built it is dead; the node's pid 1 has it now.
    Another,
}

/// Empties the pipes until the container has ended, then writes exit.json.
pub fn to_the_end(
    bundle: &Bundle,
    config: &ShimConfig,
    started: Started,
    mut outputs: Outputs,
    parent: Parent,
) -> Result<(), ShimError> {
    let pidfd = match parent {
        Parent::Us => Pidfd::open(started.init.pid).during("open the container")?,
        Parent::Another => started.init.open().during("open the container")?,
    };
    // No pidfd: it ended before this adopting shim came, and its status is lost. The agent says so.
    let Some(pidfd) = pidfd else {
        return Err(ShimError::Missing("the container's process"));
    };
    outputs.copy_until_exit(&pidfd)?;
    let status = wait_status(&pidfd, started.init.pid, parent)?;
    outputs.drain()?;
    let Outputs { attached, log, .. } = outputs;
    log.finish(Timestamp::now());
    let oom_killed = cgroup::oom_kills(&config.cgroup).unwrap_or_else(|error| {
        eprintln!("shim: cannot tell whether memory ran out: {error}");
        0
    }) > 0;
    let Some(status) = status else {
        return Err(ShimError::Missing("the container's exit status"));
    };
    let exit = Exit::from_wait_status(status, oom_killed, started);
    let written = bundle.exit().write(&exit).during("write exit.json");
    attached.finish();
    written
}

impl Outputs {
    fn copy_until_exit(&mut self, pidfd: &Pidfd) -> Result<(), ShimError> {
        let mut buffer = vec![0; PIPE_BYTES];
        loop {
            let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            if self.attached.has_room() {
                let outputs = self.console.outputs.iter();
                polled
                    .extend(outputs.map(|(_, file)| PollFd::new(file.as_fd(), PollFlags::POLLIN)));
            }
            let count = polled.len();
            polled.extend(self.attached.polled(&self.console));
            match poll(&mut polled, self.attached.timeout()) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).during("poll"),
            }
            let mut ready = polled.iter().map(|fd| fd.any().unwrap_or(false));
            let ended = ready.next().unwrap_or(false);
            let printed: Vec<bool> = ready.take(count - 1).collect();
            for (number, _) in printed.iter().enumerate().filter(|(_, ready)| **ready) {
                self.pass_on(number, &mut buffer)?;
            }
            self.attached.advance(&mut self.console);
            if ended {
                return Ok(());
            }
        }
    }

    /// What one of the container's outputs holds, as far as it comes at once; `false` when it holds nothing.
    fn pass_on(&mut self, number: usize, buffer: &mut [u8]) -> Result<bool, ShimError> {
        let (stream, file) = &mut self.console.outputs[number];
        let length = match file.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error).during("read the container's output"),
        };
        if length > 0 {
            self.log.take(*stream, &buffer[..length], Timestamp::now());
            self.attached.show(*stream, &buffer[..length]);
        }
        Ok(length > 0)
    }

    /// What is left in the pipes. Nobody writes any more: pid 1 of the container's namespace is dead, and so are its
    /// others.
    fn drain(&mut self) -> Result<(), ShimError> {
        let mut buffer = vec![0; PIPE_BYTES];
        for number in 0..self.console.outputs.len() {
            // Bounded, for containers that share another's pid namespace and leave a writer behind.
            for _ in 0..DRAIN_READS {
                let file = self.console.outputs[number].1.as_fd();
                let mut polled = [PollFd::new(file, PollFlags::POLLIN)];
                if poll(&mut polled, PollTimeout::ZERO).during("poll")? == 0
                    || !self.pass_on(number, &mut buffer)?
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// As waitpid(2) encodes it; `None` where the kernel can't say.
fn wait_status(pidfd: &Pidfd, pid: i32, parent: Parent) -> Result<Option<i32>, ShimError> {
    use nix::sys::wait::WaitStatus;
    if parent == Parent::Us {
        return match waitpid(Pid::from_raw(pid), None).during("wait for the container")? {
            WaitStatus::Exited(_, code) => Ok(Some((code & 0xff) << 8)),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(signal as i32)),
            _ => Ok(None),
        };
    }
    // The kernel tells an exit status only after pid 1 has reaped the process, which the pidfd reports as a hang-up.
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::empty())];
    poll(&mut polled, PollTimeout::from(REAP_MILLIS)).during("wait for pid 1")?;
    pidfd.wait_status().during("read the exit status")
}
