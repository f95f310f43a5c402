//! A store without space refuses writes, keeps what it has, and goes on when there is space again.

use super::embedded::open;
use super::*;
use crate::store::embedded::Options;

const MAX_BYTES: u64 = 4 << 20;

async fn fill(store: &dyn Store) -> (Vec<String>, Error) {
    let mut written = Vec::new();
    for number in 0..1000 {
        let key = format!("/fill/{number:04}");
        let value = Bytes::from(vec![b'x'; 64 << 10]);
        match store.put(key.as_bytes(), value, Guard::Any, None).await {
            Ok(done_at) => {
                done(done_at);
                written.push(key);
            }
            Err(error) => return (written, error),
        }
    }
    panic!("64 MB fit in {MAX_BYTES} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let options = Options {
        path: path.clone(),
        max_bytes: Some(MAX_BYTES),
    };
    let store = open(options).await;
    let mut watch = store.watch(b"/fill/", None).await.unwrap();
    let (written, error) = fill(&store).await;
    assert!(matches!(error, Error::Full(_)), "{error:?}");
    assert!(!written.is_empty());
    let stored = store.range(all("/fill/")).await.unwrap();
    let keys: Vec<_> = stored.items.iter().map(|kv| text(&kv.key)).collect();
    assert_eq!(keys, written);
    // Watches go on, and a write that fits still succeeds.
    assert_eq!(
        changes(&mut watch, written.len()).await.len(),
        written.len()
    );
    let line = put(&store, "/small", "fits").await;
    // Forgetting makes room.
    for key in &written[..written.len() / 2] {
        delete(&store, key).await;
    }
    store
        .compact(store.revision().await.unwrap())
        .await
        .unwrap();
    assert!(store.revision().await.unwrap() > line);
    drop(store);
    let options = Options {
        path,
        max_bytes: None,
    };
    let store = open(options).await;
    assert_eq!(value(&store, "/small").await.as_deref(), Some("fits"));
    let left = store.range(all("/fill/")).await.unwrap();
    assert_eq!(left.items.len(), written.len() - written.len() / 2);
    let value = Bytes::from(vec![b'x'; 1 << 20]);
    for number in 0..8 {
        let key = format!("/more/{number}");
        done(
            store
                .put(key.as_bytes(), value.clone(), Guard::Any, None)
                .await
                .unwrap(),
        );
    }
}
