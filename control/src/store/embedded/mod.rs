//! The store of a single server: one file, with the history and the guarantees that etcd gives.
//!
//! ```text
//! callers -> queue -> writer thread: one transaction and one fsync for all that has queued -> answers
//!                          \-> feed (recent changes in memory) -> watchers
//! readers -> a snapshot of the file, on the blocking threads
//! ```
//!
//! An acknowledged write is on the disk. The file is locked while it is open, so two servers can't share it.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

mod apply;
mod file;
mod leases;
mod record;
mod tables;
mod writer;

pub use file::{OpenError, Options};

use super::feed::{self, Chunk, Feed, History, Limits};
use super::{Error, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch, Write, Written};
use file::Handle;
use tables::Snapshot;
use writer::{Answer, Operation, Request, Writer};

/// How many writes may wait for the disk before callers wait to ask.
const QUEUE: usize = 1024;

/// The store in one file.
#[derive(Clone)]
pub struct Embedded {
    reader: Reader,
    feed: Arc<Feed>,
    requests: mpsc::Sender<Request>,
}

/// The half of the store that reads the file, shared with watchers that lag.
#[derive(Clone)]
struct Reader(Arc<Handle>);

impl Embedded {
    /// Opens the store, making the file if there is none.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_with(Options {
            path: path.as_ref().to_owned(),
            max_bytes: None,
        })
        .await
    }

    /// Opens the store with a limit to its size.
    pub async fn open_with(options: Options) -> Result<Self, OpenError> {
        Self::open_limited(options, Limits::default()).await
    }

    /// Opens the store with limits to what it keeps in memory for watchers.
    pub(super) async fn open_limited(options: Options, limits: Limits) -> Result<Self, OpenError> {
        spawn_blocking(move || Self::start(options, limits))
            .await
            .expect("opening the store does not panic")
    }

    fn start(options: Options, limits: Limits) -> Result<Self, OpenError> {
        let path = options.path.clone();
        let handle = Arc::new(Handle::open(options)?);
        let unusable = |source| OpenError::Database {
            path: path.clone(),
            source,
        };
        let revision = handle
            .snapshot(Snapshot::revision)
            .map_err(|error| unusable(Box::new(error)))?;
        let feed = Arc::new(Feed::new(revision + 1, limits));
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(Arc::clone(&handle), Arc::clone(&feed), queue)
            .map_err(|error| unusable(Box::new(error)))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(|error| unusable(Box::new(error)))?;
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || runtime.block_on(writer.run()))
            .map_err(|error| unusable(Box::new(error)))?;
        Ok(Self {
            reader: Reader(handle),
            feed,
            requests,
        })
    }

    async fn ask(&self, operation: Operation) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request { operation, reply })
            .await
            .map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

fn ended() -> Error {
    Error::Unavailable("the store's writer has ended".into())
}

impl Reader {
    /// Reads a snapshot on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Snapshot) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let handle = Arc::clone(&self.0);
        spawn_blocking(move || handle.snapshot(work))
            .await
            .map_err(|error| Error::Unavailable(Box::new(error)))?
    }
}

#[async_trait]
impl History for Reader {
    async fn read(&self, prefix: &Bytes, from: Revision) -> Result<Chunk, Error> {
        let prefix = prefix.clone();
        self.read(move |snapshot| snapshot.history(&prefix, from))
            .await?
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        let key = key.to_vec();
        self.reader.read(move |snapshot| snapshot.get(&key)).await
    }

    async fn range(&self, query: RangeQuery) -> Result<Range, Error> {
        self.reader
            .read(move |snapshot| snapshot.range(&query))
            .await?
    }

    async fn write(&self, write: Write) -> Result<Written, Error> {
        write.check_size()?;
        match self.ask(Operation::Write(write)).await? {
            Answer::Written(written) => Ok(written),
            Answer::Granted(_) | Answer::Done => unreachable!("a write is answered as one"),
        }
    }

    async fn watch(&self, prefix: &[u8], from: Option<Revision>) -> Result<Watch, Error> {
        let from = from.unwrap_or_else(|| self.feed.revision() + 1);
        let prefix = Bytes::copy_from_slice(prefix);
        let history = Arc::new(self.reader.clone());
        Ok(feed::follow(Arc::clone(&self.feed), history, prefix, from))
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.reader.read(Snapshot::revision).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(Operation::Compact { revision }).await.map(drop)
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        match self.ask(Operation::Grant { ttl }).await? {
            Answer::Granted(lease) => Ok(lease),
            Answer::Written(_) | Answer::Done => unreachable!("a grant is answered as one"),
        }
    }

    async fn lease_keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(Operation::KeepAlive { lease }).await.map(drop)
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask(Operation::Revoke { lease }).await.map(drop)
    }
}
