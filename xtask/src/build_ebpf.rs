//! `cargo xtask build-ebpf`: builds the kernel programs into target/NAME.o, when their sources have changed.
//!
//! The kernel programs have a target of their own that stable toolchains don't ship, so a compiler is looked for:
//! a prebuilt object named by the environment, a rustc with the precompiled core, a nightly that builds core itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use crate::{cargo, command, progress::Progress, setup, workspace::Workspace};

/// Names a prebuilt object; tests and agents use the same variable to find theirs.
pub const OBJECT_VARIABLE: &str = "PORTOLAN_EBPF_OBJECT";

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "portolan-ebpf";
/// The object with all the programs of a node.
const OBJECT: &str = "portolan-ebpf";
/// The same for old kernels: what is built with the feature, and what that object is called.
const OLD_KERNELS: (&str, &str) = ("old-kernels", "portolan-ebpf-old-kernels");

/// For people on machines where nothing was found and nothing can be installed.
pub const WHAT_TO_INSTALL: &str = "\
No compiler for eBPF was found. Any one of these will do:
  - a prebuilt object: PORTOLAN_EBPF_OBJECT=/path/to/portolan-ebpf.o
  - on Debian 12 with its security updates: apt-get install rustc-web libstd-rust-web-dev-bpf
  - anywhere: rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

/// What builds the kernel programs.
#[derive(Debug, PartialEq)]
pub enum Toolchain {
    /// Nothing needs to be built.
    Prebuilt(PathBuf),
    /// A rustc whose sysroot holds the target's core.
    Core {
        /// The compiler itself.
        rustc: PathBuf,
    },
    /// rustup's nightly with rust-src, which builds core.
    Nightly,
}

/// The command.
pub fn run(workspace: &Workspace) -> Result<()> {
    let progress = Progress::new();
    setup::linker::ensure(workspace, &progress)?;
    let step = progress.step("kernel programs");
    let built = build(workspace)?;
    let object = object(workspace);
    let verb = if built { "built" } else { "up to date" };
    step.done(&format!("{} {verb}", object.display()));
    Ok(())
}

/// Where the object of a node's programs is after [`build`].
pub fn object(workspace: &Workspace) -> PathBuf {
    workspace.target().join(format!("{OBJECT}.o"))
}

/// All objects that there are after [`build`], in each of their places.
pub fn objects(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut objects = Vec::new();
    for folder in [
        workspace.target().to_owned(),
        workspace.target().join("debug"),
    ] {
        let read = || format!("read {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(read)? {
            let path = entry.with_context(read)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("portolan-") && name.ends_with(".o") {
                objects.push(path);
            }
        }
    }
    Ok(objects)
}

/// Builds what is out of date. Whether anything was.
pub fn build(workspace: &Workspace) -> Result<bool> {
    let toolchain = detect(workspace).context(WHAT_TO_INSTALL)?;
    if let Toolchain::Prebuilt(prebuilt) = &toolchain {
        if *prebuilt != object(workspace) {
            place(workspace, prebuilt, OBJECT)?;
        }
        return Ok(false);
    }
    let stamp = workspace.target().join("ebpf/stamp");
    let identity = format!("{toolchain:?}");
    if is_fresh(workspace, &stamp, &identity)? {
        return Ok(false);
    }
    let begun = SystemTime::now();
    let release = workspace.target().join("ebpf").join(TARGET).join("release");
    // First, since the two leave their object in one place.
    let (feature, name) = OLD_KERNELS;
    compile(
        workspace,
        &toolchain,
        &["--bin", OBJECT, "--features", feature],
    )?;
    place(workspace, &release.join(OBJECT), name)?;
    compile(workspace, &toolchain, &["--bins"])?;
    for name in programs(&release)? {
        place(workspace, &release.join(&name), &name)?;
    }
    fs::write(&stamp, identity).with_context(|| format!("write {}", stamp.display()))?;
    // A source saved while we compiled must count as newer than the stamp.
    fs::File::options()
        .append(true)
        .open(&stamp)
        .and_then(|file| file.set_modified(begun))
        .with_context(|| format!("date {}", stamp.display()))?;
    Ok(true)
}

/// Looks for a toolchain without starting any: this runs before every `up`.
pub fn detect(workspace: &Workspace) -> Option<Toolchain> {
    if let Some(object) = env::var_os(OBJECT_VARIABLE) {
        return Some(Toolchain::Prebuilt(object.into()));
    }
    let core = env::var_os("PORTOLAN_EBPF_RUSTC")
        .map(PathBuf::from)
        .into_iter()
        .chain(
            crate::workspace::path_folders()
                .iter()
                .map(|folder| folder.join("rustc")),
        )
        .find(|rustc| has_core(rustc));
    if let Some(rustc) = core {
        return Some(Toolchain::Core { rustc });
    }
    let nightly = rustup_toolchains().is_some_and(|folder| {
        fs::read_dir(folder).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                entry.file_name().to_string_lossy().starts_with("nightly-")
                    && entry
                        .path()
                        .join("lib/rustlib/src/rust/library/core")
                        .exists()
            })
        })
    });
    (nightly && workspace.find_program("bpf-linker").is_some()).then_some(Toolchain::Nightly)
}

