//! Leases.

use super::*;

/// The shortest that etcd grants with its default timing.
const TTL: Duration = Duration::from_secs(2);

async fn put_under(store: &dyn Store, key: &str, lease: LeaseId) {
    let written = store
        .put(key.as_bytes(), bytes("1"), Guard::Any, Some(lease))
        .await;
    done(written.unwrap());
}

pub(super) async fn a_lease_ends_with_its_keys<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let lease = store.lease_grant(TTL).await.unwrap();
    let mut watch = store.watch(b"/l/", None).await.unwrap();
    put_under(&*store, "/l/a", lease).await;
    put_under(&*store, "/l/b", lease).await;
    let mut seen: Vec<_> = changes(&mut watch, 4).await;
    let ended: Vec<_> = seen
        .split_off(2)
        .iter()
        .map(|change| text(change.key()))
        .collect();
    assert_eq!(seen.len(), 2);
    assert_eq!(ended.iter().filter(|key| *key == "/l/a").count(), 1);
    assert_eq!(ended.iter().filter(|key| *key == "/l/b").count(), 1);
    let error = store.lease_keep_alive(lease).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSuchLease(id) if id == lease),
        "{error:?}"
    );
    let error = store
        .put(b"/l/c", bytes("1"), Guard::Any, Some(lease))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::NoSuchLease(id) if id == lease),
        "{error:?}"
    );
    let error = store.lease_revoke(lease).await.unwrap_err();
    assert!(
        matches!(error, Error::NoSuchLease(id) if id == lease),
        "{error:?}"
    );
}

/// Two leases, one kept alive: when the other has ended, and its time once more, the first still stands.
pub(super) async fn a_lease_kept_alive_keeps_its_keys<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let kept = store.lease_grant(TTL).await.unwrap();
    put_under(&*store, "/l/kept", kept).await;
    for round in 0..2 {
        let other = store.lease_grant(TTL).await.unwrap();
        let key = format!("/l/other{round}");
        put_under(&*store, &key, other).await;
        let mut watch = store.watch(key.as_bytes(), None).await.unwrap();
        let mut ticks = tokio::time::interval(TTL / 8);
        let ended = loop {
            tokio::select! {
                seen = changes(&mut watch, 1) => break seen,
                _ = ticks.tick() => store.lease_keep_alive(kept).await.unwrap(),
            }
        };
        assert!(matches!(ended[0], Change::Delete { .. }), "{ended:?}");
    }
    assert_eq!(value(&*store, "/l/kept").await.as_deref(), Some("1"));
}

pub(super) async fn a_revoked_lease_takes_its_keys<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let lease = store.lease_grant(Duration::from_mins(10)).await.unwrap();
    put_under(&*store, "/l/a", lease).await;
    put_under(&*store, "/l/b", lease).await;
    put(&*store, "/l/c", "free").await;
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(
        shown(&store.range(all("/l/")).await.unwrap()),
        ["/l/c=free"]
    );
    let error = store.lease_revoke(lease).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLease(_)), "{error:?}");
}

pub(super) async fn a_put_without_lease_frees_the_key<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    let first = store.lease_grant(Duration::from_mins(10)).await.unwrap();
    let second = store.lease_grant(Duration::from_mins(10)).await.unwrap();
    put_under(&*store, "/l/freed", first).await;
    put(&*store, "/l/freed", "2").await;
    put_under(&*store, "/l/moved", first).await;
    put_under(&*store, "/l/moved", second).await;
    put_under(&*store, "/l/deleted", first).await;
    delete(&*store, "/l/deleted").await;
    put(&*store, "/l/deleted", "again").await;
    store.lease_revoke(first).await.unwrap();
    let left = shown(&store.range(all("/l/")).await.unwrap());
    assert_eq!(left, ["/l/deleted=again", "/l/freed=2", "/l/moved=1"]);
    store.lease_revoke(second).await.unwrap();
    let left = shown(&store.range(all("/l/")).await.unwrap());
    assert_eq!(left, ["/l/deleted=again", "/l/freed=2"]);
}

pub(super) async fn leases_expire_after_a_restart<S: Subject>() {
    let mut subject = S::start().await;
    let store = subject.store();
    let lease = store.lease_grant(TTL).await.unwrap();
    put_under(&*store, "/l/a", lease).await;
    let from = store.revision().await.unwrap() + 1;
    drop(store);
    subject.restart().await;
    let store = subject.store();
    let mut watch = store.watch(b"/l/", Some(from)).await.unwrap();
    let seen = changes(&mut watch, 1).await;
    assert!(matches!(seen[0], Change::Delete { .. }), "{seen:?}");
    let error = store.lease_keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchLease(_)), "{error:?}");
}
