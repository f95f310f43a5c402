//! Guarded writes.

use std::sync::Arc;

use super::*;
use crate::store::{Action, Fence, VALUE_LIMIT, Write};

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

fn fenced(key: &str, value: Option<&str>, guard: Guard, fence: &Fence) -> Write {
    Write {
        key: bytes(key),
        guard,
        action: match value {
            Some(value) => Action::Put {
                value: bytes(value),
                lease: None,
            },
            None => Action::Delete,
        },
        fence: Some(fence.clone()),
    }
}

pub(super) async fn a_fence_ends_with_its_key<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let made = put(&*store, "/leader", "a").await;
    let fence = Fence {
        key: bytes("/leader"),
        create_revision: made,
    };
    let first = fenced("/k", Some("1"), Guard::Absent, &fence);
    let revision = done(store.write(first.clone()).await.unwrap());
    // The guard of the key itself is still told apart from the fence.
    let refused = store.write(first).await.unwrap();
    assert!(matches!(refused, Written::Refused(Some(there)) if there.mod_revision == revision));
    // Another value of the leader's key is the same term.
    put(&*store, "/leader", "a, still").await;
    let second = fenced("/k", Some("2"), Guard::At(revision), &fence);
    let revision = done(store.write(second).await.unwrap());
    delete(&*store, "/leader").await;
    let late = fenced("/k", Some("3"), Guard::At(revision), &fence);
    let error = store.write(late.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Fenced), "{error:?}");
    // A new term is another key, though it has the same name.
    put(&*store, "/leader", "b").await;
    for write in [
        late,
        fenced("/k", Some("3"), Guard::Any, &fence),
        fenced("/k", None, Guard::At(revision), &fence),
        fenced("/new", Some("3"), Guard::Absent, &fence),
    ] {
        let error = store.write(write).await.unwrap_err();
        assert!(matches!(error, Error::Fenced), "{error:?}");
    }
    assert_eq!(value(&*store, "/k").await.as_deref(), Some("2"));
    assert_eq!(value(&*store, "/new").await, None);
}

/// Two leaders count one key up while the term changes hands again and again: what is counted under a fence adds up.
pub(super) async fn a_fence_is_compared_in_the_same_write<S: Subject>() {
    const TERMS: i64 = 30;
    let subject = S::start().await;
    let store = subject.store();
    let mut made = put(&*store, "/leader", "0").await;
    for term in 1..=TERMS {
        let fence = Fence {
            key: bytes("/leader"),
            create_revision: made,
        };
        let writer = {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut writes = 0;
                loop {
                    let key = format!("/k/{term}/{writes}");
                    match store
                        .write(fenced(&key, Some(""), Guard::Absent, &fence))
                        .await
                    {
                        Ok(_) => writes += 1,
                        Err(Error::Fenced) => return,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        };
        let ended = delete(&*store, "/leader").await;
        made = put(&*store, "/leader", &term.to_string()).await;
        writer.await.unwrap();
        let written = store.range(all(&format!("/k/{term}/"))).await.unwrap();
        let late = written.items.iter().find(|kv| kv.mod_revision > ended);
        assert_eq!(late, None, "written after the term's end at {ended}");
    }
}
