//! Ctrl-C while something is measured: it ends after the step that it is in, and what it made goes with it.

use std::{
    process,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{SigSet, Signal, kill},
    unistd::Pid,
};

/// The exit code of a program that Ctrl-C has ended, as shells know it.
pub const EXIT_CODE: u8 = 130;

static TOLD: AtomicBool = AtomicBool::new(false);
/// The command that runs for us, if there is one.
static RUNNING: Mutex<Option<Pid>> = Mutex::new(None);

/// What a function returns that was interrupted.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// From here on signals no longer end this process; [`check`] tells of them. Before any other thread is made.
pub fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("wait for signals")?;
    thread::spawn(move || {
        loop {
            if let Err(error) = signals.wait() {
                // A process that nothing could end would be worse than one that leaves something behind.
                eprintln!("cannot wait for signals: {error}");
                process::exit(i32::from(EXIT_CODE));
            }
            if TOLD.swap(true, Ordering::AcqRel) {
                process::exit(i32::from(EXIT_CODE));
            }
            eprintln!("\nending and cleaning up; once more, and it ends at once");
            if let Some(child) = *running() {
                // It may have ended by itself.
                let _ = kill(child, Signal::SIGTERM);
            }
        }
    });
    Ok(())
}

/// An error once this process has been told to end.
pub fn check() -> Result<(), Interrupted> {
    if TOLD.load(Ordering::Acquire) {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

/// While this lives, a signal ends a child process too.
#[derive(Debug)]
pub struct Child(());

impl Child {
    /// For the child of this id.
    pub fn new(id: u32) -> Self {
        *running() = i32::try_from(id).ok().map(Pid::from_raw);
        Self(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        *running() = None;
    }
}

fn running() -> MutexGuard<'static, Option<Pid>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
