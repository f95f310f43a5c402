//! The file: made with mode 0600, its space reserved before it is used, opened again after a failed write.

use std::error::Error as StdError;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use redb::{BackendError, Builder, Database, DatabaseError, ReadableDatabase, StorageBackend};

use super::tables::{Snapshot, prepare};
use crate::store::Error;

/// Enough for the hot part of a large cluster; the rest is the page cache's business.
const CACHE_BYTES: usize = 32 << 20;

/// Why the file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path can't be created, read or written.
    #[error("can't open {path}", path = path.display())]
    File {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is in use by another process", path = path.display())]
    InUse {
        /// Which path.
        path: PathBuf,
    },
    /// It is not a store, or damaged, or there is no space for it.
    #[error("can't use {path} as a store", path = path.display())]
    Database {
        /// Which path.
        path: PathBuf,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
}

/// What the file is and how large it may become.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it lies. Missing directories on the way are made.
    pub path: PathBuf,
    /// Writes that would make it larger fail with [`Error::Full`]; `None` leaves that to the disk.
    pub max_bytes: Option<u64>,
}

/// A database that can be closed and opened again under its readers.
pub(super) struct Handle {
    options: Options,
    database: RwLock<Option<Database>>,
}

impl Handle {
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let database = open(&options)?;
        Ok(Self {
            options,
            database: RwLock::new(Some(database)),
        })
    }

    /// Closes the database and opens it again: after a failed write it refuses everything else.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // The old one holds the file's lock until it is gone.
        *database = None;
        *database = Some(open(&self.options)?);
        Ok(())
    }

    /// Lets go of the file, whoever may still hold this handle.
    pub fn close(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *database = None;
    }

    /// Runs `work` on the database, which stays open for as long.
    pub fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match database.as_ref() {
            Some(database) => work(database),
            None => Err(redb::Error::DatabaseClosed),
        }
    }

    /// Reads one consistent view.
    pub fn snapshot<T>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, redb::Error>,
    ) -> Result<T, Error> {
        self.with(|database| {
            let txn = database.begin_read()?;
            read(&Snapshot::open(&txn)?)
        })
        .map_err(|error| {
            if is_full(&error) {
                Error::Full(Box::new(error))
            } else {
                Error::Unavailable(Box::new(error))
            }
        })
    }
}

/// Whether a failure is one of space.
pub(super) fn is_full(error: &redb::Error) -> bool {
    let redb::Error::Io(error) = error else {
        return false;
    };
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

fn open(options: &Options) -> Result<Database, OpenError> {
    let file = private_file(&options.path).map_err(|source| OpenError::File {
        path: options.path.clone(),
        source,
    })?;
    let backend = ReservedFile {
        file,
        max_bytes: options.max_bytes.unwrap_or(u64::MAX),
    };
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    let database = builder
        .create_with_backend(backend)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => OpenError::InUse {
                path: options.path.clone(),
            },
            error => unusable(options, error),
        })?;
    prepare(&database).map_err(|error| unusable(options, error))?;
    Ok(database)
}

fn unusable(options: &Options, error: impl StdError + Send + Sync + 'static) -> OpenError {
    OpenError::Database {
        path: options.path.clone(),
        source: Box::new(error),
    }
}

/// Opens or makes a file that only its owner may read: it holds the cluster's keys.
fn private_file(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// A file whose blocks are allocated when it grows. A full disk is then noticed before a commit begins to write, and
/// what is already there can always be read, repaired and overwritten.
#[derive(Debug)]
struct ReservedFile {
    file: File,
    max_bytes: u64,
}

fn is_whole(start: Bound<u64>, end: Bound<u64>) -> bool {
    matches!(start, Bound::Unbounded | Bound::Included(0)) && end == Bound::Unbounded
}

impl StorageBackend for ReservedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len > old {
            if len > self.max_bytes {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let offset = i64::try_from(old).map_err(io::Error::other)?;
            let more = i64::try_from(len - old).map_err(io::Error::other)?;
            nix::fcntl::posix_fallocate(&self.file, offset, more)?;
        }
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn close(&self) -> io::Result<()> {
        self.file.unlock()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if !is_whole(start, end) {
            return Err(BackendError::Unsupported);
        }
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(BackendError::Io(error)),
        }
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        if !is_whole(start, end) {
            return Err(BackendError::Unsupported);
        }
        self.file.unlock().map_err(BackendError::Io)
    }
}
