//! A pod's volumes on the node, and where its containers see them.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeMount,
};

use super::{
    EnvironmentError, ReferenceError, References,
    environment::{Facts, environment_field, expand},
    quantity,
    record::PodDir,
};
use crate::runtime::{bundle::remove_tree, mount, spec::Mount};

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

/// Files by path, with their modes.
type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Makes a pod's volumes, or brings them up to date.
pub async fn prepare(
    dir: &PodDir,
    facts: Facts<'_>,
    references: &dyn References,
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
        } else {
            let files = content(volume, facts, references).await?;
            publish(&place, &files, group(facts.pod)).map_err(fail)?;
        }
    }
    Ok(())
}

/// Whether a pod has volumes whose content may change while it runs.
pub fn are_live(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .any(|volume| volume.empty_dir.is_none() && volume.host_path.is_none())
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
    let read_only = wanted.read_only.unwrap_or(false) || is_generated(volume);
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
    volume.empty_dir.is_none() && volume.host_path.is_none()
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
    use std::os::unix::fs::FileTypeExt as _;
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
        "Socket" => (is(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => (is(|kind| kind.is_char_device()), "character device"),
        "BlockDevice" => (is(|kind| kind.is_block_device()), "block device"),
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

async fn content(
    volume: &Volume,
    facts: Facts<'_>,
    references: &dyn References,
) -> Result<Files, VolumeError> {
    let mut files = Files::new();
    let name = &volume.name;
    if let Some(source) = &volume.config_map {
        let data =
            read_config_map(name, &source.name, source.optional, facts.pod, references).await?;
        select(
            name,
            data,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
            &mut files,
        )?;
    } else if let Some(source) = &volume.secret {
        let secret = source.secret_name.as_deref().unwrap_or_default();
        let data = read_secret(name, secret, source.optional, facts.pod, references).await?;
        select(
            name,
            data,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
            &mut files,
        )?;
    } else if let Some(source) = &volume.downward_api {
        downward(
            name,
            source.items.as_deref(),
            source.default_mode,
            facts,
            &mut files,
        )?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode;
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                let data =
                    read_config_map(name, &map.name, map.optional, facts.pod, references).await?;
                select(
                    name,
                    data,
                    map.items.as_deref(),
                    mode,
                    map.optional,
                    &mut files,
                )?;
            } else if let Some(secret) = &source.secret {
                let data =
                    read_secret(name, &secret.name, secret.optional, facts.pod, references).await?;
                select(
                    name,
                    data,
                    secret.items.as_deref(),
                    mode,
                    secret.optional,
                    &mut files,
                )?;
            } else if let Some(own) = &source.downward_api {
                downward(name, own.items.as_deref(), mode, facts, &mut files)?;
            } else {
                return Err(VolumeError::Unsupported(name.clone()));
            }
        }
    } else {
        return Err(VolumeError::Unsupported(name.clone()));
    }
    Ok(files)
}

type Data = BTreeMap<String, Vec<u8>>;

async fn read_config_map(
    volume: &str,
    name: &str,
    optional: Option<bool>,
    pod: &Pod,
    references: &dyn References,
) -> Result<Data, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let found = references.config_map(namespace, name).await.map(|map| {
        let text = map
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.into_bytes()));
        let binary = map
            .binary_data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0));
        text.chain(binary).collect()
    });
    unless_optional(volume, found, optional)
}

async fn read_secret(
    volume: &str,
    name: &str,
    optional: Option<bool>,
    pod: &Pod,
    references: &dyn References,
) -> Result<Data, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let found = references.secret(namespace, name).await;
    let found = found.map(|secret| {
        secret
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0))
            .collect()
    });
    unless_optional(volume, found, optional)
}

fn unless_optional(
    volume: &str,
    found: Result<Data, ReferenceError>,
    optional: Option<bool>,
) -> Result<Data, VolumeError> {
    match found {
        Err(ReferenceError::NotFound { .. }) if optional.unwrap_or(false) => Ok(Data::new()),
        result => result.map_err(|source| VolumeError::Reference {
            volume: volume.to_owned(),
            source,
        }),
    }
}

