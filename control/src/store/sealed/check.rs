//! The key file and whether it fits the store: a value in the store tells, before anything else is read or made.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::keys::LineError;
use super::{KeyId, Keys, OpenError, SEALED, Store};
use crate::store::{Action, Error, Fence, Guard, KeyValue, RangeQuery, Write, Written};

/// A sealed value that every server opens when it starts. It is sealed anew after everything else, so that keys which
/// open it open everything.
const CHECK_KEY: &[u8] = b"/portolan/sealing";
const CHECK_VALUE: &[u8] = b"{}";
const PAGE: usize = 500;

/// Why there are no keys for this store.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or made.
    #[error("can't use the encryption key file {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file's mode lets others read it.
    #[error("the encryption key file {path} may be read by every user (mode {mode:o}); make it 0600", path = path.display())]
    Public {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else than keys.
    #[error("the encryption key file {path} is damaged", path = path.display())]
    Line {
        /// Which.
        path: PathBuf,
        /// Where.
        source: LineError,
    },
    /// The file holds no key.
    #[error("the encryption key file {path} holds no key", path = path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The store is sealed, and the file is not there.
    #[error(
        "there is no encryption key file {path}, and the store is sealed with key {id}: copy the file from another server or a backup",
        path = path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// The key that it would have to hold.
        id: KeyId,
    },
    /// The file is of another cluster, or lacks a key that is still in use.
    #[error("the encryption key file {path} does not fit the store", path = path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// The store does not answer.
    #[error("can't read what the store is sealed with")]
    Store(#[from] Error),
}

/// Reads the key file and makes sure that it fits the store. For a store that was never sealed a missing file is made,
/// for its owner alone; for one that was, it is an error.
pub async fn open_keys(store: &dyn Store, path: &Path) -> Result<Keys, KeyError> {
    let check = store.get(CHECK_KEY).await?;
    let read = read(path)?;
    if let Some(check) = check {
        let id = Keys::sealed_with(&check.value);
        return match (read, id) {
            (Some(keys), _) => fits(keys, &check, path),
            (None, Some(id)) => Err(KeyError::Missing {
                path: path.to_owned(),
                id,
            }),
            (None, None) => Err(KeyError::Wrong {
                path: path.to_owned(),
                source: OpenError::Damaged,
            }),
        };
    }
    let (keys, made) = match read {
        Some(keys) => (keys, false),
        None => (make(path)?, true),
    };
    let value = keys.seal(CHECK_KEY, CHECK_VALUE);
    match store.put(CHECK_KEY, value, Guard::Absent, None).await? {
        Written::Refused(Some(theirs)) => {
            let fits = fits(keys, &theirs, path);
            // Another server sealed the store meanwhile; nothing was sealed with this key.
            if made && fits.is_err() {
                fs::remove_file(path).map_err(|source| file(path, source))?;
            }
            fits
        }
        _ => Ok(keys),
    }
}

fn fits(keys: Keys, check: &KeyValue, path: &Path) -> Result<Keys, KeyError> {
    let opened = match keys.open(CHECK_KEY, &check.value) {
        Ok(opened) if opened == CHECK_VALUE => return Ok(keys),
        Ok(_) => OpenError::Damaged,
        Err(error) => error,
    };
    Err(KeyError::Wrong {
        path: path.to_owned(),
        source: opened,
    })
}

fn file(path: &Path, source: io::Error) -> KeyError {
    KeyError::File {
        path: path.to_owned(),
        source,
    }
}

/// `None` when there is no file.
fn read(path: &Path) -> Result<Option<Keys>, KeyError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file(path, source)),
    };
    let mode = fs::metadata(path)
        .map_err(|source| file(path, source))?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        return Err(KeyError::Public {
            path: path.to_owned(),
            mode: mode & 0o777,
        });
    }
    match Keys::parse(&text) {
        Ok(Some(keys)) => Ok(Some(keys)),
        Ok(None) => Err(KeyError::Empty {
            path: path.to_owned(),
        }),
        Err(source) => Err(KeyError::Line {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Makes a file with a new key, which is on the disk before anything is sealed with it.
fn make(path: &Path) -> Result<Keys, KeyError> {
    let (keys, text) = Keys::generate();
    let write = || {
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|source| file(path, source))?;
    tracing::info!(path = %path.display(), "made a new encryption key; keep a copy of it");
    Ok(keys)
}

/// Seals with the first key what is not sealed, or with another; says how many values that were. `store` is the store
/// below the sealing. It may be stopped at any time and run again.
pub async fn reseal(
    store: &Arc<dyn Store>,
    keys: &Keys,
    fence: Option<&Fence>,
) -> Result<usize, Error> {
    let mut count = 0;
    for prefix in SEALED {
        let mut query = RangeQuery {
            prefix: Bytes::from_static(prefix),
            limit: Some(PAGE),
            ..RangeQuery::default()
        };
        loop {
            let page = store.range(query.clone()).await?;
            for item in &page.items {
                count += usize::from(reseal_one(store, keys, item, fence).await?);
            }
            match page.items.last() {
                Some(last) if page.remaining > 0 => query.after = Some(last.key.clone()),
                _ => break,
            }
        }
    }
    if let Some(check) = store.get(CHECK_KEY).await? {
        reseal_one(store, keys, &check, fence).await?;
    }
    Ok(count)
}

/// Whoever writes in between seals with their own first key, which is this one or will be.
async fn reseal_one(
    store: &Arc<dyn Store>,
    keys: &Keys,
    item: &KeyValue,
    fence: Option<&Fence>,
) -> Result<bool, Error> {
    if Keys::sealed_with(&item.value) == Some(keys.first()) {
        return Ok(false);
    }
    let value = super::open_value(keys, &item.key, &item.value)?;
    let written = store
        .write(Write {
            key: item.key.clone(),
            guard: Guard::At(item.mod_revision),
            action: Action::Put {
                value: keys.seal(&item.key, &value),
                lease: None,
            },
            fence: fence.cloned(),
        })
        .await?;
    Ok(matches!(written, Written::Done(_)))
}
