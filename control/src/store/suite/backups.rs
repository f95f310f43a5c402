//! Backups of every backend, and every backend made from them.

use std::fs;

use super::*;
use crate::store::backup::{self, BackupError};

async fn fill(store: &dyn Store, count: usize) {
    for number in 0..count {
        put(store, &format!("/k/{number:04}"), &number.to_string()).await;
    }
}

pub(super) async fn a_backup_fills_an_empty_store<S: Subject>() {
    const KEYS: usize = 1200;
    let old = S::start().await;
    let store = old.store();
    fill(&*store, KEYS).await;
    let lease = store.lease_grant(Duration::from_mins(1)).await.unwrap();
    let leader = store.put(b"/portolan/leader", bytes("x"), Guard::Any, Some(lease));
    leader.await.unwrap();
    let before = store.range(all("/k/")).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let saved = backup::save(backup::chunks(store), &file).await.unwrap();
    assert_eq!((saved.keys, saved.revision), (1200, before.revision));
    let new = S::start().await;
    let restored = backup::restore(&file, &*new.store()).await.unwrap();
    assert_eq!(restored, saved);
    let store = backup::open(new.store()).await.unwrap();
    let after = store.range(all("/k/")).await.unwrap();
    assert_eq!(shown(&after), shown(&before));
    assert_eq!(value(&*store, "/portolan/leader").await, None);
    let error = backup::restore(&file, &*new.store()).await.unwrap_err();
    assert!(matches!(error, BackupError::NotEmpty { .. }), "{error:?}");
    // A backup of the restored store counts on.
    let second = backup::save(backup::chunks(Arc::clone(&store)), &file)
        .await
        .unwrap();
    assert!(second.revision > saved.revision);
    assert_eq!(second.keys, saved.keys);
}

pub(super) async fn revisions_go_on_beyond_a_restore<S: Subject>() {
    let old = S::start().await;
    fill(&*old.store(), 10).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    backup::save(backup::chunks(old.store()), &file)
        .await
        .unwrap();
    // What was written after the backup is lost, and its revisions must not come again.
    let lost = put(&*old.store(), "/k/lost", "x").await;
    let new = S::start().await;
    backup::restore(&file, &*new.store()).await.unwrap();
    let store = backup::open(new.store()).await.unwrap();
    let revision = store.revision().await.unwrap();
    assert!(revision > lost, "{revision} after {lost}");
    let first = store.get(b"/k/0000").await.unwrap().unwrap();
    assert!(first.mod_revision > lost);
    let error = store.range(at("/k/", lost)).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let mut watch = store.watch(b"/k/", Some(lost)).await.unwrap();
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    let stale = store.put(b"/k/0000", bytes("x"), Guard::At(lost), None);
    assert!(matches!(stale.await.unwrap(), Written::Refused(Some(there)) if there == first));
    // Everything else is as on any store.
    let mut watch = store.watch(b"/k/", None).await.unwrap();
    let guard = Guard::At(first.mod_revision);
    let written = store
        .put(b"/k/0000", bytes("y"), guard, None)
        .await
        .unwrap();
    assert_eq!(done(written), revision + 1);
    let expected = format!("{} /k/0000=y was 0", revision + 1);
    assert_eq!(lines(&mut watch, 1).await, std::slice::from_ref(&expected));
    let mut watch = store.watch(b"/k/", Some(revision + 1)).await.unwrap();
    assert_eq!(lines(&mut watch, 1).await, [expected]);
    let past = store.range(at("/k/0000", revision)).await.unwrap();
    assert_eq!(shown(&past), ["/k/0000=0"]);
    let error = store.range(at("/k/", revision + 100)).await.unwrap_err();
    let expected = (revision + 100, revision + 1);
    assert!(
        matches!(error, Error::Future { requested, current } if (requested, current) == expected),
        "{error:?}"
    );
    store.compact(revision + 1).await.unwrap();
    let error = store.range(at("/k/", revision)).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { requested, .. } if requested == revision));
}

/// One key is moved from name to name all the time; a backup holds it exactly once.
pub(super) async fn a_backup_shows_one_revision_under_writers<S: Subject>() {
    const OTHERS: usize = 1500;
    let old = S::start().await;
    let store = old.store();
    fill(&*store, OTHERS).await;
    put(&*store, "/m/0000", "").await;
    let mover = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0.. {
                put(&*store, &format!("/k/{number:04}"), "moved").await;
                delete(&*store, &format!("/k/{number:04}")).await;
            }
        })
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    let saved = backup::save(backup::chunks(Arc::clone(&store)), &file).await;
    mover.abort();
    let saved = saved.unwrap();
    let then = store.range(at("/", saved.revision)).await.unwrap();
    let new = S::start().await;
    backup::restore(&file, &*new.store()).await.unwrap();
    let mut restored = new.store().range(all("/")).await.unwrap();
    restored
        .items
        .retain(|kv| !kv.key.starts_with(b"/portolan/"));
    assert_eq!(shown(&restored), shown(&then));
}

pub(super) async fn damaged_backups_change_nothing<S: Subject>() {
    let subject = S::start().await;
    let store = subject.store();
    fill(&*store, 20).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("backup");
    backup::save(backup::chunks(store), &file).await.unwrap();
    let whole = fs::read(&file).unwrap();
    let new = S::start().await;
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    for bytes in [&whole[..whole.len() - 1], &whole[..40], &[], &changed] {
        fs::write(&file, bytes).unwrap();
        let error = backup::restore(&file, &*new.store()).await.unwrap_err();
        assert!(matches!(error, BackupError::Damaged { .. }), "{error:?}");
    }
    assert_eq!(new.store().range(all("")).await.unwrap().items, []);
    // A restore that stopped half way is known as one.
    put(&*new.store(), "/portolan/restoring", "{}").await;
    let error = backup::open(new.store()).await.err().unwrap();
    assert!(matches!(error, BackupError::Unfinished), "{error:?}");
    fs::write(&file, &whole).unwrap();
    let error = backup::restore(&file, &*new.store()).await.unwrap_err();
    assert!(matches!(error, BackupError::Unfinished), "{error:?}");
}
