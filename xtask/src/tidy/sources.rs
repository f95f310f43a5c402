//! The files of the source tree, and words that have no place in them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{command, workspace::Workspace};

/// Every text file that is tracked or about to be.
pub struct Sources {
    /// In the order of their paths.
    pub files: Vec<Source>,
}

/// One file.
pub struct Source {
    /// From the root of the tree, with slashes.
    pub path: String,
    /// Its contents.
    pub text: String,
}

impl Sources {
    /// Asks git which files there are and reads them.
    pub fn read(workspace: &Workspace) -> Result<Self> {
        let listed = command::output(Command::new("git").current_dir(workspace.root()).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        let mut files = Vec::new();
        for path in listed.split('\0').filter(|path| !path.is_empty()) {
            let full: PathBuf = workspace.root().join(path);
            // A file deleted in the working tree is still listed; a binary one holds no text to look at.
            let bytes = match fs::read(&full) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", full.display()));
                }
            };
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(Source {
                    path: path.to_owned(),
                    text,
                });
            }
        }
        Ok(Self { files })
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &Source> {
        self.files.iter().filter(|file| file.is_rust())
    }
}

impl Source {
    fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    }
}

/// Words that must not be written, and what is wrong with each. Split, or this file would hold them itself.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (&["/wo", "rk/"], "a path of one machine"),
    (&["/ro", "ot/"], "a path of one machine"),
    (&["to", "do!("], "an unfinished function"),
    (&["unimple", "mented!("], "an unfinished function"),
    (&["TO", "DO"], "a note to oneself: file an issue"),
    (&["FIX", "ME"], "a note to oneself: file an issue"),
    (&["#[ig", "nore"], "a test that does not run"),
    (&["db", "g!("], "a debugging aid"),
];

/// Where a domain's code may not reach: (files below, except below, word, why).
const CLOSED: &[(&str, &str, &str, &str)] = &[
    (
        "agent/src/",
        "agent/src/network",
        "rtnetlink::",
        "rtnetlink's types stay in the network module",
    ),
    (
        "agent/src/",
        "agent/src/network",
        "netlink_packet",
        "netlink's types stay in the network module",
    ),
    (
        "agent/src/",
        "agent/src/runtime",
        "libcontainer::",
        "libcontainer's types stay in the runtime module",
    ),
    (
        "control/src/scheduler",
        "",
        "tonic::",
        "the domain knows no gRPC",
    ),
    (
        "control/src/controllers",
        "",
        "tonic::",
        "the domain knows no gRPC",
    ),
    ("control/src/api", "", "tonic::", "the domain knows no gRPC"),
    (
        "control/src/scheduler",
        "",
        "axum::",
        "the domain knows no HTTP",
    ),
    (
        "control/src/controllers",
        "",
        "axum::",
        "the domain knows no HTTP",
    ),
    ("control/src/api", "", "axum::", "the domain knows no HTTP"),
    (
        "control/src/",
        "control/src/store",
        "etcd_client::",
        "only the store knows etcd",
    ),
    (
        "control/src/",
        "control/src/store",
        "redb::",
        "only the store knows its database",
    ),
];

/// Where `unsafe` may be written: the kernel programs, and the rooms that speak to the kernel.
const UNSAFE_ROOMS: &[&str] = &[
    "ebpf/",
    "dataplane/src/sys",
    "agent/src/runtime",
    "agent/src/network/sys",
    "agent/src/sys",
];

/// What is written where it should not be.
pub fn words(sources: &Sources) -> Vec<String> {
    let mut faults = Vec::new();
    for file in &sources.files {
        // Locked dependencies and licences are others' words.
        if file.path == "Cargo.lock" || file.path.starts_with("LICENSE") {
            continue;
        }
        for (number, line) in file.text.lines().enumerate() {
            let place = format!("{}:{}", file.path, number + 1);
            for (parts, why) in FORBIDDEN {
                let word = parts.concat();
                if line.contains(&word) {
                    faults.push(format!("{place}: {word:?} is {why}"));
                }
            }
            if file.is_rust() && !is_comment(line) {
                faults.extend(misplaced(&file.path, line).map(|why| format!("{place}: {why}")));
            }
        }
    }
    faults
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

fn misplaced(path: &str, line: &str) -> Option<&'static str> {
    for (folder, except, word, why) in CLOSED {
        let is_inside =
            path.starts_with(folder) && (except.is_empty() || !path.starts_with(except));
        // This file names them all.
        if is_inside && line.contains(word) {
            return Some(why);
        }
    }
    let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
        .iter()
        .any(|form| line.contains(form));
    let is_test = path.contains("/tests/");
    let is_room = UNSAFE_ROOMS.iter().any(|room| path.starts_with(room));
    (is_unsafe && !is_room && !is_test && !path.starts_with("xtask/"))
        .then_some("unsafe code outside the rooms for it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        words(&Sources {
            files: vec![Source {
                path: path.to_owned(),
                text: text.to_owned(),
            }],
        })
    }

    #[test]
    fn a_machines_path_is_found_with_its_line() {
        let text = format!("fine\nsee {}notes\n", ["/wo", "rk/"].concat());
        assert_eq!(faults("README.md", &text).len(), 1);
        assert!(faults("README.md", &text)[0].starts_with("README.md:2: "));
        assert!(faults("README.md", "networking works\n").is_empty());
    }

    #[test]
    fn types_stay_in_their_rooms() {
        assert_eq!(
            faults("agent/src/pod/mod.rs", "use rtnetlink::Handle;").len(),
            1
        );
        assert!(faults("agent/src/network/mod.rs", "use rtnetlink::Handle;").is_empty());
        assert_eq!(
            faults("agent/src/pod/mod.rs", "let x = unsafe { y() };").len(),
            1
        );
        assert!(faults("ebpf/src/parse.rs", "let x = unsafe { y() };").is_empty());
        assert!(faults("agent/src/pod/mod.rs", "// unsafe { }").is_empty());
    }
}
