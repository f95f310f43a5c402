//! Small files of the state directory, written so that a crash leaves the old content or the new, never a half.

#![forbid(unsafe_code)]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What failed on which file.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}", path = .path.display())]
pub struct FileError {
    /// "write", "read".
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// A failure of `operation` on `path`; for use with `map_err`.
    pub fn new(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            operation,
            path,
            source,
        }
    }
}

/// Replaces `path` with `content` atomically and durably.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    let temporary = temporary_beside(path);
    write_synced(&temporary, content, mode).map_err(|source| {
        // The cause is what matters; a leftover is overwritten by the next attempt.
        drop(fs::remove_file(&temporary));
        FileError::new("write", path)(source)
    })?;
    fs::rename(&temporary, path).map_err(FileError::new("replace", path))?;
    sync_directory_of(path).map_err(FileError::new("sync the directory of", path))
}

/// Reads a file; `None` when there is none.
pub fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

/// Removes a file; one that is absent is fine.
pub fn remove_if_present(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Creates a directory and its parents; only root may look into it.
pub fn create_private_directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(FileError::new("create directory", path))
}

fn write_synced(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a rename in the directory of `path` durable.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_content_and_keeps_the_mode() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("table");
        replace(&path, b"one", 0o600).expect("first write");
        replace(&path, b"two", 0o600).expect("second write");
        assert_eq!(
            read_if_present(&path).expect("read").as_deref(),
            Some(&b"two"[..])
        );
        let mode = fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1);
    }

    #[test]
    fn what_is_absent_is_no_error() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("absent");
        assert!(read_if_present(&path).expect("read").is_none());
        remove_if_present(&path).expect("remove");
    }

    #[test]
    fn an_error_names_operation_and_file() {
        let error =
            replace(Path::new("/proc/nowhere/file"), b"", 0o600).expect_err("no such place");
        assert_eq!(error.to_string(), "write /proc/nowhere/file");
    }
}