/// All keys as files of their names, or only `items` under their paths.
fn select(
    volume: &str,
    mut data: Data,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    files: &mut Files,
) -> Result<(), VolumeError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(
            data.into_iter()
                .map(|(key, value)| (PathBuf::from(key), (value, mode(None, default_mode)))),
        );
        return Ok(());
    };
    for item in items {
        match data.remove(&item.key) {
            Some(value) => {
                files.insert(
                    file_path(volume, &item.path)?,
                    (value, mode(item.mode, default_mode)),
                );
            }
            None if optional.unwrap_or(false) => {}
            None => {
                return Err(VolumeError::Content {
                    volume: volume.to_owned(),
                    reason: format!("references non-existent config key: {}", item.key),
                });
            }
        }
    }
    Ok(())
}

fn downward(
    volume: &str,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    facts: Facts<'_>,
    files: &mut Files,
) -> Result<(), VolumeError> {
    for item in items.into_iter().flatten() {
        let fail = |error: EnvironmentError| VolumeError::Content {
            volume: volume.to_owned(),
            reason: error.to_string(),
        };
        let value = environment_field(
            item.field_ref.as_ref(),
            item.resource_field_ref.as_ref(),
            facts,
        )
        .map_err(fail)?;
        let path = file_path(volume, &item.path)?;
        files.insert(path, (value.into_bytes(), mode(item.mode, default_mode)));
    }
    Ok(())
}

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    own.or(default)
        .and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(0o644)
        & 0o777
}

fn file_path(volume: &str, path: &str) -> Result<PathBuf, VolumeError> {
    relative(path).ok_or_else(|| VolumeError::Content {
        volume: volume.to_owned(),
        reason: format!("path \"{path}\" must stay inside of the volume"),
    })
}

/// A path that goes down only.
fn relative(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let down = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (down && path.components().next().is_some()).then(|| path.to_owned())
}

/// Writes all files beside the old ones and swaps one link: a reader sees all of the old or all of the new.
fn publish(place: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(place)?;
    let link = place.join("..data");
    let old = match fs::read_link(&link) {
        Ok(target) => Some(place.join(target)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if old.as_ref().is_some_and(|old| is_same(old, files)) {
        return Ok(());
    }
    let name = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = place.join(&name);
    for (path, (content, mode)) in files {
        let file = fresh.join(path);
        fs::create_dir_all(file.parent().unwrap_or(&fresh))?;
        fs::write(&file, content)?;
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        if group.is_some() {
            std::os::unix::fs::chown(&file, None, group)?;
        }
    }
    fs::create_dir_all(&fresh)?;
    let beside = place.join("..data.new");
    crate::runtime::bundle::remove_file(&beside)?;
    symlink(&name, &beside)?;
    fs::rename(&beside, &link)?;
    show(place, files)?;
    old.map_or(Ok(()), |old| remove_tree(&old))
}

/// Every first name of a path becomes a link through ..data; links whose file is gone go too.
fn show(place: &Path, files: &Files) -> io::Result<()> {
    let first = |path: &Path| {
        path.components()
            .next()
            .map(|part| part.as_os_str().to_owned())
    };
    let wanted: std::collections::BTreeSet<_> =
        files.keys().filter_map(|path| first(path)).collect();
    for name in &wanted {
        match symlink(Path::new("..data").join(name), place.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_same(old: &Path, files: &Files) -> bool {
    let count = |folder: &Path| fs::read_dir(folder).map(Iterator::count).unwrap_or(0);
    let firsts: std::collections::BTreeSet<_> = files
        .keys()
        .filter_map(|path| path.components().next())
        .collect();
    count(old) == firsts.len()
        && files.iter().all(|(path, (content, _))| {
            fs::read(old.join(path)).is_ok_and(|found| found == *content)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(all: &[(&str, &str)]) -> Files {
        all.iter()
            .map(|(path, text)| (PathBuf::from(path), (text.as_bytes().to_vec(), 0o644)))
            .collect()
    }

    #[test]
    fn configuration_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        publish(folder.path(), &files(&[("a", "1"), ("b/c", "2")]), None).expect("first");
        assert_eq!(read("a").expect("a"), "1");
        assert_eq!(read("b/c").expect("b/c"), "2");
        publish(folder.path(), &files(&[("a", "3")]), None).expect("second");
        assert_eq!(read("a").expect("a"), "3");
        assert!(read("b/c").is_err());
        // ..data and its target, and a.
        assert_eq!(fs::read_dir(folder.path()).expect("the volume").count(), 3);
    }

    #[test]
    fn paths_stay_in_the_volume() {
        assert!(relative("a/b").is_some());
        assert!(relative("../a").is_none());
        assert!(relative("/a").is_none());
        assert!(relative("").is_none());
    }
}
