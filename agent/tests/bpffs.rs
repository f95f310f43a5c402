//! The file system of pins: mounted once, gone without a trace. Needs root.

use std::fs;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use portolan_agent::bpffs;

#[test]
fn is_mounted_once_and_taken_away_whole() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let path = state.path().join("bpf");
    bpffs::ensure(&path).expect("mounted: needs root");
    bpffs::ensure(&path).expect("there already");
    let kind = statfs(&path).expect("the directory").filesystem_type();
    assert_eq!(kind, BPF_FS_MAGIC);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    let of_path = mounts
        .lines()
        .filter(|line| line.contains(&*path.to_string_lossy()));
    assert_eq!(of_path.count(), 1);
    bpffs::ensure(&path.join("n1")).expect("a folder on it");
    bpffs::remove(&path.join("n1")).expect("not a mount point: nothing to do");
    bpffs::remove(&path).expect("unmounted");
    bpffs::remove(&path).expect("gone already");
    assert_eq!(fs::read_dir(&path).expect("the directory").count(), 0);
}
