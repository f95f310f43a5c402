//! One batch of writes: all of it reaches the disk in one commit, or none of it does.

use std::time::Duration;

use bytes::Bytes;
use redb::{ReadableTable, Table, WriteTransaction};

use super::record::Record;
use super::tables::{
    FIRST, LATEST, LEASE_KEYS, LEASES, LOG, META, META_NEXT_LEASE, META_OLDEST, META_SWEPT, decode,
    load,
};
use crate::store::{Action, Change, Error, Guard, KeyValue, LeaseId, Revision, Write, Written};

/// How many revisions one commit of the sweep goes over, so that writers wait for no more than that.
const SWEEP: Revision = 2048;

/// A storage failure ends the whole batch; the inner error is the answer to one request.
type Answer<T> = Result<Result<T, Error>, redb::Error>;

/// The tables of one write transaction, with what has happened in it.
pub(super) struct Batch<'t> {
    log: Table<'t, Revision, &'static [u8]>,
    latest: Table<'t, &'static [u8], (Revision, bool)>,
    leases: Table<'t, i64, u64>,
    lease_keys: Table<'t, (i64, &'static [u8]), ()>,
    meta: Table<'t, &'static str, i64>,
    revision: Revision,
    changes: Vec<Change>,
    dirty: bool,
}

/// What a batch leaves behind for those who publish it.
pub(super) struct Applied {
    /// In order.
    pub changes: Vec<Change>,
    /// The store's revision after the batch.
    pub revision: Revision,
    /// Whether there is anything to commit.
    pub dirty: bool,
}

/// A key's last change, as a guard sees it.
struct Standing {
    revision: Revision,
    current: Option<KeyValue>,
    lease: Option<LeaseId>,
}

impl<'t> Batch<'t> {
    pub fn begin(txn: &'t WriteTransaction) -> Result<Self, redb::Error> {
        let log = txn.open_table(LOG)?;
        let revision = log.last()?.map_or(FIRST, |(revision, _)| revision.value());
        Ok(Self {
            log,
            latest: txn.open_table(LATEST)?,
            leases: txn.open_table(LEASES)?,
            lease_keys: txn.open_table(LEASE_KEYS)?,
            meta: txn.open_table(META)?,
            revision,
            changes: Vec::new(),
            dirty: false,
        })
    }

    pub fn finish(self) -> Applied {
        Applied {
            changes: self.changes,
            revision: self.revision,
            dirty: self.dirty,
        }
    }

    pub fn write(&mut self, write: &Write) -> Answer<Written> {
        if let Some(fence) = &write.fence {
            let there = self.standing(&fence.key)?.current;
            if there.is_none_or(|kv| kv.create_revision != fence.create_revision) {
                return Ok(Err(Error::Fenced));
            }
        }
        match &write.action {
            Action::Put { value, lease } => self.put(&write.key, value, write.guard, *lease),
            Action::Delete => self.delete(&write.key, write.guard),
        }
    }

    fn put(
        &mut self,
        key: &[u8],
        value: &Bytes,
        guard: Guard,
        lease: Option<LeaseId>,
    ) -> Answer<Written> {
        if let Some(lease) = lease
            && self.leases.get(lease.0)?.is_none()
        {
            return Ok(Err(Error::NoSuchLease(lease)));
        }
        let standing = self.standing(key)?;
        if !holds(guard, standing.current.as_ref()) {
            return Ok(Ok(Written::Refused(standing.current)));
        }
        let revision = self.revision + 1;
        let create_revision = match &standing.current {
            Some(current) => current.create_revision,
            None => revision,
        };
        let record = Record {
            deleted: false,
            create_revision,
            previous: standing.revision,
            lease,
            key,
            value,
        };
        if let Some(lease) = lease {
            self.lease_keys.insert((lease.0, key), ())?;
        }
        if let Some(old) = standing.lease
            && Some(old) != lease
        {
            self.lease_keys.remove((old.0, key))?;
        }
        self.append(&record, standing.current)?;
        Ok(Ok(Written::Done(revision)))
    }

    fn delete(&mut self, key: &[u8], guard: Guard) -> Answer<Written> {
        let standing = self.standing(key)?;
        if standing.current.is_none() || !holds(guard, standing.current.as_ref()) {
            return Ok(Ok(Written::Refused(standing.current)));
        }
        self.remove(key, standing)?;
        Ok(Ok(Written::Done(self.revision)))
    }

