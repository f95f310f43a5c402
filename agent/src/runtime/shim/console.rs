//! A container's standard streams: pipes with names, or a terminal.
#![forbid(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::stat::Mode,
    unistd::{Uid, fchown, mkfifo},
};

use super::{
    super::{
        bundle::{Bundle, ShimConfig},
        log::Stream,
        terminal::Terminal,
    },
    During as _, ShimError,
};

/// The shim's side of a container's standard streams.
///
/// Pipes have names and are opened for reading and writing on both sides. So the container never loses its reader: while
/// there is no shim it waits at a full pipe instead of being killed by SIGPIPE, and a new shim reads on. A terminal goes
/// with the shim that made it, and its session gets SIGHUP.
pub struct Console {
    /// What the container prints.
    pub outputs: Vec<(Stream, File)>,
    /// Where what it reads goes in, without waiting; absent once it is to read an end, or when it reads nothing.
    pub input: Option<File>,
    /// Whose size may change.
    pub terminal: Option<Terminal>,
    /// Held, so that the terminal does not hang up between two users of it.
    slave: Option<OwnedFd>,
}

/// The container's side.
pub struct Given {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

impl Console {
    /// Makes what a container gets.
    pub fn create(bundle: &Bundle, config: &ShimConfig) -> Result<Console, ShimError> {
        if config.tty {
            return Console::with_terminal(config);
        }
        let mut paths = vec![bundle.stdout(), bundle.stderr()];
        if config.stdin {
            paths.push(bundle.stdin());
        }
        for path in paths {
            match mkfifo(&path, Mode::from_bits_truncate(0o600)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).during("make a pipe"),
            }
            nix::unistd::chown(&path, Some(Uid::from_raw(config.uid)), None)
                .during("own a pipe")?;
        }
        Console::open(bundle, config)
    }

    /// Opens pipes that another shim made. Of its terminal nothing is left.
    pub fn open(bundle: &Bundle, config: &ShimConfig) -> Result<Console, ShimError> {
        let mut console = Console {
            outputs: Vec::new(),
            input: None,
            terminal: None,
            slave: None,
        };
        if config.tty {
            return Ok(console);
        }
        for (stream, path) in [
            (Stream::Stdout, bundle.stdout()),
            (Stream::Stderr, bundle.stderr()),
        ] {
            let file = both_ways(0).open(&path).during("open a pipe")?;
            console.outputs.push((stream, file));
        }
        if config.stdin {
            let file = both_ways(libc::O_NONBLOCK).open(bundle.stdin());
            console.input = Some(file.during("open a pipe")?);
        }
        Ok(console)
    }

    fn with_terminal(config: &ShimConfig) -> Result<Console, ShimError> {
        let (terminal, slave) = Terminal::open().during("open a terminal")?;
        fchown(slave.as_fd(), Some(Uid::from_raw(config.uid)), None).during("own a terminal")?;
        let screen = terminal.duplicate().during("open a terminal")?;
        // For the shim's side as a whole.
        fcntl(&screen, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).during("set up a terminal")?;
        let keyboard = terminal.duplicate().during("open a terminal")?;
        Ok(Console {
            outputs: vec![(Stream::Stdout, screen)],
            input: config.stdin.then_some(keyboard),
            terminal: Some(terminal),
            slave: Some(slave),
        })
    }

    /// What the container's first process gets.
    pub fn given(&self, bundle: &Bundle, config: &ShimConfig) -> io::Result<Given> {
        if let Some(slave) = &self.slave {
            return Ok(Given {
                stdin: slave.try_clone()?,
                stdout: slave.try_clone()?,
                stderr: slave.try_clone()?,
            });
        }
        let stdin: PathBuf = if config.stdin {
            bundle.stdin()
        } else {
            "/dev/null".into()
        };
        // A container that may be attached to again holds its input open itself.
        let once = !config.stdin || config.stdin_once;
        let output = |number: usize| {
            let found = self.outputs.get(number);
            let (_, file) = found.ok_or_else(|| io::Error::other("a stream is missing"))?;
            file.try_clone().map(OwnedFd::from)
        };
        Ok(Given {
            stdin: read_end(&stdin, once)?,
            stdout: output(0)?,
            stderr: output(1)?,
        })
    }
}

fn read_end(path: &Path, once: bool) -> io::Result<OwnedFd> {
    if once {
        return File::open(path).map(OwnedFd::from);
    }
    both_ways(0).open(path).map(OwnedFd::from)
}

fn both_ways(flags: i32) -> OpenOptions {
    let mut options = File::options();
    options
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | flags);
    options
}
