//! The kernel programs: those that were built into this library, or a file's.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

static NODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-ebpf.o"));
static OLD_KERNELS: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/portolan-ebpf-old-kernels.o"));
static BENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-bench.o"));
static XDP_PASS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-xdp-pass.o"));

/// The programs of a node: a file's, or the built-in ones. Those for kernels before 5.12 are an object of their own, of
/// files the one beside, if there is one.
pub fn node(file: Option<&Path>, is_old: bool) -> Result<Vec<u8>, Error> {
    let Some(path) = file else {
        return built_in(if is_old { OLD_KERNELS } else { NODE });
    };
    let mut path = path.to_owned();
    if is_old && let Some(name) = path.file_stem().and_then(OsStr::to_str) {
        let beside = path.with_file_name(format!("{name}-old-kernels.o"));
        if beside.exists() {
            path = beside;
        }
    }
    fs::read(&path).map_err(|source| Error::ObjectMissing { path, source })
}

/// The programs of the microbenchmarks.
pub fn bench() -> Result<Vec<u8>, Error> {
    built_in(BENCH)
}

/// The program for the far end of a veth: see the crate's front page.
pub fn xdp_pass() -> Result<Vec<u8>, Error> {
    built_in(XDP_PASS)
}

fn built_in(object: &'static [u8]) -> Result<Vec<u8>, Error> {
    if object.is_empty() {
        return Err(Error::ObjectMissing {
            path: PathBuf::from("of this program"),
            source: io::Error::new(
                io::ErrorKind::NotFound,
                "it was built before the kernel programs were: build it again",
            ),
        });
    }
    // Copied to the heap: the loader wants it aligned.
    Ok(object.to_vec())
}
