//! Guarded writes.

use std::sync::Arc;

use super::*;
use crate::store::VALUE_LIMIT;

pub(super) async fn revisions_count_as_in_etcd<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(put(&*store, "/a", "1").await, 2);
    assert_eq!(put(&*store, "/b", "1").await, 3);
    assert_eq!(put(&*store, "/a", "2").await, 4);
    let refused = store
        .put(b"/a", bytes("3"), Guard::Absent, None)
        .await
        .unwrap();
    assert!(matches!(refused, Written::Refused(Some(_))));
    assert_eq!(store.revision().await.unwrap(), 4);
    let stored = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((stored.create_revision, stored.mod_revision), (2, 4));
    assert_eq!(delete(&*store, "/a").await, 5);
    assert_eq!(put(&*store, "/a", "3").await, 6);
    let stored = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((stored.create_revision, stored.mod_revision), (6, 6));
}

pub(super) async fn puts_are_guarded<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let refused = store
        .put(b"/a", bytes("x"), Guard::At(1), None)
        .await
        .unwrap();
    assert_eq!(refused, Written::Refused(None));
    let first = done(
        store
            .put(b"/a", bytes("1"), Guard::Absent, None)
            .await
            .unwrap(),
    );
    let current = store.get(b"/a").await.unwrap();
    let refused = store
        .put(b"/a", bytes("x"), Guard::Absent, None)
        .await
        .unwrap();
    assert_eq!(refused, Written::Refused(current.clone()));
    let refused = store
        .put(b"/a", bytes("x"), Guard::At(first + 1), None)
        .await
        .unwrap();
    assert_eq!(refused, Written::Refused(current));
    done(
        store
            .put(b"/a", bytes("2"), Guard::At(first), None)
            .await
            .unwrap(),
    );
    assert_eq!(value(&*store, "/a").await.as_deref(), Some("2"));
    delete(&*store, "/a").await;
    done(
        store
            .put(b"/a", bytes("3"), Guard::Absent, None)
            .await
            .unwrap(),
    );
    assert_eq!(value(&*store, "/a").await.as_deref(), Some("3"));
}

pub(super) async fn deletes_are_guarded<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let absent = store.delete(b"/a", Guard::Any).await.unwrap();
    assert_eq!(absent, Written::Refused(None));
    let absent = store.delete(b"/a", Guard::At(1)).await.unwrap();
    assert_eq!(absent, Written::Refused(None));
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let refused = store.delete(b"/a", Guard::At(first)).await.unwrap();
    assert!(matches!(refused, Written::Refused(Some(kv)) if kv.mod_revision == second));
    assert_eq!(
        done(store.delete(b"/a", Guard::At(second)).await.unwrap()),
        second + 1
    );
    assert_eq!(value(&*store, "/a").await, None);
    assert_eq!(store.revision().await.unwrap(), second + 1);
}

/// Sixteen tasks count one key up by compare-and-swap; no increment may be lost.
pub(super) async fn one_of_many_racing_writers_wins<S: Subject>() {
    const WRITERS: usize = 16;
    const ROUNDS: usize = 10;
    let subject = S::start().await;
    let store = subject.store();
    put(&*store, "/counter", "0").await;
    let writers = (0..WRITERS).map(|_| tokio::spawn(count_up(Arc::clone(&store), ROUNDS)));
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let total = (WRITERS * ROUNDS).to_string();
    assert_eq!(value(&*store, "/counter").await, Some(total));
}

async fn count_up(store: Arc<dyn Store>, rounds: usize) {
    for _ in 0..rounds {
        let mut current = store.get(b"/counter").await.unwrap().unwrap();
        loop {
            let count: usize = text(&current.value).parse().unwrap();
            let next = bytes(&(count + 1).to_string());
            let guard = Guard::At(current.mod_revision);
            match store.put(b"/counter", next, guard, None).await.unwrap() {
                Written::Done(_) => break,
                Written::Refused(there) => current = there.expect("nobody deletes it"),
            }
        }
    }
}

pub(super) async fn large_values_are_refused<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let large = Bytes::from(vec![b'x'; VALUE_LIMIT + 1]);
    let error = store.put(b"/a", large, Guard::Any, None).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::TooLarge {
                limit: VALUE_LIMIT,
                ..
            }
        ),
        "{error:?}"
    );
    let fits = Bytes::from(vec![b'x'; 1 << 20]);
    done(
        store
            .put(b"/a", fits.clone(), Guard::Any, None)
            .await
            .unwrap(),
    );
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().value, fits);
}
