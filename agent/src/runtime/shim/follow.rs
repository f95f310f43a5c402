//! The shim's long life: it empties the container's pipes into the log until the container ends, and writes down how.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::Read as _,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{stat::Mode, wait::waitpid},
    unistd::{Pid, Uid, mkfifo},
};

use super::{
    super::{
        bundle::{Bundle, Exit, ShimConfig, Started},
        cgroup,
        log::{ContainerLog, Stream},
        sys::Pidfd,
    },
    During, ShimError,
};

/// As much as a pipe holds.
const PIPE_BYTES: usize = 64 * 1024;
/// How often a pipe is read after the container's end.
const DRAIN_READS: usize = 64;
/// How long pid 1 may take to reap a container.
const REAP_MILLIS: u16 = 2_000;

/// The pipes behind a container's standard output and error.
///
/// They are named and opened for reading and writing on both sides. So the container never loses its reader: while
/// there is no shim it waits at a full pipe instead of being killed by SIGPIPE, and a new shim reads on.
pub struct Pipes {
    /// Standard output.
    pub stdout: File,
    /// Standard error.
    pub stderr: File,
}

impl Pipes {
    /// Makes them, for a container that runs as `uid`.
    pub fn create(bundle: &Bundle, uid: u32) -> Result<Pipes, ShimError> {
        for path in [bundle.stdout(), bundle.stderr()] {
            match mkfifo(&path, Mode::from_bits_truncate(0o600)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(errno).during("make a pipe"),
            }
            nix::unistd::chown(&path, Some(Uid::from_raw(uid)), None).during("own a pipe")?;
        }
        Pipes::open(bundle)
    }

    /// Opens those that another shim made.
    pub fn open(bundle: &Bundle) -> Result<Pipes, ShimError> {
        let open = |path: &Path| {
            File::options()
                .read(true)
                .write(true)
                .custom_flags(libc::O_CLOEXEC)
                .open(path)
                .during("open a pipe")
        };
        Ok(Pipes {
            stdout: open(&bundle.stdout())?,
            stderr: open(&bundle.stderr())?,
        })
    }
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
    pipes: &Pipes,
    mut log: ContainerLog,
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
    copy_until_exit(&pidfd, pipes, &mut log)?;
    let status = wait_status(&pidfd, started.init.pid, parent)?;
    drain(pipes, &mut log)?;
    log.finish(Timestamp::now());
    let oom_killed = cgroup::oom_kills(&config.cgroup).unwrap_or_else(|error| {
        eprintln!("shim: cannot tell whether memory ran out: {error}");
        0
    }) > 0;
    let Some(status) = status else {
        return Err(ShimError::Missing("the container's exit status"));
    };
    let exit = Exit::from_wait_status(status, oom_killed, started);
    bundle.exit().write(&exit).during("write exit.json")
}

fn copy_until_exit(pidfd: &Pidfd, pipes: &Pipes, log: &mut ContainerLog) -> Result<(), ShimError> {
    let mut buffer = vec![0; PIPE_BYTES];
    loop {
        let mut polled = [
            PollFd::new(pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(pipes.stdout.as_fd(), PollFlags::POLLIN),
            PollFd::new(pipes.stderr.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno).during("poll"),
        }
        let [ended, out, err] = polled.map(|fd| fd.any().unwrap_or(false));
        for (ready, stream, file) in [
            (out, Stream::Stdout, &pipes.stdout),
            (err, Stream::Stderr, &pipes.stderr),
        ] {
            if ready {
                let mut file = file;
                let length = file
                    .read(&mut buffer)
                    .during("read the container's output")?;
                log.take(stream, &buffer[..length], Timestamp::now());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

/// What is left in the pipes. Nobody writes any more: pid 1 of the container's namespace is dead, and so are its others.
fn drain(pipes: &Pipes, log: &mut ContainerLog) -> Result<(), ShimError> {
    let mut buffer = vec![0; PIPE_BYTES];
    for (stream, file) in [
        (Stream::Stdout, &pipes.stdout),
        (Stream::Stderr, &pipes.stderr),
    ] {
        // Bounded, for containers that share another's pid namespace and leave a writer behind.
        for _ in 0..DRAIN_READS {
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::ZERO).during("poll")? == 0 {
                break;
            }
            let mut file = file;
            let length = file
                .read(&mut buffer)
                .during("read the container's output")?;
            log.take(stream, &buffer[..length], Timestamp::now());
        }
    }
    Ok(())
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
