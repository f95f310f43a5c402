//! The kernel programs: those that were built into this library, or a file's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::Error;

static NODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-ebpf.o"));
static BENCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-bench.o"));
static XDP_PASS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/portolan-xdp-pass.o"));

/// The programs of a node: a file's, or the built-in ones.
pub fn node(file: Option<&Path>) -> Result<Vec<u8>, Error> {
    match file {
        Some(path) => fs::read(path).map_err(|source| Error::ObjectMissing {
            path: path.to_owned(),
            source,
        }),
        None => built_in(NODE),
    }
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
