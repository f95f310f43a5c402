//! A container as the agent sees it: started through a shim, found again after a restart, signalled and awaited.
#![forbid(unsafe_code)]

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncReadExt as _, unix::AsyncFd},
    process::Command,
    time::timeout,
};

use super::{
    bundle::{Bundle, Exit, Started},
    process::ProcessId,
    shim::Answer,
    sys::Pidfd,
};

/// A shim that has not answered by then is killed.
const START: Duration = Duration::from_mins(1);
/// How long a shim may take to write down the end of its container.
const FAREWELL: Duration = Duration::from_secs(10);

/// Between tries to give a container a new shim.
const ADOPT_AGAIN: Duration = Duration::from_secs(1);

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime refused: a command that does not exist, a mount that fails.
    #[error("{0}")]
    Refused(String),
    /// The shim could not be started, or said nothing that can be read.
    #[error("{operation}")]
    Shim {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The shim did not answer.
    #[error("the container did not start within {} s", START.as_secs())]
    Timeout,
}

/// What is found in a bundle by an agent that did not start it.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Container),
    /// It ended, and its shim saw how.
    Ended(Exit),
    /// It has run and ended, and nobody saw how.
    Lost(Started),
    /// The agent that was starting it died first.
    NeverStarted,
}

/// A command that ran in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What it returned.
    pub code: i32,
    /// What it printed, errors last.
    pub output: String,
}

/// Starts and adopts containers.
#[derive(Clone, Debug)]
pub struct Launcher {
    executable: PathBuf,
}

impl Launcher {
    /// `executable` is the program that has the `shim` subcommand.
    pub fn new(executable: PathBuf) -> Launcher {
        Launcher { executable }
    }

    /// The program that has the `shim` subcommand.
    pub fn executable(&self) -> &std::path::Path {
        &self.executable
    }

    /// Starts the container of a prepared bundle. When this fails, nothing of it runs.
    pub async fn start(&self, bundle: &Bundle) -> Result<Container, StartError> {
        let started = self.shim("run", bundle).await?;
        self.attach(bundle, started)
            .map_err(|source| StartError::Shim {
                operation: "watch the container",
                source,
            })
    }

    /// Finds out what became of a container.
    pub async fn find(&self, bundle: &Bundle) -> io::Result<Found> {
        if let Some(exit) = bundle.exit().read()? {
            return Ok(Found::Ended(exit));
        }
        let Some(started) = bundle.started().read()? else {
            if let Some(shim) = Self::open_shim(bundle)? {
                shim.signal(Signal::SIGKILL)?;
            }
            return Ok(Found::NeverStarted);
        };
        if started.init.open()?.is_some() {
            return Ok(Found::Running(self.attach(bundle, started)?));
        }
        // It has just ended: its shim may still be writing that down.
        if let Some(shim) = Self::open_shim(bundle)? {
            wait_for_end(&shim.watch()?, FAREWELL).await?;
        }
        Ok(match bundle.exit().read()? {
            Some(exit) => Found::Ended(exit),
            None => Found::Lost(started),
        })
    }

    /// Runs a command in a running container and waits for it. Dropped before that, it kills the command.
    pub async fn exec(&self, bundle: &Bundle, command: &[String]) -> io::Result<Done> {
        let output = Command::new(&self.executable)
            .args(["shim", "exec"])
            .arg(bundle.path())
            .args(command)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(Done {
            // Killed itself: it has no code.
            code: output.status.code().unwrap_or(255),
            output: text,
        })
    }

    fn attach(&self, bundle: &Bundle, started: Started) -> io::Result<Container> {
        let init = started.init.open()?;
        let init = init.map(Pidfd::watch);
        Ok(Container {
            bundle: bundle.clone(),
            started,
            init: init.transpose()?,
            launcher: self.clone(),
        })
    }

    /// The shim of a bundle, when one lives.
    fn open_shim(bundle: &Bundle) -> io::Result<Option<Pidfd>> {
        if bundle.lock()?.is_some() {
            return Ok(None);
        }
        let shim: Option<ProcessId> = bundle.shim().read()?;
        shim.map_or(Ok(None), ProcessId::open)
    }

