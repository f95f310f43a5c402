//! etcd's watch: the one that fills the feed, and short ones for watchers that lag.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{Client, Event, EventType, WatchOptions, WatchResponse, WatchStream};

use super::{MESSAGE_LIMIT, PATIENCE, key_value, unavailable};
use crate::store::feed::{Chunk, Feed, History};
use crate::store::{Change, Error, Revision};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Opens watches over all keys.
pub(super) struct Stream {
    client: Client,
}

impl Stream {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Keeps the feed filled, forever: after a broken stream it goes on with the next revision.
    pub async fn fill(self: Arc<Self>, feed: Arc<Feed>) {
        let mut retry = FIRST_RETRY;
        loop {
            let before = feed.revision();
            let error = match self.follow(&feed).await {
                Error::Compacted { oldest, .. } => {
                    tracing::warn!(oldest, "etcd forgot what this server had not seen yet");
                    feed.reset(oldest);
                    continue;
                }
                error => error,
            };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the stream of changes from etcd broke; opening it again"
            );
            retry = if feed.revision() > before {
                FIRST_RETRY
            } else {
                (retry * 2).min(LAST_RETRY)
            };
            tokio::time::sleep(retry).await;
        }
    }

    /// Publishes changes until the stream breaks.
    async fn follow(&self, feed: &Feed) -> Error {
        let from = feed.revision() + 1;
        let mut watch = match self.open(from).await {
            Ok(watch) => watch,
            Err(error) => return error,
        };
        loop {
            let changes = match next(&mut watch, from).await {
                Ok(changes) => changes,
                Err(error) => return error,
            };
            if let Some(last) = changes.last().map(Change::revision) {
                feed.publish(changes, last);
            }
        }
    }

    /// The first changes at and after a revision that is in the past.
    pub async fn batch(&self, from: Revision) -> Result<Vec<Change>, Error> {
        let work = async {
            let mut watch = self.open(from).await?;
            loop {
                let changes = next(&mut watch, from).await?;
                if !changes.is_empty() {
                    return Ok(changes);
                }
            }
        };
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(changes) => changes,
            Err(elapsed) => Err(Error::Unavailable(Box::new(elapsed))),
        }
    }

    async fn open(&self, from: Revision) -> Result<WatchStream, Error> {
        let options = WatchOptions::new()
            .with_all_keys()
            .with_prev_key()
            .with_start_revision(from);
        let mut client = self
            .client
            .watch_client()
            .max_decoding_message_size(MESSAGE_LIMIT);
        client
            .watch(Vec::new(), Some(options))
            .await
            .map_err(unavailable)
    }
}

#[async_trait]
impl History for Stream {
    /// Reads all keys, for only so is it sure how far the reading has come.
    async fn read(&self, prefix: &Bytes, from: Revision) -> Result<Chunk, Error> {
        let mut changes = self.batch(from).await?;
        let next = changes.last().map_or(from, |change| change.revision() + 1);
        changes.retain(|change| change.key().starts_with(prefix));
        Ok(Chunk { changes, next })
    }
}

/// The next changes; none when etcd only acknowledges the watch.
async fn next(watch: &mut WatchStream, from: Revision) -> Result<Vec<Change>, Error> {
    let response = watch.message().await.map_err(unavailable)?;
    let response = response.ok_or_else(|| Error::Unavailable("etcd ended the stream".into()))?;
    if response.compact_revision() > 0 {
        return Err(Error::Compacted {
            requested: from,
            oldest: response.compact_revision(),
        });
    }
    if response.canceled() {
        let reason = response.cancel_reason().to_owned();
        return Err(Error::Unavailable(reason.into()));
    }
    Ok(changes(&response))
}

fn changes(response: &WatchResponse) -> Vec<Change> {
    response.events().iter().filter_map(change).collect()
}

fn change(event: &Event) -> Option<Change> {
    let current = key_value(event.kv()?.clone());
    let previous = event.prev_kv().cloned().map(key_value);
    Some(match event.event_type() {
        EventType::Put => Change::Put { current, previous },
        EventType::Delete => Change::Delete {
            key: current.key,
            revision: current.mod_revision,
            previous,
        },
    })
}
