//! Runs other programs; a failure says which command it was and what it wrote.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

/// The command line as a person would type it.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command with its output on ours.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(anyhow!("{} ended with {status}", line(command)))
    }
}

/// Runs a command quietly and returns what it wrote to stdout; on failure the error holds what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    checked(command, &output)
}

/// Like [`output`], with something on the command's stdin.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    // A command that fails early closes its stdin; its own words then say more than our broken pipe.
    let written = stdin.write_all(input);
    drop(stdin);
    let output = child
        .wait_with_output()
        .with_context(|| format!("wait for {}", line(command)))?;
    let text = checked(command, &output)?;
    written.with_context(|| format!("write to {}", line(command)))?;
    Ok(text)
}

/// Runs a command quietly and returns the bytes that it wrote to stdout.
pub fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    checked(command, &output)?;
    Ok(output.stdout)
}

/// What a command makes of some bytes. Whether it is content with them is not asked: the caller looks at the result.
pub fn filtered(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", line(command)))?;
    let mut stdin = child.stdin.take().expect("stdin was asked to be a pipe");
    // Both at once: either pipe may fill up while the other waits. It may close its stdin early.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    });
    Ok(output
        .with_context(|| format!("wait for {}", line(command)))?
        .stdout)
}

/// Whether the command succeeds, without a word.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn checked(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() {
            String::from_utf8_lossy(&output.stdout)
        } else {
            said
        };
        bail!(
            "{} ended with {}:\n{}",
            line(command),
            output.status,
            tail(&said, 30)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]))
            .expect_err("the command fails");
        let text = format!("{error:#}");
        assert!(
            text.contains("sh -c") && text.contains("no luck") && text.contains('3'),
            "{text}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = output(&mut Command::new("portolan-no-such-program"))
            .expect_err("there is no such program");
        assert!(format!("{error:#}").contains("cannot run portolan-no-such-program"));
    }

    #[test]
    fn input_reaches_the_command() {
        let text = output_with_input(&mut Command::new("cat"), b"ahoy").expect("cat runs");
        assert_eq!(text, "ahoy");
    }

    #[test]
    fn tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
