//! A kernel on disk: fetched once, unpacked below target/vm/kernels, and checked against its checksums before each use.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    catalogue,
    cpio::Archive,
    modules::{self, Modules},
    vmlinux,
};
use crate::{command, progress::Progress, setup::archive, workspace::Workspace};

const IMAGE: &str = "vmlinux";
const MODULES: &str = "modules";
const RELEASE: &str = "release";
const CHECKSUMS: &str = "SHA256SUMS";

/// A kernel that can be booted.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel of a name, fetched if it is not here yet or if `refresh` asks for the newest of its series.
    pub fn ensure(
        workspace: &Workspace,
        progress: &Progress,
        name: &str,
        refresh: bool,
    ) -> Result<Self> {
        let folder = workspace.target().join("vm/kernels").join(name);
        if is_name(name) && folder.exists() && !refresh {
            if is_whole(&folder) {
                return Self::open(folder);
            }
            progress.say(&format!(
                "{} does not match its checksums: it is fetched anew",
                folder.display()
            ));
        }
        if !archive::is_debian() {
            bail!(
                "kernels for virtual machines are Debian's, fetched and unpacked by apt-get and dpkg: this is not Debian"
            );
        }
        let step = progress.step(&format!("kernel {name}"));
        fetch(workspace, name, &folder)?;
        let kernel = Self::open(folder)?;
        step.done(&kernel.release);
        Ok(kernel)
    }

    fn open(folder: PathBuf) -> Result<Self> {
        let path = folder.join(RELEASE);
        let release =
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            release: release.trim().to_owned(),
            folder,
        })
    }

    /// What qemu boots.
    pub fn image(&self) -> PathBuf {
        self.folder.join(IMAGE)
    }

    /// An archive of the modules that a VM loads.
    pub fn modules(&self, extra: &[String]) -> Result<Vec<u8>> {
        let mut hasher = DefaultHasher::new();
        modules::identity(extra).hash(&mut hasher);
        let path = self
            .folder
            .join(format!("modules-{:016x}.cpio", hasher.finish()));
        if let Ok(archive) = fs::read(&path) {
            return Ok(archive);
        }
        let mut archive = Archive::new(Vec::new());
        Modules::list(&self.folder.join(MODULES))?.write(&mut archive, extra)?;
        let bytes = archive.finish().context("write into memory")?;
        let partial = path.with_extension(format!("partial-{}", std::process::id()));
        fs::write(&partial, &bytes).with_context(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))?;
        Ok(bytes)
    }
}

/// Whether this can be the name of a kernel, and of a folder.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|each| each.is_ascii_alphanumeric() || each == '.')
}

/// Whether everything in a kernel's folder is as it was unpacked.
fn is_whole(folder: &Path) -> bool {
    folder.join(CHECKSUMS).exists()
        && command::succeeds(
            Command::new("sha256sum")
                .args(["--check", "--quiet", CHECKSUMS])
                .current_dir(folder),
        )
}

/// Puts a kernel in place of whatever is in its folder, whole or not at all.
fn fetch(workspace: &Workspace, name: &str, folder: &Path) -> Result<()> {
    let (entry, suites) = catalogue::find(workspace, name)?;
    let scratch = archive::scratch(workspace, &format!("kernel-{name}"))?;
    suites.download(&entry.packages, &scratch)?;
    let root = scratch.join("root");
    archive::unpack_all(&scratch, &root)?;
    let kernel = scratch.join("kernel");
    fs::create_dir(&kernel).with_context(|| format!("make {}", kernel.display()))?;
    arrange(&root, &entry.release, &kernel)
        .with_context(|| format!("use Debian's kernel {}", entry.release))?;
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    let parent = folder.parent().context("a folder in target")?;
    fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
    fs::rename(&kernel, folder).with_context(|| format!("make {}", folder.display()))?;
    fs::remove_dir_all(&scratch).with_context(|| format!("clear {}", scratch.display()))
}

/// Makes a kernel's folder out of its unpacked packages, which differ from release to release in where things are.
fn arrange(root: &Path, release: &str, kernel: &Path) -> Result<()> {
    let first = |candidates: [String; 2]| {
        candidates
            .into_iter()
            .map(|candidate| root.join(candidate))
            .find(|path| path.exists())
    };
    let image = first([
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
    ])
    .context("there is no vmlinuz in its packages")?;
    let bytes = fs::read(&image).with_context(|| format!("read {}", image.display()))?;
    let place = kernel.join(IMAGE);
    fs::write(&place, vmlinux::extract(&bytes)?)
        .with_context(|| format!("write {}", place.display()))?;
    let modules = first([
        format!("usr/lib/modules/{release}/kernel"),
        format!("lib/modules/{release}/kernel"),
    ])
    .context("there are no modules in its packages")?;
    let place = kernel.join(MODULES);
    fs::rename(&modules, &place).with_context(|| format!("move {}", modules.display()))?;
    let place = kernel.join(RELEASE);
    fs::write(&place, release).with_context(|| format!("write {}", place.display()))?;
    let sums = command::output(
        Command::new("find")
            .args([".", "-type", "f", "-exec", "sha256sum", "{}", "+"])
            .current_dir(kernel),
    )?;
    let place = kernel.join(CHECKSUMS);
    fs::write(&place, sums).with_context(|| format!("write {}", place.display()))
}
