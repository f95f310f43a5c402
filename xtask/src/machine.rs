//! What the kernel says of this machine: who we are, its processes, mounts and control groups.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use anyhow::{Context, Result, bail};

/// Whether we are root.
pub fn is_root() -> bool {
    // /proc/self belongs to the effective user of the process that looks.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Fails with the reason when we are not root.
pub fn require_root(command: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`cargo xtask {command}` makes network namespaces, mounts and control groups, so it needs root: try `sudo -E env \"PATH=$PATH\" cargo xtask {command}`"
        );
    }
    Ok(())
}

/// A process, told apart from a later one with the same number by when it started.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
}

impl ProcessId {
    /// The process that has this number now, unless it has ended.
    pub fn of(pid: u32) -> Option<Self> {
        let (state, start) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        // A zombie has ended; its parent just has not looked yet.
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// The command line, or the name where there is none.
    pub fn command_line(&self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.trim().is_empty() {
            return fs::read_to_string(format!("/proc/{}/comm", self.pid)).unwrap_or_default();
        }
        line.trim().to_owned()
    }
}

/// State and start time out of /proc/PID/stat; the name in it may hold anything, brackets too.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let after_name = &text[text.rfind(')')? + 1..];
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// Every process there is.
pub fn processes() -> Result<Vec<ProcessId>> {
    let entries = fs::read_dir("/proc").context("read /proc")?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(ProcessId::of)
        .collect())
}

/// Where file systems are mounted, in the order of mounting.
pub fn mount_points() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .collect())
}

/// mountinfo writes blanks and backslashes as three octal digits.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// The roots of the mounted cgroup hierarchies, v1 and v2.
pub fn cgroup_hierarchies() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let is_cgroup = matches!(kind.split(' ').next(), Some("cgroup" | "cgroup2"));
            let path = mount.split(' ').nth(4)?;
            is_cgroup.then(|| PathBuf::from(unescape(path)))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_itself_and_alive() {
        let me = ProcessId::of(std::process::id()).expect("we run");
        assert!(me.is_alive());
        let other = ProcessId {
            start: me.start + 1,
            ..me
        };
        assert!(!other.is_alive(), "another start time is another process");
    }

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let fields: Vec<String> = (4..=22).map(|field| field.to_string()).collect();
        let text = format!("42 (a) b) S {}", fields.join(" "));
        assert_eq!(parse_stat(&text), Some(('S', 22)));
        assert_eq!(parse_stat("42 (a"), None);
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
