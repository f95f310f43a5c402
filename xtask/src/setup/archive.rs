//! Debian's archive: packages installed as root, or fetched and unpacked among our tools.
//!
//! apt checks every download against the archive's signatures.

use std::{
    env, fs,
    io::IsTerminal,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{command, machine, workspace::Workspace};

/// The keys that Debian signs its archive with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whether this machine is Debian itself: a derivative's archive holds other packages.
pub fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| {
        text.lines()
            .any(|line| line.trim_matches('"') == "ID=debian")
    })
}

/// Reads the archive's package lists anew.
pub fn update_lists() -> Result<()> {
    command::output(as_root("apt-get")?.args(["update", "-q"])).map(drop)
}

/// Installs packages.
pub fn install(packages: &[&str]) -> Result<()> {
    command::output(
        as_root("apt-get")?
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages),
    )
    .map(drop)
}

/// Whether the machine's own archive has the package.
pub fn has(package: &str) -> bool {
    command::succeeds(Command::new("apt-cache").args(["show", package]))
}

/// Unpacks the programs of a package of the machine's own release among our tools.
pub fn unpack(workspace: &Workspace, package: &str) -> Result<()> {
    let folder = scratch(workspace, package)?;
    command::output(
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(&folder),
    )?;
    unpack_programs(workspace, &folder)
}

/// Unpacks the programs of a package of another Debian release, read through a sources list of our own: the machine's
/// configuration stays as it is.
pub fn unpack_from_release(workspace: &Workspace, package: &str, release: &str) -> Result<()> {
    let folder = scratch(workspace, package)?;
    let sources = folder.join("sources.list");
    fs::write(
        &sources,
        format!("deb [signed-by={KEYRING}] {} {release} main\n", mirror()?),
    )
    .with_context(|| format!("write {}", sources.display()))?;
    for part in ["lists/partial", "cache/archives/partial"] {
        let part = folder.join(part);
        fs::create_dir_all(&part).with_context(|| format!("make {}", part.display()))?;
    }
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command
            .current_dir(&folder)
            .arg(format!("-oDir::Etc::SourceList={}", sources.display()))
            .arg("-oDir::Etc::SourceParts=/dev/null")
            // Another vendor's installed package of the same name must not count as the newest.
            .arg("-oDir::State::status=/dev/null")
            .arg(format!(
                "-oDir::State::Lists={}",
                folder.join("lists").display()
            ))
            .arg(format!("-oDir::Cache={}", folder.join("cache").display()))
            // A folder below another user's home is closed to apt's own user; the files are checked all the same.
            .arg("-oAPT::Sandbox::User=root")
            .arg("-q");
        command
    };
    command::output(apt_get().arg("update"))?;
    command::output(apt_get().args(["download", package]))?;
    unpack_programs(workspace, &folder)
}

/// The mirror of Debian that this machine already uses.
fn mirror() -> Result<String> {
    let targets = command::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Origin: Debian",
        "Created-By: Packages",
    ]))?;
    targets
        .lines()
        .map(str::trim)
        .find(|uri| !uri.is_empty() && !uri.contains("security"))
        .map(str::to_owned)
        .context("no mirror of Debian in apt's sources; `apt-get update` reads them")
}

/// An empty folder for one package's download.
fn scratch(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let folder = workspace.tools().join("packages").join(package);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Moves the programs of the one downloaded package into our tools, then drops the rest.
fn unpack_programs(workspace: &Workspace, folder: &Path) -> Result<()> {
    let package = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get left no package in {}", folder.display()))?;
    let root = folder.join("root");
    command::output(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    let programs = root.join("usr/bin");
    let target = workspace.tools_bin();
    fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    for entry in fs::read_dir(&programs).with_context(|| format!("read {}", programs.display()))? {
        let entry = entry.with_context(|| format!("read {}", programs.display()))?;
        let place = target.join(entry.file_name());
        fs::rename(entry.path(), &place)
            .with_context(|| format!("put {} in place", place.display()))?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", place.display()))?;
    }
    fs::remove_dir_all(folder).with_context(|| format!("clear {}", folder.display()))
}

/// A command that runs as root: as it is, or through sudo.
fn as_root(program: &str) -> Result<Command> {
    let mut command = if machine::is_root() {
        Command::new(program)
    } else {
        let sudo = crate::workspace::path_folders()
            .iter()
            .any(|folder| folder.join("sudo").exists());
        if !sudo {
            bail!(
                "installing packages needs root, and there is no sudo: run `cargo xtask setup` as root once"
            );
        }
        let mut sudo = Command::new("sudo");
        if !std::io::stdin().is_terminal() {
            sudo.arg("--non-interactive");
        }
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", program]);
        sudo
    };
    if env::var_os("DEBIAN_FRONTEND").is_none() {
        command.env("DEBIAN_FRONTEND", "noninteractive");
    }
    Ok(command)
}
