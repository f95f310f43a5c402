//! A further process in a running container, as restricted as the container itself: same user, capabilities,
//! namespaces, control group and system call filter.
#![forbid(unsafe_code)]

use std::{ffi::OsString, fs, io, process::ExitCode};

use libcontainer::{
    container::builder::ContainerBuilder,
    oci_spec::runtime::{LinuxSeccomp, Spec},
    seccomp::initialize_seccomp,
    syscall::syscall::SyscallType,
    workload::{
        Executor, ExecutorError, ExecutorValidationError,
        default::{DefaultExecutor, get_executor},
    },
};
use nix::{
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, Uid, fchown},
};
use serde_json::Value;

use super::{
    super::{bundle::Bundle, sys},
    During, ShimError,
    build::refused,
};

/// What this process returns when the command could not be started, as other runtimes do.
const NOT_STARTED: u8 = 126;

/// What is to be run.
pub struct Wanted<'a> {
    bundle: Bundle,
    command: &'a [OsString],
    /// Standard input is a terminal, and the command's own.
    tty: bool,
    /// Where to say why the command could not be started; absent: on standard output.
    refusal: Option<&'a OsString>,
}

impl<'a> Wanted<'a> {
    /// From `[--tty] [--refusal FILE] [--] BUNDLE COMMAND...`.
    pub fn parse(arguments: &'a [OsString]) -> Option<Self> {
        let (mut tty, mut refusal, mut rest) = (false, None, arguments);
        loop {
            match rest {
                [flag, after @ ..] if flag == "--tty" => (tty, rest) = (true, after),
                [flag, file, after @ ..] if flag == "--refusal" => {
                    (refusal, rest) = (Some(file), after);
                }
                [flag, after @ ..] if flag == "--" => rest = after,
                [bundle, command @ ..] if !command.is_empty() => {
                    return Some(Self {
                        bundle: Bundle::at(bundle),
                        command,
                        tty,
                        refusal,
                    });
                }
                _ => return None,
            }
        }
    }

    /// Says why the command could not be started.
    pub fn refuse(&self, why: &str) {
        match self.refusal {
            None => println!("{why}"),
            Some(file) => {
                if let Err(error) = fs::write(file, why) {
                    println!("{why} ({error})");
                }
            }
        }
    }
}

/// Runs a command in a container; its output and exit code become those of this process.
pub fn exec(wanted: &Wanted<'_>) -> Result<ExitCode, ShimError> {
    let (bundle, command) = (&wanted.bundle, wanted.command);
    sys::reset_signals().during("reset signals")?;
    let config = bundle
        .shim_config()
        .read()
        .during("read shim.json")?
        .ok_or(ShimError::Missing("shim.json"))?;
    let text = fs::read(bundle.config()).during("read config.json")?;
    let mut document: Value = serde_json::from_slice(&text)
        .map_err(io::Error::other)
        .during("read config.json")?;
    let filter = document["linux"]["seccomp"].take();
    let seccomp: Option<LinuxSeccomp> = serde_json::from_value(filter)
        .map_err(io::Error::other)
        .during("read the filter")?;
    let args = command
        .iter()
        .map(|word| Value::String(word.to_string_lossy().into_owned()));
    document["process"]["args"] = args.collect();
    if wanted.tty {
        // Whoever runs the command may open its terminal again.
        fchown(io::stdin(), Some(Uid::from_raw(config.uid)), None).during("own the terminal")?;
        if let Some(env) = document["process"]["env"].as_array_mut() {
            env.push(Value::from("TERM=xterm"));
        }
    }
    if seccomp.is_some() {
        // libcontainer installs no filter here, and at the point where this room does, only a process that can't gain
        // privileges may install one.
        document["process"]["noNewPrivileges"] = Value::Bool(true);
    }
    let process = bundle
        .path()
        .join(format!("exec-{}.json", std::process::id()));
    fs::write(&process, document["process"].to_string()).during("write the process")?;
    let tty = wanted.tty;
    let started = ContainerBuilder::new(config.id, SyscallType::default())
        .with_root_path(bundle.runtime_root())
        .map(|builder| {
            builder
                .with_executor(Restricted { seccomp, tty })
                .as_tenant()
        })
        .and_then(|builder| builder.with_process(Some(&process)).build());
    fs::remove_file(&process).during("remove the process")?;
    let pid = match started {
        Ok(pid) => pid,
        Err(error) => {
            wanted.refuse(&refused(&error).to_string());
            return Ok(ExitCode::from(NOT_STARTED));
        }
    };
    let code = match waitpid(Pid::from_raw(pid.as_raw()), None).during("wait for the command")? {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        _ => 255,
    };
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)))
}

/// Installs the container's filter right before the command.
#[derive(Clone)]
struct Restricted {
    seccomp: Option<LinuxSeccomp>,
    tty: bool,
}

impl Executor for Restricted {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let failed = |error: &dyn std::error::Error| ExecutorError::Other(error.to_string());
        // A command that is given up must not go on alone.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| failed(&error))?;
        if self.tty {
            sys::control_terminal().map_err(|error| failed(&error))?;
        }
        if let Some(seccomp) = &self.seccomp {
            initialize_seccomp(seccomp).map_err(|error| failed(&error))?;
        }
        get_executor().exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}
