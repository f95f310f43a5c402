//! What a VM's file system holds beside the kernel's modules: programs with the libraries they need, and other files.
//!
//! Programs lie where they lie on this machine, so that whatever path they were built with is true in the VM too.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::workspace;

/// The first process of every VM.
pub const FIRST_PROCESS: &str = include_str!("guest.sh");

/// Links at the top, as on every distribution that has merged these folders.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Folders that things are mounted on.
const MOUNT_POINTS: [&str; 7] = ["dev", "proc", "root", "run", "sys", "tmp", "var"];

/// A file system to be.
#[derive(Default)]
pub struct Payload {
    /// By path without a slash in front, in the order of unpacking: folders before what is in them.
    entries: BTreeMap<PathBuf, Entry>,
}

enum Entry {
    Folder,
    Link(String),
    /// Read only when the archive is written.
    File {
        at: PathBuf,
        permissions: u32,
    },
    Text {
        text: String,
        permissions: u32,
    },
}

impl Payload {
    /// The least that a VM needs: busybox for its shell.
    pub fn new() -> Result<Self> {
        let mut payload = Self::default();
        for name in MERGED {
            payload.insert(Path::new("usr").join(name).as_path(), Entry::Folder);
            payload
                .entries
                .insert(name.into(), Entry::Link(format!("usr/{name}")));
        }
        for name in MOUNT_POINTS {
            payload.insert(Path::new(name), Entry::Folder);
        }
        let busybox = find("busybox").context(
            "virtual machines need busybox, linked statically: install busybox-static (Debian) or busybox",
        )?;
        payload.add_file(Path::new("/usr/bin/busybox"), &busybox)?;
        payload.insert(Path::new("usr/bin/sh"), Entry::Link("busybox".to_owned()));
        payload.add_text("/sbin/portolan-guest", FIRST_PROCESS, 0o755);
        payload.add_text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
        payload.add_text("/etc/group", "root:x:0:\n", 0o644);
        payload.add_text("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644);
        Ok(payload)
    }

    /// Adds a program with all that it needs to start, where it lies on this machine.
    ///
    /// `program` is a path, or a name that is looked for on PATH. Where it will lie is returned; the name itself, if there
    /// is no such program: busybox may have it.
    pub fn add_program(&mut self, program: &str) -> Result<PathBuf> {
        let path = if program.contains('/') {
            std::path::absolute(program).with_context(|| format!("find {program}"))?
        } else {
            match find(program) {
                Some(path) => path,
                None => return Ok(program.into()),
            }
        };
        let metadata =
            fs::metadata(&path).with_context(|| format!("cannot run {}", path.display()))?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            bail!("cannot run {}: it is no executable file", path.display());
        }
        self.add_file(&path, &path)?;
        let mut head = vec![0; 256];
        let length = {
            use std::io::Read;
            fs::File::open(&path)
                .and_then(|mut file| file.read(&mut head))
                .with_context(|| format!("read {}", path.display()))?
        };
        if let Some(interpreter) = interpreter(&head[..length]) {
            for word in interpreter.split_whitespace() {
                // "/usr/bin/env bash" needs both; what is an option is not found and does no harm.
                self.add_program(word)?;
            }
        } else {
            self.add_libraries(&path)?;
        }
        Ok(path)
    }

    /// Adds a file, or a folder with all in it.
    pub fn add_file(&mut self, place: &Path, at: &Path) -> Result<()> {
        let place = normal(place);
        if self.entries.contains_key(&place) {
            return Ok(());
        }
        let metadata = fs::metadata(at).with_context(|| format!("read {}", at.display()))?;
        if !metadata.is_dir() {
            let permissions = metadata.permissions().mode() & 0o7777;
            self.insert(
                &place,
                Entry::File {
                    at: at.to_owned(),
                    permissions,
                },
            );
            return Ok(());
        }
        self.insert(&place, Entry::Folder);
        let read = || format!("read {}", at.display());
        for entry in fs::read_dir(at).with_context(read)? {
            let entry = entry.with_context(read)?;
            self.add_file(&place.join(entry.file_name()), &entry.path())?;
        }
        Ok(())
    }

    /// Adds a file with this content.
    pub fn add_text(&mut self, place: &str, text: &str, permissions: u32) {
        let text = text.to_owned();
        self.insert(&normal(Path::new(place)), Entry::Text { text, permissions });
    }

