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

use super::suites::Suites;
use crate::{command, machine, workspace::Workspace};

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

/// Unpacks the programs of a package of another Debian release.
pub fn unpack_from_release(workspace: &Workspace, package: &str, release: &str) -> Result<()> {
    let folder = fetch_from_release(workspace, package, release)?;
    unpack_programs(workspace, &folder)
}

/// Fetches a package of another Debian release into a folder of its own.
pub fn fetch_from_release(workspace: &Workspace, package: &str, release: &str) -> Result<PathBuf> {
    let folder = scratch(workspace, package)?;
    let suites = Suites::new(&folder.join("apt"), &[release])?;
    suites.update()?;
    suites.download(&[package.to_owned()], &folder)?;
    Ok(folder)
}

/// An empty folder for one package's download.
pub fn scratch(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let folder = workspace.tools().join("packages").join(package);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

/// Moves the programs of the one downloaded package into our tools, then drops the rest.
fn unpack_programs(workspace: &Workspace, folder: &Path) -> Result<()> {
    let root = folder.join("root");
    unpack_all(folder, &root)?;
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

/// Unpacks every package in a folder into another.
pub fn unpack_all(folder: &Path, root: &Path) -> Result<()> {
    let packages: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if packages.is_empty() {
        bail!("apt-get left no package in {}", folder.display());
    }
    for package in packages {
        command::output(Command::new("dpkg").arg("-x").arg(&package).arg(root))?;
    }
    Ok(())
}

/// The packages that installing one would bring with it, itself included.
pub fn missing_with(package: &str) -> Result<Vec<String>> {
    let plan = command::output(Command::new("apt-get").args([
        "install",
        "--print-uris",
        "-qq",
        "--no-install-recommends",
        package,
    ]))?;
    // 'URL' NAME_VERSION_ARCHITECTURE.deb SIZE HASH
    Ok(plan
        .lines()
        .filter_map(|line| line.split(' ').nth(1)?.split('_').next())
        .map(str::to_owned)
        .collect())
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
