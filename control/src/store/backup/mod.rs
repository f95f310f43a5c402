//! Backups: everything that the store holds at one revision, as one file, and an empty store made from it.
//!
//! What is sealed stays sealed: a backup is of use only together with the encryption key file, and shows no secret
//! without it. Keys that live under leases are left out; whoever held those leases is gone when the backup is restored.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};

mod format;

pub use format::Fault;

use super::rebased::{self, BASE_KEY};
use super::{Error, Guard, KeyValue, RangeQuery, Revision, Store, Written};
use format::{Encoder, Reader};

/// There while a restore is under way, so that no server starts on half a store.
const RESTORING_KEY: &[u8] = b"/portolan/restoring";
/// What belongs to running servers or to this one store.
const LEFT_OUT: [&[u8]; 4] = [
    BASE_KEY,
    RESTORING_KEY,
    b"/portolan/leader",
    b"/portolan/servers/",
];
/// Revisions that the lost store may have reached after the backup: a restored one begins beyond them.
const GAP: Revision = 1_000_000_000;
const PAGE: usize = 500;
/// Writes of a restore that are under way at once.
const WRITERS: usize = 256;

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The revision that it shows, as servers count.
    pub revision: Revision,
    /// How many keys.
    pub keys: u64,
}

/// Why there is no backup, or no store made of it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] Error),
    /// The file can't be read or written.
    #[error("can't use {path}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no backup, or not the whole of one.
    #[error("{path} is not a whole backup", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: Fault,
    },
    /// The store holds something.
    #[error("the store is not empty (it holds {key}); a backup is restored into an empty one only")]
    NotEmpty {
        /// Its first key.
        key: String,
    },
    /// A restore has ended before it was through.
    #[error("a restore of this store was not finished: empty the store and restore again")]
    Unfinished,
}

/// The store that servers and backups use: counted from its base, and whole.
pub async fn open(store: Arc<dyn Store>) -> Result<Arc<dyn Store>, BackupError> {
    if store.get(RESTORING_KEY).await?.is_some() {
        return Err(BackupError::Unfinished);
    }
    Ok(rebased::open(store).await?)
}

struct Progress {
    store: Arc<dyn Store>,
    query: RangeQuery,
    encoder: Encoder,
    ended: bool,
}

/// The bytes of a backup, while servers go on writing; it fails when that takes longer than the history is kept.
pub fn chunks(store: Arc<dyn Store>) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    let progress = Progress {
        store,
        query: RangeQuery {
            prefix: Bytes::from_static(b"/"),
            limit: Some(PAGE),
            ..RangeQuery::default()
        },
        encoder: Encoder::default(),
        ended: false,
    };
    stream::try_unfold(progress, async |mut progress| {
        if progress.ended {
            return Ok(None);
        }
        let page = progress.store.range(progress.query.clone()).await?;
        let mut chunk = Vec::new();
        if progress.query.revision.is_none() {
            progress.query.revision = Some(page.revision);
            progress.encoder.begin(page.revision, &mut chunk);
        }
        for item in page.items.iter().filter(|item| !is_left_out(&item.key)) {
            progress.encoder.entry(&item.key, &item.value, &mut chunk);
        }
        match page.items.last() {
            Some(last) if page.remaining > 0 => progress.query.after = Some(last.key.clone()),
            _ => {
                progress.ended = true;
                progress.encoder.end(&mut chunk);
            }
        }
        Ok(Some((Bytes::from(chunk), progress)))
    })
}

fn is_left_out(key: &[u8]) -> bool {
    LEFT_OUT.iter().any(|prefix| key.starts_with(prefix))
}

/// Writes a backup to a file that only its owner may read; it is there only when it is whole and on the disk.
pub async fn save<E: Into<BackupError>>(
    chunks: impl Stream<Item = Result<Bytes, E>>,
    path: &Path,
) -> Result<Summary, BackupError> {
    let file = |source| BackupError::File {
        path: path.to_owned(),
        source,
    };
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    // Made with mode 0600, and gone again unless it is kept.
    let name = path
        .file_name()
        .ok_or_else(|| file(io::ErrorKind::InvalidInput.into()))?;
    let draft = Draft(folder.join(format!(
        ".{}.{}",
        name.to_string_lossy(),
        std::process::id()
    )));
    let mut out = BufWriter::new(draft.create().map_err(file)?);
    let mut chunks = std::pin::pin!(chunks);
    while let Some(chunk) = chunks.next().await {
        out.write_all(&chunk.map_err(Into::into)?).map_err(file)?;
    }
    let written = out.into_inner().map_err(|error| file(error.into_error()))?;
    written.sync_all().map_err(file)?;
    let summary = verify(&draft.0)?;
    std::fs::rename(&draft.0, path).map_err(file)?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(file)?;
    Ok(summary)
}

/// A file that is removed unless it has got its name by then.
struct Draft(PathBuf);

impl Draft {
    fn create(&self) -> io::Result<File> {
        use std::os::unix::fs::OpenOptionsExt;
        File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.0)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.0.display(), "a draft is left over");
        }
    }
}

fn read(path: &Path) -> Result<Reader<BufReader<File>>, BackupError> {
    let file = File::open(path).map_err(|source| BackupError::File {
        path: path.to_owned(),
        source,
    })?;
    Reader::begin(BufReader::new(file)).map_err(|source| damaged(path, source))
}

fn damaged(path: &Path, source: Fault) -> BackupError {
    BackupError::Damaged {
        path: path.to_owned(),
        source,
    }
}

/// Reads a backup to its end and checks its sum.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    let mut reader = read(path)?;
    let mut keys = 0;
    while reader
        .entry()
        .map_err(|source| damaged(path, source))?
        .is_some()
    {
        keys += 1;
    }
    Ok(Summary {
        revision: reader.revision(),
        keys,
    })
}

/// Fills an empty store, on which no server runs yet. Nothing is written unless the file is whole.
pub async fn restore(path: &Path, store: &dyn Store) -> Result<Summary, BackupError> {
    let summary = verify(path)?;
    let first = store
        .range(RangeQuery {
            limit: Some(1),
            ..RangeQuery::default()
        })
        .await?;
    if let Some(KeyValue { key, .. }) = first.items.first() {
        if key == RESTORING_KEY {
            return Err(BackupError::Unfinished);
        }
        return Err(BackupError::NotEmpty {
            key: String::from_utf8_lossy(key).into_owned(),
        });
    }
    put(store, RESTORING_KEY, Bytes::from_static(b"{}")).await?;
    let base = summary.revision.saturating_add(GAP).to_string();
    put(store, BASE_KEY, base.into()).await?;
    let mut reader = read(path)?;
    let entries = stream::iter(std::iter::from_fn(move || reader.entry().transpose()));
    entries
        .map_err(|source| damaged(path, source))
        .try_for_each_concurrent(WRITERS, |(key, value)| async move {
            put(store, &key, value).await
        })
        .await?;
    store.delete(RESTORING_KEY, Guard::Any).await?;
    Ok(summary)
}

async fn put(store: &dyn Store, key: &[u8], value: Bytes) -> Result<(), BackupError> {
    match store.put(key, value, Guard::Absent, None).await? {
        Written::Done(_) => Ok(()),
        Written::Refused(_) => Err(BackupError::NotEmpty {
            key: String::from_utf8_lossy(key).into_owned(),
        }),
    }
}
