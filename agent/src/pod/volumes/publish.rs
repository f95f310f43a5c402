//! Files of a volume that are replaced all at once.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use crate::runtime::bundle::{remove_file, remove_tree};

/// Files by path, with their modes.
pub type Files = BTreeMap<PathBuf, (Vec<u8>, u32)>;

/// Writes all files beside the old ones and swaps one link: a reader sees all of the old or all of the new.
pub fn publish(place: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
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
    remove_file(&beside)?;
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
    let count = |folder: &Path| fs::read_dir(folder).map_or(0, Iterator::count);
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
}