/// Whether the compiler's sysroot holds the target's precompiled core.
fn has_core(rustc: &Path) -> bool {
    let Ok(real) = rustc.canonicalize() else {
        return false;
    };
    [rustc, &real].iter().any(|path| {
        path.parent().and_then(Path::parent).is_some_and(|sysroot| {
            let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
            fs::read_dir(libraries).is_ok_and(|entries| {
                entries
                    .flatten()
                    .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
            })
        })
    })
}

fn rustup_toolchains() -> Option<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")))?;
    Some(home.join("toolchains"))
}

fn is_fresh(workspace: &Workspace, stamp: &Path, identity: &str) -> Result<bool> {
    let Ok(stamped) = fs::metadata(stamp).and_then(|metadata| metadata.modified()) else {
        return Ok(false);
    };
    let same_toolchain = fs::read_to_string(stamp).is_ok_and(|text| text == identity);
    let old = workspace.target().join(format!("{}.o", OLD_KERNELS.1));
    if !same_toolchain || !object(workspace).exists() || !old.exists() {
        return Ok(false);
    }
    let root = workspace.root();
    let mut newest = SystemTime::UNIX_EPOCH;
    for file in ["Cargo.toml", "Cargo.lock", "xtask/src/build_ebpf.rs"] {
        newest = newest.max(modified(&root.join(file))?);
    }
    Ok(newest.max(newest_in(&root.join("ebpf"))?) < stamped)
}

fn newest_in(folder: &Path) -> Result<SystemTime> {
    let mut newest = modified(folder)?;
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry
            .with_context(|| format!("read {}", folder.display()))?
            .path();
        newest = newest.max(if path.is_dir() {
            newest_in(&path)?
        } else {
            modified(&path)?
        });
    }
    Ok(newest)
}

fn modified(path: &Path) -> Result<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("look at {}", path.display()))
}

fn compile(workspace: &Workspace, toolchain: &Toolchain, selection: &[&str]) -> Result<()> {
    command::output(kernel_cargo(workspace, toolchain, "build")?.args(selection)).map(drop)
}

/// Lints the kernel programs; only rustup's compilers come with a clippy.
pub fn clippy(workspace: &Workspace) -> Result<()> {
    let mut cargo = kernel_cargo(workspace, &Toolchain::Nightly, "clippy")?;
    command::run(cargo.args(["--bins", "--", "-Dwarnings"]))
}

/// A cargo that compiles the kernel programs.
fn kernel_cargo(workspace: &Workspace, toolchain: &Toolchain, verb: &str) -> Result<Command> {
    let mut cargo = cargo::with_any_compiler();
    // One architecture's register layout is compiled in: kernel programs run where they are built.
    let flags = format!(
        "--cfg=bpf_target_arch=\"{}\" -Cdebuginfo=2 -Ctarget-cpu=v3 -Clink-arg=--btf",
        env::consts::ARCH
    );
    cargo
        .current_dir(workspace.root())
        .env("PATH", workspace.path_variable()?)
        .env("RUSTFLAGS", flags);
    match toolchain {
        Toolchain::Core { rustc } => {
            // aya-ebpf asks for unstable assembly; a distribution's stable rustc allows it only so.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
        Toolchain::Nightly => {
            cargo.env("RUSTUP_TOOLCHAIN", "nightly");
        }
        Toolchain::Prebuilt(object) => bail!("{} is prebuilt", object.display()),
    }
    cargo
        .args([verb, "--quiet", "--release", "--package", PACKAGE])
        .args(["--target", TARGET, "--target-dir"])
        .arg(workspace.target().join("ebpf"));
    if *toolchain == Toolchain::Nightly {
        cargo.arg("-Zbuild-std=core");
    }
    Ok(cargo)
}

/// The names of the objects that cargo left in a profile's folder.
fn programs(release: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(release).with_context(|| format!("read {}", release.display()))?;
    let names: Vec<String> = entries
        .flatten()
        // Objects are not executable; what they are known by is the list of sources that cargo writes beside each.
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".d")?.to_owned()))
        .collect();
    if !names.iter().any(|name| name == OBJECT) {
        bail!("{} has no {OBJECT}", release.display());
    }
    Ok(names)
}

/// Puts an object where people, tests and the agents of either profile look for it.
fn place(workspace: &Workspace, from: &Path, name: &str) -> Result<()> {
    for folder in ["", "debug", "release"] {
        let folder = workspace.target().join(folder);
        if !folder.exists() {
            continue;
        }
        let to = folder.join(format!("{name}.o"));
        let temporary = folder.join(format!("{name}.o.new"));
        fs::copy(from, &temporary)
            .and_then(|_| fs::rename(&temporary, &to))
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_without_the_core_is_passed_over() {
        assert!(!has_core(Path::new("/nonexistent/bin/rustc")));
    }
}
