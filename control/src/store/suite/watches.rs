//! Watches: ordered, nothing lost or doubled, resumable.

use std::sync::Arc;

use super::*;

pub(super) async fn a_watch_begins_with_the_next_change<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    put(&*store, "/a/1", "before").await;
    let mut watch = store.watch(b"/a/", None).await.unwrap();
    put(&*store, "/b/1", "elsewhere").await;
    put(&*store, "/a/1", "after").await;
    put(&*store, "/a/2", "new").await;
    delete(&*store, "/a/1").await;
    let seen = lines(&mut watch, 3).await;
    assert_eq!(
        seen,
        ["4 /a/1=after was before", "5 /a/2=new", "6 -/a/1 was after"]
    );
}

pub(super) async fn a_watch_goes_on_from_a_revision<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    for number in 0..5 {
        put(&*store, "/a", &number.to_string()).await;
    }
    let mut watch = store.watch(b"/a", Some(4)).await.unwrap();
    assert_eq!(
        lines(&mut watch, 3).await,
        ["4 /a=2 was 1", "5 /a=3 was 2", "6 /a=4 was 3"]
    );
    // One that begins in the future waits for it.
    let mut future = store.watch(b"/a", Some(9)).await.unwrap();
    for number in 5..8 {
        put(&*store, "/a", &number.to_string()).await;
    }
    assert_eq!(lines(&mut future, 1).await, ["9 /a=7 was 6"]);
}

/// Far more changes than are kept in memory, before the watcher looks for the first time.
pub(super) async fn a_lagging_watch_misses_nothing<S: Subject>() {
    const WRITES: usize = 20 * LIMITS.changes;
    let subject = S::start().await;
    let store = subject.store();
    let mut lagging = store.watch(b"/k/", None).await.unwrap();
    let from = store.revision().await.unwrap() + 1;
    for number in 0..WRITES {
        let prefix = if number % 4 == 0 { "/other" } else { "/k" };
        put(
            &*store,
            &format!("{prefix}/{}", number % 10),
            &number.to_string(),
        )
        .await;
    }
    let expected = (0..WRITES).filter(|number| number % 4 != 0);
    let expected: Vec<_> = expected.map(|number| number.to_string()).collect();
    let seen = changes(&mut lagging, expected.len()).await;
    let values: Vec<_> = seen.iter().map(put_value).collect();
    assert_eq!(values, expected);
    let mut again = store.watch(b"/k/", Some(from)).await.unwrap();
    assert_eq!(changes(&mut again, expected.len()).await, seen);
}

fn put_value(change: &Change) -> String {
    match change {
        Change::Put { current, .. } => text(&current.value),
        Change::Delete { .. } => panic!("nothing was deleted"),
    }
}

/// Watchers that come and go while others write see what one sees that never left.
pub(super) async fn watches_resume_under_writers<S: Subject>() {
    const WRITERS: usize = 4;
    const WRITES: usize = 60;
    let subject = S::start().await;
    let store = subject.store();
    let mut steady = store.watch(b"/k/", Some(2)).await.unwrap();
    let writers =
        (0..WRITERS).map(|writer| tokio::spawn(write(Arc::clone(&store), writer, WRITES)));
    let writers: Vec<_> = writers.collect();
    let fickle = (1..4).map(|patience| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { watch_in_pieces(&*store, patience, WRITERS * WRITES).await })
    });
    let fickle: Vec<_> = fickle.collect();
    let seen = changes(&mut steady, WRITERS * WRITES).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let revisions: Vec<_> = seen.iter().map(Change::revision).collect();
    let first = revisions[0];
    let expected: Vec<_> = (first..).take(WRITERS * WRITES).collect();
    assert_eq!(revisions, expected);
    for watcher in fickle {
        assert_eq!(watcher.await.unwrap(), seen);
    }
}

async fn write(store: Arc<dyn Store>, writer: usize, count: usize) {
    for number in 0..count {
        let key = format!("/k/{writer}/{}", number % 3);
        if number % 7 == 6 {
            delete(&*store, &key).await;
        } else {
            put(&*store, &key, &number.to_string()).await;
        }
    }
}

/// Watches anew after every `patience` events, from where it was.
async fn watch_in_pieces(store: &dyn Store, patience: usize, count: usize) -> Vec<Change> {
    let mut seen: Vec<Change> = Vec::new();
    while seen.len() < count {
        let from = seen.last().map_or(2, |change| change.revision() + 1);
        let mut watch = store.watch(b"/k/", Some(from)).await.unwrap();
        for _ in 0..patience {
            if seen.len() < count
                && let WatchEvent::Changes(changes) = next(&mut watch).await.unwrap()
            {
                seen.extend(changes);
            }
        }
    }
    seen
}

pub(super) async fn a_watch_of_a_compacted_revision_ends<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let mut lagging = store.watch(b"/a", Some(2)).await.unwrap();
    for number in 0..6 {
        put(&*store, "/a", &number.to_string()).await;
    }
    store.compact(5).await.unwrap();
    let mut watch = store.watch(b"/a", Some(5)).await.unwrap();
    let seen = lines(&mut watch, 3).await;
    assert_eq!(&seen[1..], ["6 /a=4 was 3", "7 /a=5 was 4"]);
    for watch in [
        &mut lagging,
        &mut store.watch(b"/a", Some(4)).await.unwrap(),
    ] {
        let error = next(watch).await.unwrap_err();
        assert!(
            matches!(error, Error::Compacted { oldest: 5, .. }),
            "{error:?}"
        );
    }
}

pub(super) async fn progress_is_told_without_changes<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let mut watch = store.watch(b"/quiet/", None).await.unwrap();
    let mut last = 0;
    for number in 0..3 {
        last = put(&*store, "/busy/a", &number.to_string()).await;
    }
    let mut told = 0;
    while told < last {
        match next(&mut watch).await.unwrap() {
            WatchEvent::Progress(revision) => told = revision,
            WatchEvent::Changes(changes) => panic!("nothing changed here: {changes:?}"),
        }
    }
    assert_eq!(told, last);
    let next = put(&*store, "/quiet/a", "1").await;
    assert_eq!(lines(&mut watch, 1).await, [format!("{next} /quiet/a=1")]);
}
