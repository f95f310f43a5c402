//! The tables of the file, and everything that only reads them.
//!
//! ```text
//! log        revision        -> record: kind, key, value, revision of the key's change before
//! latest     key             -> revision of the key's last change, and whether that was its deletion
//! leases     id              -> time to live in milliseconds
//! lease_keys (id, key)       -> ()
//! meta       name            -> number
//! ```
//!
//! A read as of an older revision walks back from `latest` along the records' previous revisions, so the cost of
//! history is paid by those who ask for it.

use std::ops::Bound;
use std::time::Duration;

use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};

use super::record::Record;
use crate::store::feed::{CHUNK, Chunk};
use crate::store::{Change, Error, KeyValue, LeaseId, Range, RangeQuery, Revision};

pub(super) const LOG: TableDefinition<Revision, &[u8]> = TableDefinition::new("log");
pub(super) const LATEST: TableDefinition<&[u8], (Revision, bool)> = TableDefinition::new("latest");
pub(super) const LEASES: TableDefinition<i64, u64> = TableDefinition::new("leases");
pub(super) const LEASE_KEYS: TableDefinition<(i64, &[u8]), ()> = TableDefinition::new("lease_keys");
pub(super) const META: TableDefinition<&str, i64> = TableDefinition::new("meta");

/// The layout above; another number is another program's file.
pub(super) const FORMAT: i64 = 1;
pub(super) const META_FORMAT: &str = "format";
/// The oldest revision that may be read.
pub(super) const META_OLDEST: &str = "oldest";
/// What lies before this revision has been removed.
pub(super) const META_SWEPT: &str = "swept";
/// The id of the next lease.
pub(super) const META_NEXT_LEASE: &str = "next_lease";

/// The revision of a store that nobody has written to, as in etcd.
pub(super) const FIRST: Revision = 1;
/// How many records a watcher that lags looks at before it lets go of the file's snapshot.
const SCAN: usize = 4096;
/// How many bytes of changes a watcher that lags is given at once.
const CHUNK_BYTES: usize = 4 << 20;

/// Makes the tables in a new file, and refuses a file of another layout.
pub(super) fn prepare(database: &Database) -> Result<(), PrepareError> {
    let txn = database.begin_write().map_err(redb::Error::from)?;
    let found = create_tables(&txn)?;
    match found {
        Some(FORMAT) => txn.abort().map_err(redb::Error::from)?,
        Some(found) => return Err(PrepareError::Format { found }),
        None => txn.commit().map_err(redb::Error::from)?,
    }
    Ok(())
}

/// Makes the tables that are missing; the format is that of a file that had them before.
fn create_tables(txn: &WriteTransaction) -> Result<Option<i64>, redb::Error> {
    let mut meta = txn.open_table(META)?;
    let found = meta.get(META_FORMAT)?.map(|format| format.value());
    if found.is_none() {
        meta.insert(META_FORMAT, FORMAT)?;
        txn.open_table(LOG)?;
        txn.open_table(LATEST)?;
        txn.open_table(LEASES)?;
        txn.open_table(LEASE_KEYS)?;
    }
    Ok(found)
}

/// Why a file could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// Another version of this program wrote it.
    #[error("the file has format {found}, this program writes {FORMAT}")]
    Format {
        /// What the file says.
        found: i64,
    },
    /// It could not be read or written.
    #[error(transparent)]
    Storage(#[from] redb::Error),
}

/// One consistent view of the file.
pub(super) struct Snapshot {
    log: ReadOnlyTable<Revision, &'static [u8]>,
    latest: ReadOnlyTable<&'static [u8], (Revision, bool)>,
    meta: ReadOnlyTable<&'static str, i64>,
}

