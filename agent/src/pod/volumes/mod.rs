//! A pod's volumes on the node, and where its containers see them.
#![forbid(unsafe_code)]

mod content;
mod persistent;
mod publish;
mod usage;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};

pub use self::usage::{excess, is_limited};
use self::{content::content, publish::publish};
use super::{
    ReferenceError, References,
    environment::{Facts, expand},
    quantity,
    record::PodDir,
    tokens::Tokens,
};
use crate::runtime::{mount, spec::Mount};

/// Why a volume is not there; a `FailedMount` event.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A kind of volume that this agent does not have.
    #[error("MountVolume.SetUp failed for volume \"{0}\": unsupported volume type")]
    Unsupported(String),
    /// What it is made of could not be read.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Reference {
        /// Its name.
        volume: String,
        /// Why.
        #[source]
        source: ReferenceError,
    },
    /// A key is absent, or a path or field is not valid.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
    Content {
        /// Its name.
        volume: String,
        /// Why.
        reason: String,
    },
    /// The node's file system refused.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {source}")]
    Io {
        /// Its name.
        volume: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Makes a pod's volumes, or brings them up to date.
pub async fn prepare(
    dir: &PodDir,
    facts: Facts<'_>,
    references: &dyn References,
    tokens: &mut Tokens,
) -> Result<(), VolumeError> {
    let spec = facts.pod.spec.as_ref();
    for volume in spec
        .and_then(|spec| spec.volumes.as_ref())
        .into_iter()
        .flatten()
    {
        let place = dir.volume(&volume.name);
        let fail = |source| VolumeError::Io {
            volume: volume.name.clone(),
            source,
        };
        if volume.empty_dir.is_some() {
            empty_dir(volume, facts.pod, &place).map_err(fail)?;
        } else if volume.host_path.is_some() {
            host_path(volume).map_err(|reason| VolumeError::Content {
                volume: volume.name.clone(),
                reason,
            })?;
        } else if volume.persistent_volume_claim.is_some() {
            persistent::prepare(volume, facts.pod, &place, references).await?;
        } else {
            let files = content(volume, facts, references, tokens).await?;
            keep_off_the_disk(volume, &place).map_err(fail)?;
            publish(&place, &files, group(facts.pod)).map_err(fail)?;
        }
    }
    Ok(())
}

/// What is secret lies in memory only.
fn keep_off_the_disk(volume: &Volume, place: &Path) -> io::Result<()> {
    let is_secret = volume.secret.is_some() || volume.projected.is_some();
    if is_secret && !mount::is_mount_point(place)? {
        mount::mount_memory(place, None, "0755")?;
    }
    Ok(())
}

/// Whether a pod has volumes whose content may change while it runs.
pub fn are_live(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().any(is_generated)
}

/// Where a container sees the pod's volumes.
pub fn mounts(
    dir: &PodDir,
    pod: &Pod,
    container: &Container,
    env: &[String],
) -> Result<Vec<Mount>, VolumeError> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    let known: BTreeMap<String, String> = env
        .iter()
        .filter_map(|variable| variable.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut all = Vec::new();
    for wanted in container.volume_mounts.iter().flatten() {
        let unknown = || VolumeError::Content {
            volume: wanted.name.clone(),
            reason: "the pod has no such volume".into(),
        };
        let volume = volumes
            .iter()
            .find(|volume| volume.name == wanted.name)
            .ok_or_else(unknown)?;
        all.push(one_mount(dir, volume, wanted, &known)?);
    }
    Ok(all)
}

fn one_mount(
    dir: &PodDir,
    volume: &Volume,
    wanted: &VolumeMount,
    known: &BTreeMap<String, String>,
) -> Result<Mount, VolumeError> {
    let fail = |source| VolumeError::Io {
        volume: volume.name.clone(),
        source,
    };
    let mut source = match &volume.host_path {
        Some(host) => PathBuf::from(&host.path),
        None => dir.volume(&volume.name),
    };
    let expression = wanted
        .sub_path_expr
        .as_ref()
        .map(|text| expand(text, known));
    if let Some(inner) = expression
        .as_ref()
        .or(wanted.sub_path.as_ref())
        .filter(|inner| !inner.is_empty())
    {
        let path = relative(inner).ok_or_else(|| VolumeError::Content {
            volume: volume.name.clone(),
            reason: format!("subPath \"{inner}\" must stay inside of the volume"),
        })?;
        let place = source.join(&path);
        if !place.exists() {
            fs::create_dir_all(&place).map_err(fail)?;
        }
        // A container may have put a link there; what it points to must be in the volume as well.
        let (real, root) = (
            place.canonicalize().map_err(fail)?,
            source.canonicalize().map_err(fail)?,
        );
        if !real.starts_with(&root) {
            return Err(VolumeError::Content {
                volume: volume.name.clone(),
                reason: format!("subPath \"{inner}\" leads out of the volume"),
            });
        }
        source = real;
    }
    let claim = volume.persistent_volume_claim.as_ref();
    let read_only = wanted.read_only.unwrap_or(false)
        || claim.and_then(|claim| claim.read_only).unwrap_or(false)
        || is_generated(volume);
    Ok(Mount {
        propagation: match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "rprivate",
        },
        ..Mount::new(source, &wanted.mount_path, read_only)
    })
}

fn is_generated(volume: &Volume) -> bool {
    volume.empty_dir.is_none()
        && volume.host_path.is_none()
        && volume.persistent_volume_claim.is_none()
}

fn group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

fn empty_dir(volume: &Volume, pod: &Pod, place: &Path) -> io::Result<()> {
    let Some(source) = &volume.empty_dir else {
        return Ok(());
    };
    if place.is_dir()
        && (source.medium.as_deref() != Some("Memory") || mount::is_mount_point(place)?)
    {
        return Ok(());
    }
    fs::create_dir_all(place)?;
    if source.medium.as_deref() == Some("Memory") {
        let size = source
            .size_limit
            .as_ref()
            .and_then(quantity::units)
            .filter(|&size| size > 0);
        mount::mount_memory(place, size.map(|size| size.to_string()).as_deref(), "0777")?;
    }
    let mut mode = 0o777;
    if let Some(group) = group(pod) {
        std::os::unix::fs::chown(place, None, Some(group))?;
        // What containers make in it belongs to the group as well.
        mode |= 0o2000;
    }
    fs::set_permissions(place, fs::Permissions::from_mode(mode))
}

/// Checks, or makes, what the type of a hostPath volume asks for.
fn host_path(volume: &Volume) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt;
    let Some(source) = &volume.host_path else {
        return Ok(());
    };
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let made = match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(path),
        "FileOrCreate" if !path.exists() => fs::File::create(path).map(drop),
        _ => Ok(()),
    };
    made.map_err(|error| format!("hostPath {}: {error}", source.path))?;
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("hostPath {}: {error}", source.path)),
    };
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_some_and(test);
    let (holds, name) = match kind {
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(FileTypeExt::is_socket), "socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "block device"),
        _ => (found.is_some(), "file or directory"),
    };
    if holds {
        Ok(())
    } else {
        Err(format!(
            "hostPath type check failed: {} is not a {name}",
            source.path
        ))
    }
}

/// A path that goes down only.
fn relative(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let down = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (down && path.components().next().is_some()).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_in_the_volume() {
        assert!(relative("a/b").is_some());
        assert!(relative("../a").is_none());
        assert!(relative("/a").is_none());
        assert!(relative("").is_none());
    }
}
