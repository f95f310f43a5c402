//! Other releases of Debian than the machine's, read through a configuration of apt of our own: the machine's stays as it is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::command;

/// The keys that Debian signs its archive with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Some suites ("trixie", "trixie-security") and the folder that holds what is known of them.
pub struct Suites {
    folder: PathBuf,
}

impl Suites {
    /// Prepares the folder; [`Self::update`] fills it.
    pub fn new(folder: &Path, suites: &[&str]) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
        }
        let mut lines = Vec::new();
        for suite in suites {
            // A machine without Debian's security archive gets no other's either.
            if let Some(mirror) = mirror(suite.ends_with("-security"))? {
                lines.push(format!(
                    "deb [arch=amd64 lang=none target=Packages signed-by={KEYRING}] {mirror} {suite} main\n"
                ));
            }
        }
        let sources = folder.join("sources.list");
        fs::write(&sources, lines.concat())
            .with_context(|| format!("write {}", sources.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Reads the suites' lists anew.
    pub fn update(&self) -> Result<()> {
        command::output(self.apt("apt-get").arg("update")).map(drop)
    }

    /// All packages whose names begin so.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = command::output(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Fetches packages into a folder. apt checks them against the archive's signatures.
    pub fn download(&self, packages: &[String], folder: &Path) -> Result<()> {
        let mut apt = self.apt("apt-get");
        apt.current_dir(folder).arg("download").args(packages);
        command::output(&mut apt).map(drop)
    }

    fn apt(&self, program: &str) -> Command {
        let place = |part: &str| self.folder.join(part).display().to_string();
        let mut command = Command::new(program);
        command
            .arg("-q")
            .arg(format!("-oDir::Etc::SourceList={}", place("sources.list")))
            .arg("-oDir::Etc::SourceParts=/dev/null")
            // Another vendor's installed package of the same name must not count as the newest.
            .arg("-oDir::State::status=/dev/null")
            .arg(format!("-oDir::State::Lists={}", place("lists")))
            .arg(format!("-oDir::Cache={}", place("cache")))
            // A folder below another user's home is closed to apt's own user; the files are checked all the same.
            .arg("-oAPT::Sandbox::User=root");
        command
    }
}

/// The mirror of Debian, or of its security updates, that this machine already uses.
fn mirror(security: bool) -> Result<Option<String>> {
    let targets = command::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Origin: Debian",
        "Created-By: Packages",
    ]))?;
    let found = targets
        .lines()
        .map(str::trim)
        .find(|uri| !uri.is_empty() && uri.contains("security") == security)
        .map(str::to_owned);
    if security {
        return Ok(found);
    }
    found
        .context("no mirror of Debian in apt's sources; `apt-get update` reads them")
        .map(Some)
}
