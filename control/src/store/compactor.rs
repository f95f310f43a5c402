//! Keeps the history short: every interval, what was there an interval ago may be forgotten.

use std::sync::Arc;
use std::time::Duration;

use super::{Error, Revision, Store};

/// As kube-apiserver does: between five and ten minutes of history are kept.
pub const INTERVAL: Duration = Duration::from_mins(5);

/// Compacts until it is dropped. The leader does this; should two of them do it at once, nothing is lost.
pub async fn run(store: Arc<dyn Store>, interval: Duration) {
    let mut seen: Option<Revision> = None;
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match round(store.as_ref(), seen).await {
            Ok(revision) => seen = Some(revision),
            Err(error) => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "can't compact the store; trying again at the next interval"
            ),
        }
    }
}

async fn round(store: &dyn Store, seen: Option<Revision>) -> Result<Revision, Error> {
    if let Some(revision) = seen {
        store.compact(revision).await?;
        tracing::debug!(revision, "compacted the store");
    }
    store.revision().await
}
