//! qemu: the machine's own, else Debian's with the libraries it needs, unpacked among our tools.
//!
//! It is not installed: its packages would replace the user's other qemu tools by those of another version.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::archive;
use crate::{command, progress::Progress, workspace::Workspace};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// A qemu that runs.
pub struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, unless it is installed.
    root: Option<PathBuf>,
}

impl Qemu {
    /// The command, to be given a machine.
    pub fn command(&self) -> Command {
        // Whatever becomes of us, the machine does not outlive us.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.program);
        if let Some(root) = &self.root {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
                .map(|folder| root.join(folder).display().to_string());
            command.env("LD_LIBRARY_PATH", libraries.join(":"));
            for folder in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(folder));
            }
        }
        command
    }
}

/// Finds one, or brings one in place.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<Qemu> {
    if let Some(program) = workspace.find_program(PROGRAM) {
        return Ok(Qemu {
            program,
            root: None,
        });
    }
    let root = workspace.tools().join("qemu");
    let program = root.join("usr/bin").join(PROGRAM);
    if !program.exists() {
        if !archive::is_debian() {
            bail!(
                "virtual machines need {PROGRAM}, and there is none: install {PACKAGE} (Debian), qemu-system-x86-core (Fedora) or {PACKAGE} (Arch)"
            );
        }
        progress.say(&format!(
            "will unpack {PACKAGE} and what it needs: virtual machines run in it"
        ));
        let step = progress.step("qemu");
        unpack(workspace, &root)
            .with_context(|| format!("no {PROGRAM}: install Debian's {PACKAGE}"))?;
        step.done(&root.display().to_string());
    }
    Ok(Qemu {
        program,
        root: Some(root),
    })
}

fn unpack(workspace: &Workspace, root: &Path) -> Result<()> {
    let folder = archive::scratch(workspace, PACKAGE)?;
    let packages = archive::missing_with(PACKAGE).or_else(|_| {
        // Lists that were never read know no package.
        archive::update_lists()?;
        archive::missing_with(PACKAGE)
    })?;
    command::output(
        Command::new("apt-get")
            .args(["download", "-q"])
            .args(packages)
            .current_dir(&folder),
    )?;
    let unpacked = folder.join("root");
    archive::unpack_all(&folder, &unpacked)?;
    fs::rename(&unpacked, root).with_context(|| format!("put {} in place", root.display()))?;
    fs::remove_dir_all(&folder).with_context(|| format!("clear {}", folder.display()))
}
