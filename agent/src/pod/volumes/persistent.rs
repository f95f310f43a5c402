//! Persistent volumes that lie on the node: folders that outlive the pods that use them.
#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, Volume};

use super::{VolumeError, group};
use crate::{
    pod::{References, node::blocking},
    runtime::bundle::remove_file,
};

/// Puts a link to the claimed volume where the pod's volumes are.
pub async fn prepare(
    volume: &Volume,
    pod: &Pod,
    place: &Path,
    references: &dyn References,
) -> Result<(), VolumeError> {
    let Some(source) = &volume.persistent_volume_claim else {
        return Ok(());
    };
    let name = &volume.name;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let found = references.claimed(namespace, &source.claim_name).await;
    let found = found.map_err(|source| VolumeError::Reference {
        volume: name.clone(),
        source,
    })?;
    let path = path_of(&found).ok_or_else(|| VolumeError::Unsupported(name.clone()))?;
    let is_made = is_made_on_demand(&found);
    let change = group(pod).map(|group| (group, only_on_mismatch(pod)));
    let place = place.to_owned();
    blocking(move || {
        if is_made {
            fs::create_dir_all(&path)?;
        }
        link(&path, &place, change)
    })
    .await
    .map_err(|source| VolumeError::Io {
        volume: name.clone(),
        source,
    })
}

/// Where a volume lies, if that is on this node.
fn path_of(volume: &PersistentVolume) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let local = spec.local.as_ref().map(|local| &local.path);
    let path = local.or(spec.host_path.as_ref().map(|host| &host.path))?;
    Some(path.into())
}

/// Whether a volume's folder is made where it is missing.
fn is_made_on_demand(volume: &PersistentVolume) -> bool {
    let host = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.host_path.as_ref());
    host.and_then(|host| host.type_.as_deref()) == Some("DirectoryOrCreate")
}

/// Whether the files of a volume stay as they are when its folder is right already.
fn only_on_mismatch(pod: &Pod) -> bool {
    let context = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
    policy == Some("OnRootMismatch")
}

fn link(path: &Path, place: &Path, change: Option<(u32, bool)>) -> io::Result<()> {
    let metadata = fs::metadata(path).map_err(|error| {
        let why = format!("path \"{}\" does not exist: {error}", path.display());
        io::Error::new(error.kind(), why)
    })?;
    if fs::read_link(place).is_ok_and(|target| target == path) {
        return Ok(());
    }
    if let Some((group, only_on_mismatch)) = change {
        let is_right = metadata.gid() == group && metadata.mode() & 0o2070 == 0o2070;
        if !(only_on_mismatch && is_right) {
            give_to(path, group)?;
        }
    }
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    remove_file(place)?;
    symlink(path, place)
}

/// Everything in a volume may be read and written by a group, and what is made in it later as well.
fn give_to(path: &Path, group: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    lchown(path, None, Some(group))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let add = if metadata.is_dir() { 0o2070 } else { 0o060 };
    let mode = metadata.permissions().mode() | add;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), group)?;
        }
    }
    Ok(())
}
