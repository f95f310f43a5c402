//! Puts the kernel programs that `cargo xtask build-ebpf` left in the target folder where the library includes them.
//!
//! Nothing is compiled here. Without an object the library holds none, and says so when one is needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The objects, by their names without the ending.
const OBJECTS: [&str; 4] = [
    "portolan-ebpf",
    "portolan-ebpf-old-kernels",
    "portolan-bench",
    "portolan-xdp-pass",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // Cargo marks its target folder.
    let target = out
        .ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .unwrap_or(&out);
    println!("cargo:rerun-if-changed=build.rs");
    for name in OBJECTS {
        place(target, &out, &format!("{name}.o"));
    }
}

fn place(target: &Path, out: &Path, name: &str) {
    let from = target.join(name);
    println!("cargo:rerun-if-changed={}", from.display());
    let object = fs::read(&from).unwrap_or_default();
    fs::write(out.join(name), object).expect("cargo's own folder can be written");
}
