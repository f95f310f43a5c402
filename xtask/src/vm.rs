//! `cargo xtask vm`: runs a command, or the kernel tests, in a virtual machine for each kernel.

mod accelerator;
mod catalogue;
mod cpio;
mod guest;
mod kernel;
mod modules;
mod payload;
mod vmlinux;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    command,
    progress::Progress,
    setup::{self, qemu::Qemu},
    workspace::Workspace,
};
use guest::{End, Ended, Job};
use kernel::Kernel;
use payload::Payload;

/// How many of a console's last lines are shown.
const LAST_LINES: usize = 40;
/// What we end with when a machine hangs, as timeout(1) does.
const HUNG: i32 = 124;
/// What we end with when there is no exit code because the kernel crashed or the machine was lost.
const NO_CODE: i32 = 125;

/// What to run in which kernels.
#[derive(Args)]
pub struct Options {
    /// A kernel of Debian's by its first two numbers (6.12), or "newest"; may be given several times
    #[arg(long = "kernel", value_name = "KERNEL", required = true)]
    kernels: Vec<String>,
    /// Ends a machine that runs longer, after showing its console
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    limit: u64,
    /// A file or folder that the command needs, put into the VM where it lies here; may be given several times
    #[arg(long = "with", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Takes what the command leaves in /results into this folder; of several kernels, into a folder of each
    #[arg(long, value_name = "FOLDER")]
    results: Option<PathBuf>,
    /// A kernel module to load beside the usual ones; may be given several times
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Fetches the kernels anew, the newest of their series
    #[arg(long)]
    refresh: bool,
    /// The command, a program of this machine with its arguments. With several kernels the first failure's exit code is
    /// ours; 124 is a machine that hung, 125 a kernel that crashed
    #[arg(last = true, value_name = "COMMAND", required = true)]
    command: Vec<String>,
}

/// The command. It ends the process with the exit code of what ran.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let progress = Progress::new();
    let payload = payload_of(&options.command, &options.files)?;
    let mut first_failure = 0;
    for name in &options.kernels {
        let (qemu, kernel) = tools(workspace, &progress, name, options.refresh)?;
        let ended = guest::run(
            workspace,
            &qemu,
            Job {
                kernel: &kernel,
                modules: &options.modules,
                payload: &payload,
                limit: Duration::from_secs(options.limit),
                stdout: Box::new(io::stdout()),
                stderr: Box::new(io::stderr()),
            },
        )?;
        if let Some(folder) = &options.results {
            let folder = match options.kernels.len() {
                1 => folder.clone(),
                _ => folder.join(name),
            };
            unpack(&ended.results, &folder)?;
        }
        let code = report(&progress, &kernel, &ended, options.limit);
        if first_failure == 0 {
            first_failure = code;
        }
    }
    if first_failure != 0 {
        std::process::exit(first_failure);
    }
    Ok(())
}

/// Brings qemu and a kernel in place; two of us do not do so at once.
fn tools(
    workspace: &Workspace,
    progress: &Progress,
    kernel: &str,
    refresh: bool,
) -> Result<(Qemu, Kernel)> {
    let path = workspace.target().join("vm");
    fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    let path = path.join("lock");
    let lock = File::create(&path)
        .and_then(|file| file.lock().map(|()| file))
        .with_context(|| format!("lock {}", path.display()))?;
    let qemu = setup::qemu::ensure(workspace, progress)?;
    let kernel = Kernel::ensure(workspace, progress, kernel, refresh)?;
    drop(lock);
    Ok((qemu, kernel))
}

/// Everything that a command needs.
fn payload_of(command: &[String], files: &[PathBuf]) -> Result<Payload> {
    let mut payload = Payload::new()?;
    let Some((program, arguments)) = command.split_first() else {
        bail!("there is no command");
    };
    for file in files {
        let place = std::path::absolute(file)?;
        payload.add_file(&place, file)?;
    }
    let program = payload.add_program(program)?;
    payload.add_text("/portolan-job", &job(&program, arguments), 0o755);
    Ok(payload)
}

/// Unpacks what a job left in /results; a machine that was lost has left nothing.
fn unpack(results: &[u8], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    if results.is_empty() {
        return Ok(());
    }
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "-C"]).arg(folder);
    command::output_with_input(&mut tar, results).map(drop)
}

/// The script that a VM runs.
fn job(program: &Path, arguments: &[String]) -> String {
    let words: Vec<String> = std::iter::once(program.display().to_string())
        .chain(arguments.iter().cloned())
        .map(|word| format!("'{}'", word.replace('\'', "'\\''")))
        .collect();
    format!("#!/bin/sh\nexec {}\n", words.join(" "))
}

/// Says how a machine ended, and what we would end with.
fn report(progress: &Progress, kernel: &Kernel, ended: &Ended, limit: u64) -> i32 {
    let (release, accelerator) = (&kernel.release, ended.accelerator.name());
    let took = ended.took.as_secs_f64();
    let (what, code) = match &ended.end {
        End::Exit(code) => {
            progress.say(&format!(
                "{release}: exit code {code} after {took:.1} s by {accelerator}"
            ));
            return *code;
        }
        End::Hung => (format!("did not end within {limit} s and was ended"), HUNG),
        End::Crashed => ("crashed".to_owned(), NO_CODE),
        End::Lost(why) => (format!("was lost: {why}"), NO_CODE),
    };
    progress.say(&format!(
        "{release} {what}, after {took:.1} s by {accelerator}; the last of its console:\n{}",
        last_words(&ended.console)
    ));
    code
}

/// The end of a console; of a crash, its beginning too.
fn last_words(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let crash = lines.iter().position(|line| guest::is_crash(line));
    let begin = lines.len().saturating_sub(LAST_LINES);
    let begin = crash.map_or(begin, |crash| begin.min(crash.saturating_sub(10)));
    lines[begin..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let arguments = ["a b".to_owned(), "it's $HOME".to_owned()];
        assert_eq!(
            job(Path::new("/bin/echo"), &arguments),
            "#!/bin/sh\nexec '/bin/echo' 'a b' 'it'\\''s $HOME'\n"
        );
    }
}
