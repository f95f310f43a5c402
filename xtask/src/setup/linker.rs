//! The eBPF toolchain: a rustc with the precompiled core of bpfel-unknown-none, and a bpf-linker of the same LLVM.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::archive;
use crate::{
    build_ebpf::{self, Toolchain},
    cargo, command,
    progress::Progress,
    workspace::Workspace,
};

/// The linker's release that goes with rustc 1.95 and 1.96.
const VERSION: &str = "0.13.0";
/// Debian's rustc for building browsers, kept current by its security updates, and the eBPF core beside it.
const PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];

/// What our own bpf-linker was built as; another LLVM can't read the compiler's bitcode.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Built {
    version: String,
    llvm: u32,
}

/// Brings compiler and linker in place. Whether anything was missing.
pub fn ensure(workspace: &Workspace, progress: &Progress) -> Result<bool> {
    let mut installed = false;
    let toolchain = match build_ebpf::detect(workspace) {
        Some(toolchain) => toolchain,
        None if archive::is_debian() => {
            installed = true;
            install_compiler(progress)?;
            build_ebpf::detect(workspace)
                .context("rustc-web is installed, yet no rustc has the eBPF core")?
        }
        None => bail!(build_ebpf::WHAT_TO_INSTALL),
    };
    // A prebuilt object needs no linker, and a nightly was only chosen because its linker is on PATH.
    if let Toolchain::Core { rustc } = &toolchain {
        installed |= ensure_linker(workspace, progress, rustc)?;
    }
    Ok(installed)
}

fn install_compiler(progress: &Progress) -> Result<()> {
    progress.say(&format!(
        "will install {}: a Rust compiler with the eBPF target's core",
        PACKAGES.join(" and ")
    ));
    let step = progress.step("eBPF compiler");
    archive::update_lists()?;
    if let Some(absent) = PACKAGES.iter().find(|package| !archive::has(package)) {
        bail!(
            "this Debian's archive has no {absent}. {}",
            build_ebpf::WHAT_TO_INSTALL
        );
    }
    archive::install(&PACKAGES)?;
    step.done(&PACKAGES.join(" "));
    Ok(())
}

fn ensure_linker(workspace: &Workspace, progress: &Progress, rustc: &Path) -> Result<bool> {
    let wanted = Built {
        version: VERSION.to_owned(),
        llvm: llvm_version(rustc)?,
    };
    let record = workspace.tools().join("bpf-linker.json");
    let built: Option<Built> = fs::read(&record)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    if built.as_ref() == Some(&wanted) && workspace.tools_bin().join("bpf-linker").exists() {
        return Ok(false);
    }
    progress.say(&format!(
        "will build bpf-linker {VERSION} from crates.io for LLVM {}: it links the kernel programs (about two minutes)",
        wanted.llvm
    ));
    let step = progress.step("bpf-linker");
    build(workspace, rustc, &wanted)?;
    let text = serde_json::to_vec(&wanted).context("write down how bpf-linker was built")?;
    fs::write(&record, text).with_context(|| format!("write {}", record.display()))?;
    step.done(VERSION);
    Ok(true)
}

/// Builds the linker against the LLVM that the compiler's package has brought: no -dev package is needed.
fn build(workspace: &Workspace, rustc: &Path, wanted: &Built) -> Result<()> {
    let prefix = workspace.tools().join(format!("llvm{}", wanted.llvm));
    let library = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib")).with_context(|| format!("make {}", prefix.display()))?;
    match fs::remove_file(&library) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replace {}", library.display()));
        }
        _ => {}
    }
    let real = llvm_library(rustc, wanted.llvm)?;
    symlink(&real, &library).with_context(|| format!("link {}", library.display()))?;
    command::output(
        cargo::with_any_compiler()
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--version", VERSION, "--no-default-features"])
            .arg(format!("--features=llvm-{}", wanted.llvm))
            .arg("--root")
            .arg(workspace.tools())
            .arg("--target-dir")
            .arg(workspace.tools().join("build"))
            .env("LLVM_PREFIX", &prefix)
            // A Cargo.toml above the current folder must not matter.
            .current_dir(workspace.tools()),
    )?;
    let leftovers = workspace.tools().join("build");
    fs::remove_dir_all(&leftovers).with_context(|| format!("clear {}", leftovers.display()))
}

/// The major version of the LLVM inside a rustc.
fn llvm_version(rustc: &Path) -> Result<u32> {
    let text = command::output(Command::new(rustc).arg("-vV"))?;
    parse_llvm_version(&text)
        .with_context(|| format!("{} -vV names no LLVM version", rustc.display()))
}

fn parse_llvm_version(text: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// The shared LLVM beside a distribution's rustc: "libLLVM.so.22.1" and the like.
fn llvm_library(rustc: &Path, llvm: u32) -> Result<PathBuf> {
    let host = command::output(Command::new(rustc).arg("-vV"))?
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc -vV names no host")?
        .replace("-unknown-", "-");
    let prefix = format!("libLLVM.so.{llvm}.");
    let folders = [
        format!("/usr/lib/{host}"),
        "/usr/lib64".to_owned(),
        "/usr/lib".to_owned(),
    ];
    folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("no {prefix}* in {}", folders.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_llvm_is_read_from_its_own_words() {
        let text = "rustc 1.96.0\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(parse_llvm_version(text), Some(22));
        assert_eq!(parse_llvm_version("rustc 1.96.0\n"), None);
    }
}
