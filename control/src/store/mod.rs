//! The only memory of the cluster: a revisioned key-value store, as small as what Kubernetes needs of etcd.
//!
//! Both backends count revisions as etcd does: one counter for the whole store, moved by every write that changes
//! something; a key's `mod_revision` is the revision of its last write. Both pass the suite in `suite.rs`.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub mod backup;
pub mod compactor;
pub mod embedded;
pub mod etcd;
mod feed;
mod fenced;
pub mod rebased;
pub mod sealed;
#[cfg(test)]
mod suite;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use fenced::Fenced;

/// The largest value that is stored, etcd's default limit of a request: 1.5 MiB.
pub const VALUE_LIMIT: usize = 3 << 19;

/// The store's counter: every write that changes something moves it by one. The first write makes it 2, as in etcd.
pub type Revision = i64;

/// A key with its value at some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, "/registry/..." by convention.
    pub key: Bytes,
    /// What was put there.
    pub value: Bytes,
    /// The revision of the write that created the key.
    pub create_revision: Revision,
    /// The revision of the key's last write.
    pub mod_revision: Revision,
}

/// What must hold of a key for a write to take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Write whatever is there.
    Any,
    /// The key does not exist.
    Absent,
    /// The key's last write was at this revision.
    At(Revision),
}

/// A lease: keys put under it are deleted when it expires or is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

/// A key that must still be there, as it was made at this revision, for a write to another key to take place. It is the
/// mark of a leader's term: once that key is gone or made anew, nothing more is written in the name of the term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Which key.
    pub key: Bytes,
    /// The revision that created it.
    pub create_revision: Revision,
}

/// What a write does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Gives it a value.
    Put {
        /// The value.
        value: Bytes,
        /// The lease that the key is to live under.
        lease: Option<LeaseId>,
    },
    /// Ends it.
    Delete,
}

/// One write; it takes place as a whole, at one revision, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which key.
    pub key: Bytes,
    /// What must hold of that key.
    pub guard: Guard,
    /// What becomes of it.
    pub action: Action,
    /// What must hold of another key, in the same transaction.
    pub fence: Option<Fence>,
}

impl Write {
    /// What is put, if anything.
    fn value(&self) -> Option<&Bytes> {
        match &self.action {
            Action::Put { value, .. } => Some(value),
            Action::Delete => None,
        }
    }

    /// Refuses a value that is over the limit.
    fn check_size(&self) -> Result<(), Error> {
        match self.value() {
            Some(value) if value.len() > VALUE_LIMIT => Err(Error::TooLarge {
                size: value.len(),
                limit: VALUE_LIMIT,
            }),
            _ => Ok(()),
        }
    }
}

/// What a guarded write came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It took place, at this revision.
    Done(Revision),
    /// The guard did not hold; this is what is there instead.
    Refused(Option<KeyValue>),
}

/// Which keys to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeQuery {
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Only keys greater than this one; the last key of the page before.
    pub after: Option<Bytes>,
    /// At most this many.
    pub limit: Option<usize>,
    /// As of this revision instead of now.
    pub revision: Option<Revision>,
}

/// One page of keys in ascending order, all as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The page.
    pub items: Vec<KeyValue>,
    /// The revision that the page shows.
    pub revision: Revision,
    /// How many keys of the query come after this page.
    pub remaining: u64,
}

/// One change, as the store's history holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key was put; `previous` is its value before, if it existed (and is not compacted away).
    Put {
        /// The key as written.
        current: KeyValue,
        /// The key before the write.
        previous: Option<KeyValue>,
    },
    /// A key was deleted, at this revision.
    Delete {
        /// Which key.
        key: Bytes,
        /// When.
        revision: Revision,
        /// The key before the deletion.
        previous: Option<KeyValue>,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { current, .. } => &current.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The revision of the change.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put { current, .. } => current.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// What a watch yields, in the order of revisions: every change once, none left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Changes of one or more whole revisions.
    Changes(Vec<Change>),
    /// Nothing of the watched prefix has changed up to this revision; what a bookmark may promise.
    Progress(Revision),
}

/// A running watch. It ends with an error ([`Error::Compacted`] when its next revision is gone), never silently.
pub type Watch = BoxStream<'static, Result<WatchEvent, Error>>;

/// Why the store could not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision asked for is compacted away.
    #[error("revision {requested} is compacted; the oldest is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// What there still is.
        oldest: Revision,
    },
    /// The revision asked for lies in the future.
    #[error("revision {requested} is ahead of the store's {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// What there is.
        current: Revision,
    },
    /// The lease does not exist or has expired.
    #[error("lease {0:?} does not exist")]
    NoSuchLease(LeaseId),
    /// The value is larger than the store takes (1.5 MiB, as etcd's default request limit).
    #[error("value of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The write's fence does not hold: whoever writes leads no longer. Nothing was written.
    #[error("the term of this leader is over")]
    Fenced,
    /// What is stored can't be opened with the keys that this server has.
    #[error("the value of {key} can't be opened")]
    Sealed {
        /// Whose.
        key: String,
        /// Why; it shows nothing of the value.
        source: sealed::OpenError,
    },
    /// There is no space left to write to.
    #[error("the store's disk is full")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The backend failed or can't be reached; whether a write took place is unknown.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The store's contract. Acknowledged writes survive a crash of the process.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key as of now.
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error>;

    /// Reads a page of keys.
    async fn range(&self, query: RangeQuery) -> Result<Range, Error>;

    /// Writes or deletes a key if its guard holds, and its fence, without which it fails with [`Error::Fenced`].
    /// Deleting what is absent under [`Guard::Any`] is refused with `None`.
    async fn write(&self, write: Write) -> Result<Written, Error>;

    /// Puts a key if its guard holds, under a lease if one is given.
    async fn put(
        &self,
        key: &[u8],
        value: Bytes,
        guard: Guard,
        lease: Option<LeaseId>,
    ) -> Result<Written, Error> {
        self.write(Write {
            key: Bytes::copy_from_slice(key),
            guard,
            action: Action::Put { value, lease },
            fence: None,
        })
        .await
    }

    /// Deletes a key if its guard holds.
    async fn delete(&self, key: &[u8], guard: Guard) -> Result<Written, Error> {
        self.write(Write {
            key: Bytes::copy_from_slice(key),
            guard,
            action: Action::Delete,
            fence: None,
        })
        .await
    }

    /// Follows the keys under a prefix, beginning with the changes *at* `from`; `None` begins with the next change.
    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error>;

    /// The revision of the last write.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Forgets history before this revision; reads and watches from there on go on.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// Makes a lease that expires unless it is kept alive within each `ttl`.
    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error>;

    /// Starts the lease's time again.
    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error>;

    /// Ends the lease and deletes its keys.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error>;
}