    /// Writes it all as an archive; how many bytes the files have.
    pub fn write(&self, path: &Path) -> Result<u64> {
        let write = || format!("write {}", path.display());
        let file = fs::File::create(path).with_context(write)?;
        let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
        let mut size = 0;
        for (place, entry) in &self.entries {
            let name = place.to_str().context("a path that is not UTF-8")?;
            match entry {
                Entry::Folder => archive.folder(name, 0o755),
                Entry::Link(target) => archive.link(name, target),
                Entry::Text { text, permissions } => {
                    archive.file(name, *permissions, text.as_bytes())
                }
                Entry::File { at, permissions } => {
                    let content = fs::read(at).with_context(|| format!("read {}", at.display()))?;
                    size += content.len() as u64;
                    archive.file(name, *permissions, &content)
                }
            }
            .with_context(write)?;
        }
        archive
            .finish()
            .and_then(|mut file| file.flush())
            .with_context(write)?;
        Ok(size)
    }

    /// The loader and the shared libraries that a program is linked with.
    fn add_libraries(&mut self, program: &Path) -> Result<()> {
        let listed = Command::new("ldd").arg(program).output();
        let listed = listed.context("cannot run ldd, which tells what a program needs")?;
        // A static program is none that ldd likes.
        let text = String::from_utf8_lossy(&listed.stdout);
        if let Some(absent) = text.lines().find(|line| line.ends_with("not found")) {
            bail!("{} cannot run: {}", program.display(), absent.trim());
        }
        for library in text.lines().filter_map(library) {
            self.add_file(library, library)?;
        }
        Ok(())
    }

    fn insert(&mut self, place: &Path, entry: Entry) {
        let folders = place.ancestors().skip(1);
        for folder in folders.filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries
                .entry(folder.to_owned())
                .or_insert(Entry::Folder);
        }
        self.entries.insert(place.to_owned(), entry);
    }
}

/// A program on PATH.
fn find(name: &str) -> Option<PathBuf> {
    workspace::path_folders()
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| workspace::is_executable(path))
}

/// What follows "#!" in a script.
fn interpreter(head: &[u8]) -> Option<String> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    Some(String::from_utf8_lossy(line).trim().to_owned())
}

/// The path in a line of ldd's: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)" or "/lib64/ld-linux-x86-64.so.2 (0x...)".
fn library(line: &str) -> Option<&Path> {
    let line = line.trim();
    let path = line.split_once("=> ").map_or(line, |(_, path)| path);
    let path = path.split(" (").next()?;
    path.starts_with('/').then(|| Path::new(path))
}

/// A path without its slash, dots and merged folders.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                if normal.as_os_str().is_empty() && MERGED.iter().any(|merged| name == *merged) {
                    normal.push("usr");
                }
                normal.push(name);
            }
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ldd_are_understood() {
        for (line, expected) in [
            (
                "\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)",
                Some("/lib/x/libc.so.6"),
            ),
            ("\t/lib64/ld.so.2 (0x7f)", Some("/lib64/ld.so.2")),
            ("\tlinux-vdso.so.1 (0x7f)", None),
            ("\tstatically linked", None),
        ] {
            assert_eq!(library(line), expected.map(Path::new), "{line}");
        }
    }

    #[test]
    fn paths_lead_into_merged_folders() {
        for (path, expected) in [
            ("/lib64/ld.so.2", "usr/lib64/ld.so.2"),
            ("/usr/bin/ip", "usr/bin/ip"),
            ("/a/./b/../c", "a/c"),
            ("/a/bin/c", "a/bin/c"),
        ] {
            assert_eq!(normal(Path::new(path)), Path::new(expected));
        }
    }

    #[test]
    fn a_program_brings_its_interpreter_and_libraries() {
        let mut payload = Payload::default();
        let script = std::env::temp_dir().join(format!("portolan-script-{}", std::process::id()));
        fs::write(&script, "#!/usr/bin/env bash\n").expect("a file");
        let error = payload
            .add_program(&script.display().to_string())
            .expect_err("it may not be executed");
        assert!(error.to_string().contains("no executable"), "{error}");
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("ours");
        payload
            .add_program(&script.display().to_string())
            .expect("it can be read");
        fs::remove_file(&script).expect("ours");
        let places: Vec<String> = payload
            .entries
            .keys()
            .map(|place| place.display().to_string())
            .collect();
        for part in ["usr/bin/env", "bin/bash", "libc.so.6", "ld-linux"] {
            assert!(
                places.iter().any(|place| place.contains(part)),
                "{places:?}"
            );
        }
    }
}