    pub fn grant(&mut self, ttl: Duration) -> Result<LeaseId, redb::Error> {
        let next = self
            .meta
            .get(META_NEXT_LEASE)?
            .map_or(1, |next| next.value());
        self.meta.insert(META_NEXT_LEASE, next + 1)?;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        self.leases.insert(next, millis)?;
        self.dirty = true;
        Ok(LeaseId(next))
    }

    pub fn revoke(&mut self, lease: LeaseId) -> Answer<()> {
        if self.leases.remove(lease.0)?.is_none() {
            return Ok(Err(Error::NoSuchLease(lease)));
        }
        self.dirty = true;
        let mut keys = Vec::new();
        for entry in self.lease_keys.range((lease.0, &b""[..])..)? {
            let (entry, ()) = entry.map(|(entry, unit)| (entry, unit.value()))?;
            let (owner, key) = entry.value();
            if owner != lease.0 {
                break;
            }
            keys.push(key.to_vec());
        }
        for key in keys {
            let standing = self.standing(&key)?;
            self.remove(&key, standing)?;
        }
        Ok(Ok(()))
    }

    /// Draws the line below which nothing may be read; the sweep removes it in the batches that follow.
    pub fn compact(&mut self, revision: Revision) -> Answer<()> {
        if revision > self.revision {
            return Ok(Err(Error::Future {
                requested: revision,
                current: self.revision,
            }));
        }
        if revision > self.oldest()? {
            self.meta.insert(META_OLDEST, revision)?;
            self.dirty = true;
        }
        Ok(Ok(()))
    }

    /// Removes some of what is compacted; says whether there is more to do.
    pub fn sweep(&mut self) -> Result<bool, redb::Error> {
        let oldest = self.oldest()?;
        let swept = self
            .meta
            .get(META_SWEPT)?
            .map_or(FIRST, |swept| swept.value());
        if swept >= oldest {
            return Ok(false);
        }
        let end = oldest.min(swept + SWEEP);
        let mut superseded = Vec::new();
        let mut ended = Vec::new();
        for entry in self.log.range(swept..end)? {
            let (revision, bytes) = entry?;
            let revision = revision.value();
            let record = decode(revision, bytes.value())?;
            superseded.push(record.previous);
            if record.deleted {
                ended.push((revision, record.key.to_vec()));
            }
        }
        for revision in superseded {
            self.log.remove(revision)?;
        }
        for (revision, key) in ended {
            self.log.remove(revision)?;
            let last = self.latest.get(key.as_slice())?.map(|last| last.value());
            if last == Some((revision, true)) {
                self.latest.remove(key.as_slice())?;
            }
        }
        self.meta.insert(META_SWEPT, end)?;
        self.dirty = true;
        Ok(end < oldest)
    }

    fn oldest(&self) -> Result<Revision, redb::Error> {
        Ok(self
            .meta
            .get(META_OLDEST)?
            .map_or(FIRST, |oldest| oldest.value()))
    }

    fn standing(&self, key: &[u8]) -> Result<Standing, redb::Error> {
        let Some(last) = self.latest.get(key)?.map(|last| last.value()) else {
            return Ok(Standing {
                revision: 0,
                current: None,
                lease: None,
            });
        };
        let (revision, deleted) = last;
        if deleted {
            return Ok(Standing {
                revision,
                current: None,
                lease: None,
            });
        }
        let lease = match self.log.get(revision)? {
            Some(bytes) => decode(revision, bytes.value())?.lease,
            None => None,
        };
        let current = load(&self.log, revision)?;
        Ok(Standing {
            revision,
            current,
            lease,
        })
    }

    fn remove(&mut self, key: &[u8], standing: Standing) -> Result<(), redb::Error> {
        if let Some(lease) = standing.lease {
            self.lease_keys.remove((lease.0, key))?;
        }
        let create_revision = standing.current.as_ref().map_or(0, |kv| kv.create_revision);
        let record = Record {
            deleted: true,
            create_revision,
            previous: standing.revision,
            lease: None,
            key,
            value: b"",
        };
        self.append(&record, standing.current)
    }

    fn append(&mut self, record: &Record, before: Option<KeyValue>) -> Result<(), redb::Error> {
        self.revision += 1;
        self.dirty = true;
        self.log.insert(self.revision, record.encode().as_slice())?;
        self.latest
            .insert(record.key, (self.revision, record.deleted))?;
        self.changes.push(record.change(self.revision, before));
        Ok(())
    }
}

fn holds(guard: Guard, current: Option<&KeyValue>) -> bool {
    match guard {
        Guard::Any => true,
        Guard::Absent => current.is_none(),
        Guard::At(revision) => current.is_some_and(|kv| kv.mod_revision == revision),
    }
}
