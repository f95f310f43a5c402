//! Paging, reading the past, forgetting it, and remembering it across a restart.

use super::*;

pub(super) async fn pages_show_one_revision<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    for number in 0..7 {
        put(&*store, &format!("/pods/{number}"), "old").await;
    }
    put(&*store, "/pod", "outside").await;
    put(&*store, "/podsx", "outside").await;
    let mut query = RangeQuery {
        limit: Some(3),
        ..all("/pods/")
    };
    let page = store.range(query.clone()).await.unwrap();
    assert_eq!(shown(&page), ["/pods/0=old", "/pods/1=old", "/pods/2=old"]);
    assert_eq!(page.remaining, 4);
    // What happens between the pages is not in them.
    put(&*store, "/pods/3", "new").await;
    delete(&*store, "/pods/4").await;
    put(&*store, "/pods/45", "new").await;
    query.revision = Some(page.revision);
    query.after = Some(page.items[2].key.clone());
    let second = store.range(query.clone()).await.unwrap();
    assert_eq!(
        shown(&second),
        ["/pods/3=old", "/pods/4=old", "/pods/5=old"]
    );
    assert_eq!((second.remaining, second.revision), (1, page.revision));
    query.after = Some(second.items[2].key.clone());
    let last = store.range(query).await.unwrap();
    assert_eq!(shown(&last), ["/pods/6=old"]);
    assert_eq!(last.remaining, 0);
    let count = RangeQuery {
        limit: Some(0),
        ..all("/pods/")
    };
    let count = store.range(count).await.unwrap();
    assert_eq!((count.items.len(), count.remaining), (0, 7));
    assert_eq!(shown(&store.range(all("/nothing")).await.unwrap()), [""; 0]);
}

pub(super) async fn past_revisions_can_be_read<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let first = put(&*store, "/a", "1").await;
    let second = put(&*store, "/a", "2").await;
    let gone = delete(&*store, "/a").await;
    put(&*store, "/b", "1").await;
    let again = put(&*store, "/a", "3").await;
    let seen = async |revision| shown(&store.range(at("/", revision)).await.unwrap());
    assert_eq!(seen(1).await, [""; 0]);
    assert_eq!(seen(first).await, ["/a=1"]);
    assert_eq!(seen(second).await, ["/a=2"]);
    assert_eq!(seen(gone).await, [""; 0]);
    assert_eq!(seen(gone + 1).await, ["/b=1"]);
    assert_eq!(seen(again).await, ["/a=3", "/b=1"]);
    let past = store.range(at("/a", second)).await.unwrap();
    assert_eq!(
        (past.items[0].create_revision, past.items[0].mod_revision),
        (first, second)
    );
}

pub(super) async fn future_revisions_are_refused<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let current = put(&*store, "/a", "1").await;
    let error = store.range(at("/", current + 5)).await.unwrap_err();
    assert!(
        matches!(error, Error::Future { requested, current: now } if requested == current + 5 && now == current),
        "{error:?}"
    );
    let error = store.compact(current + 5).await.unwrap_err();
    assert!(matches!(error, Error::Future { .. }), "{error:?}");
}

pub(super) async fn compaction_ends_the_past<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    put(&*store, "/a", "1").await;
    let line = put(&*store, "/a", "2").await;
    put(&*store, "/a", "3").await;
    store.compact(line).await.unwrap();
    store.compact(line).await.unwrap();
    store.compact(line - 1).await.unwrap();
    let error = store.range(at("/", line - 1)).await.unwrap_err();
    assert!(
        matches!(error, Error::Compacted { requested, oldest } if requested == line - 1 && oldest == line),
        "{error:?}"
    );
    assert_eq!(shown(&store.range(at("/", line)).await.unwrap()), ["/a=2"]);
    assert_eq!(shown(&store.range(all("/")).await.unwrap()), ["/a=3"]);
}

pub(super) async fn compaction_keeps_what_is_live<S: Subject>() {
    let mut subject = S::start().await;
    let store = subject.store();
    for round in 0..3 {
        for number in 0..50 {
            put(&*store, &format!("/k/{number:02}"), &format!("{round}")).await;
        }
    }
    for number in 0..25 {
        delete(&*store, &format!("/k/{number:02}")).await;
    }
    let line = store.revision().await.unwrap();
    put(&*store, "/k/00", "again").await;
    store.compact(line).await.unwrap();
    let expected: Vec<_> = (25..50).map(|number| format!("/k/{number:02}=2")).collect();
    assert_eq!(
        shown(&store.range(at("/k/", line)).await.unwrap()),
        expected
    );
    drop(store);
    subject.restart().await;
    let store = subject.store();
    assert_eq!(
        shown(&store.range(at("/k/", line)).await.unwrap()),
        expected
    );
    assert_eq!(value(&*store, "/k/00").await.as_deref(), Some("again"));
    assert_eq!(value(&*store, "/k/01").await, None);
    let created = done(
        store
            .put(b"/k/01", bytes("new"), Guard::Absent, None)
            .await
            .unwrap(),
    );
    let stored = store.get(b"/k/01").await.unwrap().unwrap();
    assert_eq!(stored.create_revision, created);
    let error = store.range(at("/k/", line - 1)).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
}

pub(super) async fn a_restart_loses_nothing<S: Subject>() {
    let mut subject = S::start().await;
    let store = subject.store();
    let first = put(&*store, "/a", "1").await;
    put(&*store, "/a", "2").await;
    put(&*store, "/b", "1").await;
    let last = delete(&*store, "/b").await;
    drop(store);
    subject.restart().await;
    let store = subject.store();
    assert_eq!(store.revision().await.unwrap(), last);
    assert_eq!(shown(&store.range(all("/")).await.unwrap()), ["/a=2"]);
    assert_eq!(shown(&store.range(at("/", first)).await.unwrap()), ["/a=1"]);
    let mut watch = store.watch(b"/", Some(first)).await.unwrap();
    let seen = lines(&mut watch, 4).await;
    assert_eq!(seen, ["2 /a=1", "3 /a=2 was 1", "4 /b=1", "5 -/b was 1"]);
    assert_eq!(put(&*store, "/a", "3").await, last + 1);
    assert_eq!(lines(&mut watch, 1).await, ["6 /a=3 was 2"]);
}
