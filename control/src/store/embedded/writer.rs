//! The one thread that writes: whatever has queued while the disk was busy shares the next commit.

use std::sync::Arc;
use std::time::Duration;

use redb::ReadableDatabase;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::apply::Batch;
use super::file::{Handle, is_full};
use super::leases::Leases;
use super::tables::{Snapshot, stored_leases};
use crate::store::feed::Feed;
use crate::store::{Error, LeaseId, Revision, Write, Written};

/// How many requests one commit may carry.
const BATCH: usize = 512;

/// What the writer is asked to do.
pub(super) enum Operation {
    Write(Write),
    Compact { revision: Revision },
    Grant { ttl: Duration },
    KeepAlive { lease: LeaseId },
    Revoke { lease: LeaseId },
}

/// What came of an operation.
pub(super) enum Answer {
    /// Of a put or a delete.
    Written(Written),
    /// Of a grant.
    Granted(LeaseId),
    /// Of everything else.
    Done,
}

/// An operation and where its answer goes.
pub(super) struct Request {
    pub operation: Operation,
    pub reply: oneshot::Sender<Result<Answer, Error>>,
}

/// The writer's state, on its own thread.
pub(super) struct Writer {
    handle: Arc<Handle>,
    feed: Arc<Feed>,
    requests: mpsc::Receiver<Request>,
    leases: Leases,
    /// Whether compacted history may remain to be removed.
    sweeping: bool,
}

impl Writer {
    pub fn new(
        handle: Arc<Handle>,
        feed: Arc<Feed>,
        requests: mpsc::Receiver<Request>,
    ) -> Result<Self, redb::Error> {
        let mut leases = Leases::default();
        for (lease, ttl) in handle.with(stored_leases)? {
            leases.start(lease, ttl);
        }
        Ok(Self {
            handle,
            feed,
            requests,
            leases,
            sweeping: true,
        })
    }

    /// Works until every sender is gone, then closes the file; watchers may outlive it.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let deadline = self.leases.next_deadline();
            tokio::select! {
                biased;
                received = self.requests.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.serve(std::mem::take(&mut batch));
                }
                () = wait_until(deadline) => self.expire(),
                () = std::future::ready(()), if self.sweeping => self.sweep(),
            }
        }
        self.feed.close();
        self.handle.close();
    }

    /// Writes a batch and answers it, after its changes are on the disk and before the watchers.
    fn serve(&mut self, requests: Vec<Request>) {
        let committed = self.commit(|batch| {
            let answers = requests
                .iter()
                .map(|request| apply(batch, &request.operation));
            answers.collect::<Result<Vec<_>, _>>()
        });
        match committed {
            Ok(answers) => {
                for (request, answer) in requests.into_iter().zip(answers) {
                    let answer = answer.and_then(|answer| self.settle(&request.operation, answer));
                    respond(request, answer);
                }
            }
            Err(failure) => {
                for request in requests {
                    respond(request, Err(failure.error()));
                }
            }
        }
    }

    /// What a committed operation means for the writer's own state.
    fn settle(&mut self, operation: &Operation, answer: Answer) -> Result<Answer, Error> {
        match (operation, &answer) {
            (Operation::Grant { ttl }, Answer::Granted(lease)) => self.leases.start(*lease, *ttl),
            (Operation::Revoke { lease }, _) => self.leases.end(*lease),
            (Operation::KeepAlive { lease }, _) => self.leases.keep_alive(*lease)?,
            (Operation::Compact { revision }, _) => {
                self.feed.compact(*revision);
                self.sweeping = true;
            }
            _ => {}
        }
        Ok(answer)
    }

    fn expire(&mut self) {
        let expired = self.leases.expired();
        let committed = self.commit(|batch| {
            for lease in &expired {
                // Already gone is as good as ended.
                if let Err(error) = batch.revoke(*lease)? {
                    tracing::debug!(%error, "an expired lease is gone already");
                }
            }
            Ok(())
        });
        for lease in expired {
            match committed {
                Ok(()) => self.leases.end(lease),
                Err(_) => self.leases.postpone(lease),
            }
        }
    }

    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method's path stands for one lifetime of a batch, the closure for any"
    )]
    fn sweep(&mut self) {
        // After a failure the next compaction tries again.
        self.sweeping = self.commit(|batch| batch.sweep()).unwrap_or(false);
    }

    /// Runs `work` in one transaction, makes it durable, and tells the watchers.
    fn commit<T>(
        &mut self,
        work: impl FnOnce(&mut Batch) -> Result<T, redb::Error>,
    ) -> Result<T, Failure> {
        let committed = self.handle.with(|database| {
            let txn = database.begin_write()?;
            let mut batch = Batch::begin(&txn)?;
            let result = work(&mut batch)?;
            let applied = batch.finish();
            if applied.dirty {
                txn.commit()?;
            } else {
                txn.abort()?;
            }
            Ok((result, applied))
        });
        match committed {
            Ok((result, applied)) => {
                if !applied.changes.is_empty() {
                    self.feed.publish(applied.changes, applied.revision);
                }
                Ok(result)
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed; opening the store again");
                self.recover();
                Err(Failure(Arc::new(error)))
            }
        }
    }

    /// Opens the file again. Should the failed commit turn out to have reached the disk, its changes are published.
    fn recover(&mut self) {
        if let Err(error) = self.handle.reopen() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the store stays closed"
            );
            return;
        }
        let published = self.feed.revision();
        let missed = self.handle.with(|database| {
            let txn = database.begin_read()?;
            let snapshot = Snapshot::open(&txn)?;
            Ok((snapshot.changes_after(published)?, snapshot.revision()?))
        });
        match missed {
            Ok((changes, revision)) if !changes.is_empty() => self.feed.publish(changes, revision),
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "can't read the store after opening it again"),
        }
    }
}

/// A failed commit, told to everyone who shared it.
struct Failure(Arc<redb::Error>);

impl Failure {
    fn error(&self) -> Error {
        if is_full(&self.0) {
            Error::Full(Box::new(Arc::clone(&self.0)))
        } else {
            Error::Unavailable(Box::new(Arc::clone(&self.0)))
        }
    }
}

fn apply(batch: &mut Batch, operation: &Operation) -> Result<Result<Answer, Error>, redb::Error> {
    let answer = match operation {
        Operation::Write(write) => batch.write(write)?.map(Answer::Written),
        Operation::Compact { revision } => batch.compact(*revision)?.map(|()| Answer::Done),
        Operation::Grant { ttl } => Ok(Answer::Granted(batch.grant(*ttl)?)),
        Operation::KeepAlive { .. } => Ok(Answer::Done),
        Operation::Revoke { lease } => batch.revoke(*lease)?.map(|()| Answer::Done),
    };
    Ok(answer)
}

fn respond(request: Request, answer: Result<Answer, Error>) {
    if request.reply.send(answer).is_err() {
        tracing::trace!("the caller of a write is gone");
    }
}

async fn wait_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
