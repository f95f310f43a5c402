//! One agent a state directory.

#![forbid(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// How long a killed process may take to let go of its files.
const DYING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Why the directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("an agent runs on {state_dir} already{holder}", state_dir = .state_dir.display())]
    Held {
        /// The directory.
        state_dir: PathBuf,
        /// " (process 123)", if that could be read.
        holder: String,
    },
    /// The lock file can't be used.
    #[error("lock {path}", path = .path.display())]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Holds a state directory until dropped, or until the process ends however it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes the directory, also from an agent that was killed and has not quite ended.
    pub async fn take_soon(state_dir: &Path) -> Result<Self, LockError> {
        let deadline = Instant::now() + DYING;
        loop {
            match Self::take(state_dir) {
                Err(LockError::Held { .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                taken => return taken,
            }
        }
    }

    /// Takes the directory, or says who has it.
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("agent.lock");
        let failed = |source: io::Error| LockError::File {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let write = |file: &mut File| {
                    file.set_len(0)?;
                    file.rewind()?;
                    writeln!(file, "{}", std::process::id())
                };
                write(&mut file).map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let holder = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => format!(" (process {})", pid.trim()),
                    _ => String::new(),
                };
                Err(LockError::Held {
                    state_dir: state_dir.to_owned(),
                    holder,
                })
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_is_first() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let first = StateLock::take(state.path()).expect("free");
        let error = StateLock::take(state.path()).expect_err("held");
        let expected = format!(
            "an agent runs on {} already (process {})",
            state.path().display(),
            std::process::id()
        );
        assert_eq!(error.to_string(), expected);
        drop(first);
        StateLock::take(state.path()).expect("free again");
    }

    #[tokio::test]
    async fn a_dying_agents_directory_is_had_when_it_has_ended() {
        let state = tempfile::tempdir().expect("a temporary directory");
        let dying = StateLock::take(state.path()).expect("free");
        let ending = tokio::spawn(async move {
            tokio::time::sleep(LOOK_AGAIN * 3).await;
            drop(dying);
        });
        StateLock::take_soon(state.path()).await.expect("free soon");
        ending.await.expect("no panic");
    }
}
