//! What is secret is sealed on every backend, wherever it goes.

use std::fs;

use super::*;
use crate::store::sealed::{KeyError, Keys, OpenError, Sealed, open_keys};

const SECRET: &str = "/registry/core/secrets/default/db";
const MAP: &str = "/registry/core/configmaps/default/db";
const WORDS: &str = "correct horse battery staple";

fn sealed(store: &Arc<dyn Store>, keys: Keys) -> Sealed {
    Sealed::new(Arc::clone(store), keys)
}

/// All files under a folder, as one.
fn raw(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bytes.extend(raw(&path));
        } else {
            bytes.extend(fs::read(&path).unwrap());
        }
    }
    bytes
}

fn holds(bytes: &[u8], words: &str) -> bool {
    bytes
        .windows(words.len())
        .any(|part| part == words.as_bytes())
}

pub(super) async fn secrets_are_sealed_at_rest<S: Subject>() {
    let mut subject = S::start().await;
    let (keys, text) = Keys::generate();
    let store = sealed(&subject.store(), keys);
    put(&store, SECRET, WORDS).await;
    put(&store, "/portolan/pki/authority", WORDS).await;
    put(&store, MAP, "nothing that anybody may not read").await;
    assert_eq!(value(&store, SECRET).await.as_deref(), Some(WORDS));
    drop(store);
    subject.restart().await;
    let bytes = raw(subject.folder());
    assert!(!holds(&bytes, WORDS), "a secret is on the disk as it is");
    assert!(holds(&bytes, "nothing that anybody may not read"));
    let keys = Keys::parse(&text).unwrap().unwrap();
    let store = sealed(&subject.store(), keys);
    for key in [SECRET, "/portolan/pki/authority"] {
        assert_eq!(value(&store, key).await.as_deref(), Some(WORDS));
    }
}

pub(super) async fn sealed_values_are_watched_and_read_back<S: Subject>() {
    let subject = S::start().await;
    let backend = subject.store();
    let store = sealed(&backend, Keys::generate().0);
    let mut watch = store.watch(b"/registry/", None).await.unwrap();
    let first = put(&store, SECRET, "one").await;
    let refused = store
        .put(SECRET.as_bytes(), bytes("x"), Guard::Absent, None)
        .await
        .unwrap();
    assert!(matches!(refused, Written::Refused(Some(there)) if there.value == "one"));
    put(&store, SECRET, "two").await;
    delete(&store, SECRET).await;
    let expected = [
        format!("{first} {SECRET}=one"),
        format!("{} {SECRET}=two was one", first + 1),
        format!("{} -{SECRET} was two", first + 2),
    ];
    assert_eq!(lines(&mut watch, 3).await, expected);
    let past = store.range(at("/registry/", first)).await.unwrap();
    assert_eq!(shown(&past), [format!("{SECRET}=one")]);
    let again = store.watch(b"/registry/", Some(first)).await.unwrap();
    assert_eq!(lines(&mut { again }, 3).await, expected);
}

pub(super) async fn moved_values_are_refused<S: Subject>() {
    let subject = S::start().await;
    let backend = subject.store();
    let store = sealed(&backend, Keys::generate().0);
    put(&store, SECRET, WORDS).await;
    let stored = backend.get(SECRET.as_bytes()).await.unwrap().unwrap();
    let elsewhere = b"/registry/core/secrets/mine/db";
    let moved = backend.put(elsewhere, stored.value, Guard::Absent, None);
    done(moved.await.unwrap());
    let error = store.get(elsewhere).await.unwrap_err();
    let damaged = matches!(
        &error,
        Error::Sealed {
            source: OpenError::Damaged,
            ..
        }
    );
    assert!(damaged, "{error:?}");
    assert!(!format!("{error:?}").contains("horse"));
    assert_eq!(value(&store, SECRET).await.as_deref(), Some(WORDS));
}

pub(super) async fn keys_rotate<S: Subject>() {
    const SECRETS: usize = 20;
    let subject = S::start().await;
    let backend = subject.store();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let open = async || open_keys(&*backend, &path).await;
    let place = |number: usize| format!("/registry/core/secrets/default/s{number}");
    // One from before there was sealing.
    put(&*backend, &place(0), "0").await;
    let store = sealed(&backend, open().await.unwrap());
    for number in 1..SECRETS {
        put(&store, &place(number), &number.to_string()).await;
    }
    let old = fs::read_to_string(&path).unwrap();
    let (_, new) = Keys::generate();
    fs::write(&path, format!("{new}{old}")).unwrap();
    let store = sealed(&backend, open().await.unwrap());
    assert_eq!(store.reseal(None).await.unwrap(), SECRETS);
    assert_eq!(store.reseal(None).await.unwrap(), 0);
    fs::write(&path, &new).unwrap();
    let store = sealed(&backend, open().await.unwrap());
    for number in 0..SECRETS {
        let expected = Some(number.to_string());
        assert_eq!(value(&store, &place(number)).await, expected);
    }
    // What the old key has sealed stays in the history: for whoever has but the new key it is gone.
    let mut watch = store.watch(b"/registry/", Some(2)).await.unwrap();
    let error = loop {
        match next(&mut watch).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Compacted { .. }), "{error:?}");
    fs::write(&path, &old).unwrap();
    let error = open().await.unwrap_err();
    assert!(matches!(error, KeyError::Wrong { .. }), "{error:?}");
}

pub(super) async fn the_wrong_key_is_said_so<S: Subject>() {
    use std::os::unix::fs::PermissionsExt;
    let subject = S::start().await;
    let backend = subject.store();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    open_keys(&*backend, &path("a")).await.unwrap();
    let mode = fs::metadata(path("a")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    open_keys(&*backend, &path("a")).await.unwrap();
    let error = open_keys(&*backend, &path("b")).await.unwrap_err();
    assert!(matches!(error, KeyError::Missing { .. }), "{error:?}");
    assert!(!path("b").exists());
    fs::write(path("b"), Keys::generate().1).unwrap();
    fs::set_permissions(path("b"), fs::Permissions::from_mode(0o600)).unwrap();
    let error = open_keys(&*backend, &path("b")).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("not in the encryption key file"),
        "{source}"
    );
    fs::set_permissions(path("a"), fs::Permissions::from_mode(0o644)).unwrap();
    let error = open_keys(&*backend, &path("a")).await.unwrap_err();
    assert!(matches!(error, KeyError::Public { .. }), "{error:?}");
}