    async fn shim(&self, verb: &str, bundle: &Bundle) -> Result<Started, StartError> {
        let fail = |operation| move |source| StartError::Shim { operation, source };
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(bundle.shim_log())
            .map_err(fail("open the shim's log"))?;
        let mut child = Command::new(&self.executable)
            .args(["shim", verb])
            .arg(bundle.path())
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(fail("start the shim"))?;
        let mut stdout = child
            .stdout
            .take()
            .ok_or_else(|| fail("talk to the shim")(io::Error::from(io::ErrorKind::BrokenPipe)))?;
        let mut text = Vec::new();
        let answered = timeout(START, stdout.read_to_end(&mut text)).await;
        let answered = if let Ok(answered) = answered {
            answered.map_err(fail("read the shim's answer"))
        } else {
            child.start_kill().map_err(fail("kill a shim that hangs"))?;
            Err(StartError::Timeout)
        };
        // Shims outlive this call; reaped here for as long as this agent lives, else by pid 1.
        tokio::spawn(async move {
            if let Err(error) = child.wait().await {
                tracing::warn!(%error, "cannot wait for a shim");
            }
        });
        answered?;
        match serde_json::from_slice(&text) {
            Ok(Answer::Started(started)) => Ok(started),
            Ok(Answer::Failed { message }) => Err(StartError::Refused(message)),
            Err(error) => Err(fail("understand the shim's answer")(error.into())),
        }
    }
}

/// A container that was running when this was made.
#[derive(Debug)]
pub struct Container {
    bundle: Bundle,
    started: Started,
    /// Absent when it had ended before it could be opened.
    init: Option<AsyncFd<Pidfd>>,
    launcher: Launcher,
}

impl Container {
    /// Its first process, and when it began.
    pub fn started(&self) -> Started {
        self.started
    }

    /// Signals its first process; `false` when that has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.init
            .as_ref()
            .map_or(Ok(false), |init| init.get_ref().signal(signal))
    }

    /// Waits for its first process to end. How it ended is known a moment later: [`Container::exit`].
    ///
    /// While it runs it has a shim: one that was killed is replaced.
    pub async fn ended(&self) -> io::Result<()> {
        let Some(init) = &self.init else {
            return Ok(());
        };
        loop {
            let Some(shim) = Launcher::open_shim(&self.bundle)? else {
                if has_ended(init).await? {
                    return Ok(());
                }
                tracing::warn!(bundle = %self.bundle.path().display(), "a shim was killed: replacing it");
                if let Err(error) = self.launcher.shim("adopt", &self.bundle).await {
                    tracing::warn!(%error, "no new shim yet: its container's output waits");
                    tokio::select! {
                        ended = init.readable() => return ended.map(drop),
                        () = tokio::time::sleep(ADOPT_AGAIN) => {}
                    }
                }
                continue;
            };
            let shim = shim.watch()?;
            tokio::select! {
                biased;
                ended = init.readable() => return ended.map(drop),
                died = shim.readable() => drop(died?),
            }
        }
    }

    /// How it ended; `None` when nobody can tell. To be called when [`Container::ended`] has returned.
    pub async fn exit(&self) -> io::Result<Option<Exit>> {
        if let Some(shim) = Launcher::open_shim(&self.bundle)? {
            wait_for_end(&shim.watch()?, FAREWELL).await?;
        }
        if let Some(exit) = self.bundle.exit().read()? {
            return Ok(Some(exit));
        }
        let Some(init) = &self.init else {
            return Ok(None);
        };
        let status = init.get_ref().wait_status()?;
        Ok(status.map(|status| Exit::from_wait_status(status, false, self.started)))
    }
}

/// Without waiting.
async fn has_ended(process: &AsyncFd<Pidfd>) -> io::Result<bool> {
    match timeout(Duration::ZERO, process.readable()).await {
        Ok(ready) => ready.map(|_| true),
        Err(_) => Ok(false),
    }
}

async fn wait_for_end(process: &AsyncFd<Pidfd>, limit: Duration) -> io::Result<()> {
    match timeout(limit, process.readable()).await {
        Ok(ready) => ready.map(drop),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "a shim does not end after its container",
        )),
    }
}
