//! What every backend must do. The tests are written once, against [`Subject`], and run on each backend.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use super::feed::Limits;
use super::{
    Change, Error, Guard, KeyValue, LeaseId, Range, RangeQuery, Revision, Store, Watch, WatchEvent,
    Written,
};

mod backups;
mod crash;
mod embedded;
mod etcd;
mod full;
mod history;
mod leases;
mod members;
mod model;
mod sealing;
mod watches;
mod writes;

/// Few enough that a lagging watcher soon has to read the backend's history.
const LIMITS: Limits = Limits {
    changes: 32,
    bytes: 1 << 20,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that a test can start and kill.
trait Subject: Sized + Send {
    /// Starts on an empty store.
    async fn start() -> Self;
    /// The store, as it is now.
    fn store(&self) -> Arc<dyn Store>;
    /// Where all of its files are.
    fn folder(&self) -> &Path;
    /// Ends the backend and starts it again on the same data.
    async fn restart(&mut self);
}

/// Makes a test of each function of the suite for one backend.
macro_rules! suite {
    ($subject:ty, $($module:ident::$test:ident),* $(,)?) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            $crate::store::suite::$module::$test::<$subject>().await;
        }
    )*};
    ($subject:ty) => {
        $crate::store::suite::suite!(
            $subject,
            writes::revisions_count_as_in_etcd,
            writes::puts_are_guarded,
            writes::deletes_are_guarded,
            writes::one_of_many_racing_writers_wins,
            writes::large_values_are_refused,
            writes::a_fence_ends_with_its_key,
            writes::a_fence_is_compared_in_the_same_write,
            sealing::secrets_are_sealed_at_rest,
            sealing::sealed_values_are_watched_and_read_back,
            sealing::moved_values_are_refused,
            sealing::keys_rotate,
            sealing::the_wrong_key_is_said_so,
            backups::a_backup_fills_an_empty_store,
            backups::revisions_go_on_beyond_a_restore,
            backups::a_backup_shows_one_revision_under_writers,
            backups::damaged_backups_change_nothing,
            history::pages_show_one_revision,
            history::past_revisions_can_be_read,
            history::future_revisions_are_refused,
            history::compaction_ends_the_past,
            history::compaction_keeps_what_is_live,
            history::a_restart_loses_nothing,
            watches::a_watch_begins_with_the_next_change,
            watches::a_watch_goes_on_from_a_revision,
            watches::a_lagging_watch_misses_nothing,
            watches::watches_resume_under_writers,
            watches::a_watch_of_a_compacted_revision_ends,
            watches::progress_is_told_without_changes,
            leases::a_lease_ends_with_its_keys,
            leases::a_lease_kept_alive_keeps_its_keys,
            leases::a_revoked_lease_takes_its_keys,
            leases::a_put_without_lease_frees_the_key,
            leases::leases_expire_after_a_restart,
            model::random_operations_agree_with_the_model,
        );
    };
}
use suite;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A put that nothing guards.
async fn put(store: &dyn Store, key: &str, value: &str) -> Revision {
    let written = store
        .put(key.as_bytes(), bytes(value), Guard::Any, None)
        .await;
    done(written.unwrap())
}

/// A deletion that nothing guards.
async fn delete(store: &dyn Store, key: &str) -> Revision {
    done(store.delete(key.as_bytes(), Guard::Any).await.unwrap())
}

/// The revision of a write that must have taken place.
fn done(written: Written) -> Revision {
    match written {
        Written::Done(revision) => revision,
        Written::Refused(current) => panic!("refused, there is {current:?}"),
    }
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    store
        .get(key.as_bytes())
        .await
        .unwrap()
        .map(|kv| text(&kv.value))
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn all(prefix: &str) -> RangeQuery {
    RangeQuery {
        prefix: bytes(prefix),
        ..RangeQuery::default()
    }
}

fn at(prefix: &str, revision: Revision) -> RangeQuery {
    RangeQuery {
        revision: Some(revision),
        ..all(prefix)
    }
}

/// "key=value" for each item.
fn shown(range: &Range) -> Vec<String> {
    let item = |kv: &KeyValue| format!("{}={}", text(&kv.key), text(&kv.value));
    range.items.iter().map(item).collect()
}

/// "REVISION key=value was value" or "REVISION -key was value".
fn line(change: &Change) -> String {
    let was = |previous: &Option<KeyValue>| match previous {
        Some(kv) => format!(" was {}", text(&kv.value)),
        None => String::new(),
    };
    match change {
        Change::Put { current, previous } => format!(
            "{} {}={}{}",
            current.mod_revision,
            text(&current.key),
            text(&current.value),
            was(previous)
        ),
        Change::Delete {
            key,
            revision,
            previous,
        } => {
            format!("{revision} -{}{}", text(key), was(previous))
        }
    }
}

/// The next event, which must come.
async fn next(watch: &mut Watch) -> Result<WatchEvent, Error> {
    timeout(PATIENCE, watch.next())
        .await
        .expect("the watch says something in time")
        .expect("a watch never just ends")
}

/// The next changes, `count` or more, with progress left out.
async fn changes(watch: &mut Watch, count: usize) -> Vec<Change> {
    let mut seen = Vec::new();
    while seen.len() < count {
        if let WatchEvent::Changes(changes) = next(watch).await.unwrap() {
            seen.extend(changes);
        }
    }
    seen
}

async fn lines(watch: &mut Watch, count: usize) -> Vec<String> {
    changes(watch, count).await.iter().map(line).collect()
}