impl Snapshot {
    pub fn open(txn: &ReadTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            log: txn.open_table(LOG)?,
            latest: txn.open_table(LATEST)?,
            meta: txn.open_table(META)?,
        })
    }

    /// The revision of the last write.
    pub fn revision(&self) -> Result<Revision, redb::Error> {
        Ok(self
            .log
            .last()?
            .map_or(FIRST, |(revision, _)| revision.value()))
    }

    /// The oldest revision that may be read.
    pub fn oldest(&self) -> Result<Revision, redb::Error> {
        Ok(self
            .meta
            .get(META_OLDEST)?
            .map_or(FIRST, |oldest| oldest.value()))
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, redb::Error> {
        let Some(latest) = self.latest.get(key)? else {
            return Ok(None);
        };
        match latest.value() {
            (_, true) => Ok(None),
            (revision, false) => load(&self.log, revision),
        }
    }

    pub fn range(&self, query: &RangeQuery) -> Result<Result<Range, Error>, redb::Error> {
        let current = self.revision()?;
        let revision = query.revision.unwrap_or(current);
        let oldest = self.oldest()?;
        if revision > current {
            return Ok(Err(Error::Future {
                requested: revision,
                current,
            }));
        }
        if revision < oldest {
            return Ok(Err(Error::Compacted {
                requested: revision,
                oldest,
            }));
        }
        let mut items = Vec::new();
        let mut remaining = 0;
        let limit = query.limit.unwrap_or(usize::MAX);
        for entry in self.latest.range::<&[u8]>(bounds(query))? {
            let (key, latest) = entry?;
            if !key.value().starts_with(&query.prefix) {
                break;
            }
            let Some(at) = self.visible(latest.value(), revision)? else {
                continue;
            };
            if items.len() < limit {
                items.extend(load(&self.log, at)?);
            } else {
                remaining += 1;
            }
        }
        Ok(Ok(Range {
            items,
            revision,
            remaining,
        }))
    }

    /// The revision of the put that a reader at `at` sees, going back from the key's last change.
    fn visible(
        &self,
        (mut revision, mut deleted): (Revision, bool),
        at: Revision,
    ) -> Result<Option<Revision>, redb::Error> {
        while revision > at {
            let Some(bytes) = self.log.get(revision)? else {
                return Ok(None);
            };
            let previous = decode(revision, bytes.value())?.previous;
            drop(bytes);
            let Some(bytes) = self.log.get(previous)? else {
                return Ok(None);
            };
            revision = previous;
            deleted = decode(revision, bytes.value())?.deleted;
        }
        Ok((!deleted).then_some(revision))
    }

    /// Every change after a revision.
    pub fn changes_after(&self, revision: Revision) -> Result<Vec<Change>, redb::Error> {
        let mut changes = Vec::new();
        for entry in self.log.range(revision + 1..)? {
            let (revision, stored) = entry?;
            let record = decode(revision.value(), stored.value())?;
            let previous = load(&self.log, record.previous)?;
            changes.push(record.change(revision.value(), previous));
        }
        Ok(changes)
    }

    /// The changes under a prefix from a revision on: some of them, and where to read on.
    pub fn history(
        &self,
        prefix: &[u8],
        from: Revision,
    ) -> Result<Result<Chunk, Error>, redb::Error> {
        let oldest = self.oldest()?;
        if from < oldest {
            return Ok(Err(Error::Compacted {
                requested: from,
                oldest,
            }));
        }
        let mut changes: Vec<Change> = Vec::new();
        let mut bytes = 0;
        let mut next = from;
        for (scanned, entry) in self.log.range(from..)?.enumerate() {
            if scanned == SCAN || changes.len() == CHUNK || bytes > CHUNK_BYTES {
                break;
            }
            let (revision, stored) = entry?;
            let revision = revision.value();
            let record = decode(revision, stored.value())?;
            next = revision + 1;
            if record.key.starts_with(prefix) {
                bytes += record.key.len() + record.value.len();
                let previous = load(&self.log, record.previous)?;
                changes.push(record.change(revision, previous));
            }
        }
        Ok(Ok(Chunk { changes, next }))
    }
}

/// Where the query's keys begin; they end where the prefix does.
fn bounds(query: &RangeQuery) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let start = match &query.after {
        Some(after) if after.as_ref() >= query.prefix.as_ref() => Bound::Excluded(after.as_ref()),
        _ => Bound::Included(query.prefix.as_ref()),
    };
    (start, Bound::Unbounded)
}

/// The put at a revision; `None` for a deletion and for what is compacted away.
pub(super) fn load(
    log: &impl ReadableTable<Revision, &'static [u8]>,
    revision: Revision,
) -> Result<Option<KeyValue>, redb::Error> {
    let Some(bytes) = log.get(revision)? else {
        return Ok(None);
    };
    let record = decode(revision, bytes.value())?;
    Ok((!record.deleted).then(|| record.key_value(revision)))
}

/// Reads a record; one that is damaged is the file's corruption.
pub(super) fn decode(revision: Revision, bytes: &[u8]) -> Result<Record<'_>, redb::Error> {
    Record::decode(revision, bytes).map_err(|damaged| redb::Error::Corrupted(damaged.to_string()))
}

/// The leases with their times.
pub(super) fn stored_leases(database: &Database) -> Result<Vec<(LeaseId, Duration)>, redb::Error> {
    let leases = database.begin_read()?.open_table(LEASES)?;
    let mut stored = Vec::new();
    for entry in leases.iter()? {
        let (lease, millis) = entry?;
        stored.push((
            LeaseId(lease.value()),
            Duration::from_millis(millis.value()),
        ));
    }
    Ok(stored)
}
