//! kubectl: the user's own where it is new enough, else Debian's, unpacked among our tools.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::archive;
use crate::{command, progress::Progress, workspace::Workspace};

/// The oldest kubectl that validates by OpenAPI v3: 1.27.
const OLDEST_MINOR: u32 = 27;
/// What kubernetes-client is called since it holds nothing else.
const PACKAGE: &str = "kubectl";
/// The Debian release whose kubectl is new enough, and runs on older ones.
const RELEASE: &str = "trixie";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client_version: ClientVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientVersion {
    git_version: String,
}

/// Brings a kubectl in place. Whether one was missing.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    let found = workspace.find_program("kubectl").map(|program| {
        let version = version_of(&program);
        (program, version)
    });
    let why = match &found {
        Some((_, Ok(version))) if is_new_enough(version) => return Ok(false),
        Some((program, Ok(version))) => {
            format!(
                "{} is {version}, older than 1.{OLDEST_MINOR}",
                program.display()
            )
        }
        Some((program, Err(error))) => format!("{} does not work: {error:#}", program.display()),
        None => "there is none".to_owned(),
    };
    if !archive::is_debian() {
        bail!(
            "kubectl 1.{OLDEST_MINOR} or newer is needed, and {why}: install your distribution's or Kubernetes' own and put it on PATH"
        );
    }
    progress.say(&format!(
        "will unpack {PACKAGE} of Debian {RELEASE}: kubectl 1.{OLDEST_MINOR} or newer is needed, and {why}"
    ));
    let step = progress.step("kubectl");
    archive::unpack_from_release(workspace, PACKAGE, RELEASE)?;
    let version = version_of(&workspace.tools_bin().join("kubectl"))?;
    step.done(&version);
    Ok(true)
}

fn version_of(program: &std::path::Path) -> Result<String> {
    let text = command::output(Command::new(program).args(["version", "--client", "-o", "json"]))?;
    let versions: Versions =
        serde_json::from_str(&text).context("read what `kubectl version` says")?;
    Ok(versions.client_version.git_version)
}

/// Reads "v1.32.4" and whatever vendors append.
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(|part| {
        let digits = part
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(part.len());
        part[..digits].parse::<u32>().unwrap_or(0)
    });
    let major = numbers.next().unwrap_or(0);
    let minor = numbers.next().unwrap_or(0);
    (major, minor) >= (1, OLDEST_MINOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, expected) in [
            ("v1.20.2", false),
            ("v1.26.15", false),
            ("v1.27.0", true),
            ("v1.32.4-dispatcher", true),
            ("v1.9.1", false),
            ("v1.32+", true),
            ("v2.0.0", true),
            ("", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }
}
