//! Builds and starts a container through libcontainer, and says what went wrong in words that users know.
#![forbid(unsafe_code)]

use std::io;

use jiff::Timestamp;
use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    error::LibcontainerError,
    oci_spec::runtime::Spec,
    syscall::syscall::SyscallType,
    workload::{
        Executor, ExecutorError, ExecutorValidationError,
        default::{DefaultExecutor, get_executor},
    },
};

use super::{
    super::{
        bundle::{Bundle, ShimConfig, Started},
        devices,
        process::ProcessId,
        sys,
    },
    console::{Console, Given},
};

const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// libcontainer's answer, without its layers.
    #[error("{0}")]
    Refused(String),
    /// The bundle could not be read or written.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Starts the container that `bundle` describes. On an error nothing of it is left but files of the bundle.
pub fn start(
    bundle: &Bundle,
    config: &ShimConfig,
    console: &Console,
) -> Result<Started, BuildError> {
    let fail = |operation| move |source| BuildError::Io { operation, source };
    std::fs::create_dir_all(bundle.runtime_root()).map_err(fail("make the runtime's folder"))?;
    let given = console
        .given(bundle, config)
        .map_err(fail("open the container's streams"))?;
    log_errors();
    let own_score =
        std::fs::read_to_string(OOM_SCORE).map_err(fail("read the shim's oom score"))?;
    let mut container =
        build(bundle, config, given).map_err(|error| with_first_cause(bundle, refused(&error)))?;
    // libcontainer gives the shim what is meant for the container, which may be "killed first".
    if let Err(error) = std::fs::write(OOM_SCORE, own_score.trim()) {
        eprintln!("shim: cannot take the oom score back: {error}");
    }
    let pid = container
        .pid()
        .ok_or_else(|| BuildError::Refused("the container has no process".into()))?;
    let started = ProcessId::of(pid.as_raw())
        .map(|init| Started {
            init,
            at: Timestamp::now(),
        })
        .map_err(fail("read the container's start time"))
        // Written before the container may run: an agent that comes later must find whatever runs.
        .and_then(|started| {
            let written = bundle.started().write(&started);
            written.map_err(fail("write started.json"))?;
            Ok(started)
        })
        .and_then(|started| {
            if !config.privileged {
                devices::confine(&config.cgroup).map_err(fail("keep it from devices"))?;
            }
            Ok(started)
        })
        .and_then(|started| match container.start() {
            Ok(()) => Ok(started),
            Err(error) => Err(refused(&error)),
        });
    if started.is_err()
        && let Err(error) = container.delete(true)
    {
        eprintln!("shim: cannot delete a container that did not start: {error}");
    }
    started
}

fn build(
    bundle: &Bundle,
    config: &ShimConfig,
    given: Given,
) -> Result<Container, LibcontainerError> {
    ContainerBuilder::new(config.id.clone(), SyscallType::default())
        .with_root_path(bundle.runtime_root())?
        .with_executor(Command { tty: config.tty })
        .with_stdin(given.stdin)
        .with_stdout(given.stdout)
        .with_stderr(given.stderr)
        .validate_id()?
        .as_init(bundle.path())
        .with_systemd(false)
        .build()
}

/// Becomes the container's command.
#[derive(Clone)]
struct Command {
    tty: bool,
}

impl Executor for Command {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if self.tty {
            sys::control_terminal().map_err(|error| ExecutorError::Other(error.to_string()))?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}

/// libcontainer's processes log what they met, and send each other only what they were about to do.
fn log_errors() {
    let logged = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_level(false)
        .with_target(false)
        .without_time()
        .try_init();
    if let Err(error) = logged {
        eprintln!("shim: cannot log: {error}");
    }
}

/// Adds what was logged first, which is where it began.
fn with_first_cause(bundle: &Bundle, error: BuildError) -> BuildError {
    let BuildError::Refused(text) = error else {
        return error;
    };
    let log = std::fs::read_to_string(bundle.shim_log()).unwrap_or_default();
    match log.lines().find(|line| !line.trim().is_empty()) {
        Some(first) if !text.starts_with("exec: ") => {
            BuildError::Refused(format!("{text}: {}", first.trim()))
        }
        _ => BuildError::Refused(text),
    }
}

/// The innermost cause, in the words of the runtimes that users know where it is one that they meet every day.
pub fn refused(error: &LibcontainerError) -> BuildError {
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text.push_str(": ");
            text.push_str(&own);
        }
        cause = error.source();
    }
    BuildError::Refused(in_known_words(&text))
}

fn in_known_words(text: &str) -> String {
    let quoted = |after: &str| {
        let (_, rest) = text.split_once(after)?;
        let (name, rest) = rest.split_once('\'')?;
        Some((name.to_owned(), rest.to_owned()))
    };
    let Some((name, rest)) = quoted("executable '") else {
        return text.to_owned();
    };
    let why = if !rest.contains("not found in $PATH") {
        "permission denied"
    } else if name.contains('/') {
        "no such file or directory"
    } else {
        "executable file not found in $PATH"
    };
    let operation = if name.contains('/') { "stat " } else { "" };
    if operation.is_empty() || why == "permission denied" {
        format!("exec: \"{name}\": {why}")
    } else {
        format!("exec: \"{name}\": {operation}{name}: {why}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_commands_read_as_in_other_runtimes() {
        let cases = [
            (
                "error: executable 'nope' not found in $PATH",
                "exec: \"nope\": executable file not found in $PATH",
            ),
            (
                "error: executable '/nope' not found in $PATH",
                "exec: \"/nope\": stat /nope: no such file or directory",
            ),
            (
                "executable '/etc/passwd' at path '\"/etc/passwd\"' does not have correct permissions",
                "exec: \"/etc/passwd\": permission denied",
            ),
            ("something else", "something else"),
        ];
        for (given, expected) in cases {
            assert_eq!(in_known_words(given), expected);
        }
    }
}
