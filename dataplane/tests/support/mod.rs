//! What the dataplane's tests share: namespaces, packets, a lab of nodes and pods, and the model of the programs.
#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod bench;
pub mod cgroup;
pub mod facts;
pub mod family;
pub mod generator;
pub mod lab;
pub mod memory;
pub mod model;
pub mod netns;
pub mod packet;
pub mod rewriting;
pub mod rows;
pub mod servers;
pub mod tables;
pub mod talk;

use std::path::{Path, PathBuf};

use portolan_dataplane::model::TcMode;

/// The ways to attach tc programs that this kernel has.
pub fn tc_modes() -> Vec<TcMode> {
    let mut modes = vec![TcMode::Clsact];
    if kernel() >= (6, 6) {
        modes.push(TcMode::Tcx);
    }
    modes
}

/// The first two numbers of the kernel's release.
///
/// # Panics
/// If the kernel does not say it.
pub fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("procfs");
    let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next())
}

/// The kernel object under test. Without it there is nothing to test, and the test says what to do.
///
/// # Panics
/// If there is none.
pub fn object() -> PathBuf {
    let path = std::env::var_os("PORTOLAN_EBPF_OBJECT").map_or_else(
        || {
            let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
                .parent()
                .expect("target has tmp");
            target.join("debug/portolan-ebpf.o")
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is missing: run cargo xtask build-ebpf",
        path.display()
    );
    path
}
