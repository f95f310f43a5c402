//! The shim: the small process that stands behind every container and outlives the agent.
//!
//! libcontainer forks with raw clone3 and changes process-wide state, so a container is built in a process of its own
//! that has one thread. That process stays: it is the container's parent, empties its pipes into the log, and writes
//! down how it ended. A new agent finds it by its lock and the container by pid and start time.
//!
//! ```text
//! agent --spawn--> shim run BUNDLE --libcontainer--> init (the container's first process)
//!                   | stdout: one line of JSON, then closed: Started or Failure
//!                   | BUNDLE/lock held, started.json, log file, attach (a socket)
//!                   ` exit.json by rename, then it ends
//! ```
//!
//! A shim that is killed is replaced by `shim adopt BUNDLE`: the pipes have names, the container holds both of their
//! ends, and the kernel remembers the exit status for whoever had a pidfd open.
#![forbid(unsafe_code)]

mod attach;
mod build;
mod console;
mod exec;
mod follow;

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Write as _},
    process::ExitCode,
};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::{
    bundle::{Bundle, Started},
    process::ProcessId,
    sys,
};

use attach::Attached;
use console::Console;

/// Why a shim could not do its work; one line on its standard error.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShimError {
    /// Not started by the agent.
    #[error(
        "usage: shim run|adopt BUNDLE, shim exec [--tty] [--refusal FILE] [--] BUNDLE COMMAND..."
    )]
    Usage,
    /// An operation of the kernel failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another shim has this container.
    #[error("the container has a shim already")]
    Locked,
    /// A file that the agent writes first is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// libcontainer refused.
    #[error(transparent)]
    Build(#[from] build::BuildError),
}

/// Adds what was tried to an error of the kernel.
trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, ShimError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str) -> Result<T, ShimError> {
        self.map_err(|source| ShimError::Io {
            operation,
            source: source.into(),
        })
    }
}

/// What a shim answers its agent, as one line.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The container runs, or has run.
    Started(Started),
    /// There is no container, and nothing is left of the attempt.
    Failed {
        /// In the words of other runtimes where they have some.
        message: String,
    },
}

/// The whole life of a shim. `args` is what follows "shim" on the command line. To be called before any thread exists.
pub fn main(args: &[OsString]) -> ExitCode {
    let result = match args {
        [verb, bundle] if verb == "run" => run(&Bundle::at(bundle)),
        [verb, bundle] if verb == "adopt" => adopt(&Bundle::at(bundle)),
        [verb, rest @ ..] if verb == "exec" => {
            let Some(wanted) = exec::Wanted::parse(rest) else {
                eprintln!("shim: {}", ShimError::Usage);
                return ExitCode::FAILURE;
            };
            return exec::exec(&wanted).unwrap_or_else(|error| {
                wanted.refuse(&error.to_string());
                ExitCode::FAILURE
            });
        }
        _ => Err(ShimError::Usage),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim: {error}");
            let answered = answer(&Answer::Failed {
                message: error.to_string(),
            });
            if let Err(error) = answered {
                eprintln!("shim: cannot tell the agent: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(bundle: &Bundle) -> Result<(), ShimError> {
    detach()?;
    let _lock = lock(bundle)?;
    let config = bundle
        .shim_config()
        .read()
        .during("read shim.json")?
        .ok_or(ShimError::Missing("shim.json"))?;
    let console = Console::create(bundle, &config)?;
    let log = super::log::ContainerLog::open(config.log.clone()).during("open the log")?;
    let attached = Attached::listen(bundle, config.stdin_once)?;
    let started = build::start(bundle, &config, &console)?;
    answer(&Answer::Started(started)).during("answer the agent")?;
    let outputs = follow::Outputs {
        console,
        attached,
        log,
    };
    follow::to_the_end(bundle, &config, started, outputs, follow::Parent::Us)
}

fn adopt(bundle: &Bundle) -> Result<(), ShimError> {
    detach()?;
    let _lock = lock(bundle)?;
    let config = bundle
        .shim_config()
        .read()
        .during("read shim.json")?
        .ok_or(ShimError::Missing("shim.json"))?;
    let started = bundle
        .started()
        .read()
        .during("read started.json")?
        .ok_or(ShimError::Missing("started.json"))?;
    let outputs = follow::Outputs {
        console: Console::open(bundle, &config)?,
        attached: Attached::listen(bundle, config.stdin_once)?,
        log: super::log::ContainerLog::open(config.log.clone()).during("open the log")?,
    };
    answer(&Answer::Started(started)).during("answer the agent")?;
    follow::to_the_end(bundle, &config, started, outputs, follow::Parent::Another)
}

/// Leaves the agent's session and its signal handling. The container's first process becomes a child of this one
/// without a subreaper: libcontainer clones it with CLONE_PARENT.
fn detach() -> Result<(), ShimError> {
    nix::unistd::setsid().during("setsid")?;
    sys::reset_signals().during("reset signals")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Held until the shim ends: whoever can't have it knows that there is a shim, and reads which.
fn lock(bundle: &Bundle) -> Result<Flock<File>, ShimError> {
    let lock = bundle.lock().during("lock")?.ok_or(ShimError::Locked)?;
    let own = i32::try_from(std::process::id()).map_err(io::Error::other);
    own.and_then(ProcessId::of)
        .and_then(|own| bundle.shim().write(&own))
        .during("write shim.pid")?;
    Ok(lock)
}

/// One line, then the end of standard output: the agent waits for that end.
fn answer(answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer).map_err(io::Error::other)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    let null = File::options().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(null)?;
    Ok(())
}
