//! The suite on the embedded store.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::store::Embedded;
use crate::store::embedded::{OpenError, Options};

struct File {
    folder: TempDir,
    store: Option<Embedded>,
}

impl File {
    fn path(&self) -> PathBuf {
        self.folder.path().join("sub/store.redb")
    }

    async fn open(&mut self) {
        let options = Options {
            path: self.path(),
            max_bytes: None,
        };
        self.store = Some(open(options).await);
    }
}

/// Opens a store that another part of the test may just be letting go of: the writer's thread ends on its own time.
pub(super) async fn open(options: Options) -> Embedded {
    let attempts = async {
        loop {
            match Embedded::open_limited(options.clone(), LIMITS).await {
                Ok(store) => return store,
                Err(OpenError::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    timeout(PATIENCE, attempts)
        .await
        .expect("the file is free in time")
}

impl Subject for File {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut subject = Self {
            folder,
            store: None,
        };
        subject.open().await;
        subject
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone().unwrap())
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn restart(&mut self) {
        self.store = None;
        self.open().await;
    }
}

suite!(File);

#[tokio::test]
async fn the_file_is_private_and_locked() {
    let subject = File::start().await;
    let mode = std::fs::metadata(subject.path())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let Err(error) = Embedded::open(subject.path()).await else {
        panic!("two servers share a file");
    };
    assert!(matches!(error, OpenError::InUse { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text");
    std::fs::write(&path, "not a database").unwrap();
    let Err(error) = Embedded::open(&path).await else {
        panic!("a text file is no store");
    };
    assert!(matches!(error, OpenError::Database { .. }), "{error:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "not a database");
    let Err(error) = Embedded::open(folder.path()).await else {
        panic!("a folder is no store");
    };
    assert!(matches!(error, OpenError::File { .. }), "{error:?}");
}

#[tokio::test]
async fn watches_end_with_the_store() {
    let mut subject = File::start().await;
    let mut watch = subject.store().watch(b"/", None).await.unwrap();
    subject.store = None;
    let error = next(&mut watch).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
}
