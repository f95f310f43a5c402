//! What the machine is and how hard it is pressed, from /proc and statvfs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;

/// kubelet's hard eviction thresholds, below which a node says that it is under pressure.
const MEMORY_THRESHOLD: u64 = 100 << 20;
const DISK_THRESHOLD_PERCENT: u64 = 10;
/// Unlike kubelet's: a tenth of a large disk is room for many images.
const DISK_THRESHOLD_BYTES: u64 = 4 << 30;
const INODE_THRESHOLD_PERCENT: u64 = 5;
const PID_THRESHOLD_PERCENT: u64 = 10;

/// What could not be read.
#[derive(Debug, thiserror::Error)]
#[error("read {path}", path = .path.display())]
pub struct MachineError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What does not change while the machine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs online.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system of the state directory.
    pub storage: u64,
    /// status.nodeInfo.
    pub machine_id: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// "6.18.0".
    pub kernel: String,
    /// "Debian GNU/Linux 12 (bookworm)".
    pub os_image: String,
    /// As Go calls it: "amd64", "arm64".
    pub architecture: &'static str,
}

/// What a node must say of itself under load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Little memory is available.
    pub memory: bool,
    /// Little disk space or few inodes are available where the agent's state is.
    pub disk: bool,
    /// Few process ids are free.
    pub pid: bool,
}

impl Machine {
    /// Looks at the machine.
    pub fn read(state_dir: &Path) -> Result<Self, MachineError> {
        let disk = filesystem(state_dir)?;
        let os_release = read("/etc/os-release")?;
        // Machines without an id of their own still have one a boot.
        let boot_id = read("/proc/sys/kernel/random/boot_id")?;
        let machine_id = read("/etc/machine-id").unwrap_or_else(|_| boot_id.replace('-', ""));
        Ok(Self {
            cpus: std::thread::available_parallelism()
                .map_or(1, |count| u64::try_from(count.get()).unwrap_or(u64::MAX)),
            memory: meminfo(&read("/proc/meminfo")?, "MemTotal").unwrap_or_default(),
            storage: disk.blocks() * disk.fragment_size(),
            machine_id,
            boot_id,
            kernel: read("/proc/sys/kernel/osrelease")?,
            os_image: pretty_name(&os_release).unwrap_or_else(|| "Linux".to_owned()),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        })
    }
}

impl Pressure {
    /// Measures now.
    pub fn read(state_dir: &Path) -> Result<Self, MachineError> {
        let disk = filesystem(state_dir)?;
        let available = meminfo(&read("/proc/meminfo")?, "MemAvailable").unwrap_or(u64::MAX);
        let pid_max = read("/proc/sys/kernel/pid_max")?
            .parse()
            .unwrap_or(u64::MAX);
        let processes = processes(&read("/proc/loadavg")?).unwrap_or_default();
        Ok(Self {
            memory: available < MEMORY_THRESHOLD,
            disk: is_short(
                disk.blocks_available() * disk.fragment_size(),
                disk.blocks() * disk.fragment_size(),
            ) || is_below(
                disk.files_available(),
                disk.files(),
                INODE_THRESHOLD_PERCENT,
            ),
            pid: is_below(
                pid_max.saturating_sub(processes),
                pid_max,
                PID_THRESHOLD_PERCENT,
            ),
        })
    }
}

/// Whether little of a disk is left, in bytes.
fn is_short(available: u64, total: u64) -> bool {
    available < DISK_THRESHOLD_BYTES && is_below(available, total, DISK_THRESHOLD_PERCENT)
}

/// File systems without inodes to count say that they have none at all: no pressure.
fn is_below(available: u64, total: u64, percent: u64) -> bool {
    total > 0 && u128::from(available) * 100 < u128::from(total) * u128::from(percent)
}

fn filesystem(path: &Path) -> Result<nix::sys::statvfs::Statvfs, MachineError> {
    statvfs(path).map_err(|errno| MachineError {
        path: path.to_owned(),
        source: errno.into(),
    })
}

fn read(path: &str) -> Result<String, MachineError> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| MachineError {
            path: path.into(),
            source,
        })
}

/// A line of /proc/meminfo in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The number of tasks, from "0.20 0.18 0.12 1/80 11206".
fn processes(loadavg: &str) -> Option<u64> {
    loadavg
        .split_whitespace()
        .nth(3)?
        .split('/')
        .nth(1)?
        .parse()
        .ok()
}

fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_machine() {
        let machine = Machine::read(Path::new("/")).expect("procfs");
        assert!(machine.cpus >= 1);
        assert!(machine.memory > 64 << 20);
        assert!(machine.storage > 0);
        assert!(!machine.kernel.is_empty());
        Pressure::read(Path::new("/")).expect("procfs");
    }

    #[test]
    fn parses_procfs() {
        assert_eq!(
            meminfo("MemTotal:  2048 kB\nMemFree: 1 kB", "MemTotal"),
            Some(2 << 20)
        );
        assert_eq!(meminfo("MemFree: 1 kB", "MemTotal"), None);
        assert_eq!(processes("0.20 0.18 0.12 1/80 11206"), Some(80));
        assert_eq!(
            pretty_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"").as_deref(),
            Some("Debian GNU/Linux 12")
        );
    }

    #[test]
    fn a_large_disk_may_be_nine_tenths_full() {
        assert!(is_short(1 << 30, 20 << 30));
        assert!(!is_short(3 << 30, 20 << 30));
        assert!(!is_short(19 << 30, 252 << 30));
        assert!(is_short(3 << 30, 252 << 30));
    }

    #[test]
    fn pressure_is_a_share() {
        assert!(is_below(9, 100, 10));
        assert!(!is_below(10, 100, 10));
        assert!(!is_below(0, 0, 10));
        assert!(!is_below(u64::MAX, u64::MAX, 10));
    }
}
