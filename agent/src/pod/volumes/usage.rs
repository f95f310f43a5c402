//! How much lies in a pod's emptyDir volumes, where they have a limit.
#![forbid(unsafe_code)]

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::pod::{quantity, record::PodDir};

/// The volumes on disk that have a limit, in bytes. Memory has its own: the size of the mount.
fn limited(pod: &Pod) -> impl Iterator<Item = (&Volume, u64)> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let limit = source.size_limit.as_ref().and_then(quantity::units)?;
        (limit > 0 && source.medium.as_deref() != Some("Memory")).then_some((volume, limit))
    })
}

/// Whether there is anything to look after.
pub fn is_limited(pod: &Pod) -> bool {
    limited(pod).next().is_some()
}

/// Why the pod can't stay, if it has more in a volume than it may; blocks.
pub fn excess(dir: &PodDir, pod: &Pod) -> io::Result<Option<String>> {
    for (volume, limit) in limited(pod) {
        if used(&dir.volume(&volume.name))? > limit {
            let source = volume.empty_dir.as_ref();
            let limit = source.and_then(|source| source.size_limit.as_ref());
            let text = limit.map(|limit| limit.0.as_str()).unwrap_or_default();
            return Ok(Some(format!(
                "Usage of EmptyDir volume \"{}\" exceeds the limit \"{text}\". ",
                volume.name
            )));
        }
    }
    Ok(None)
}

/// Bytes on disk below a folder. What vanishes meanwhile does not count.
fn used(path: &Path) -> io::Result<u64> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result?,
    };
    let mut sum = metadata.blocks() * 512;
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sum),
            result => result?,
        };
        for entry in entries.flatten() {
            sum += used(&entry.path())?;
        }
    }
    Ok(sum)
}
