//! Admission is told how each write that it admitted ended.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{cluster_with, config, named};
use crate::api::admission::{Admission, Operation, Review};
use crate::api::{Api, DeleteOptions, ResourceId, Status, WriteOptions, meta};
use crate::resource::rows::CONFIG_MAPS;

#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn note(&self, what: &str, review: &Review<'_>) {
        let line = format!("{what} {:?} {}", review.operation, review.key.name);
        self.0.lock().expect("no panic").push(line);
    }

    fn noted(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

#[async_trait]
impl Admission for Recorder {
    fn handles(&self, resource: ResourceId) -> bool {
        resource == CONFIG_MAPS
    }

    async fn admit(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Status> {
        if review.key.name == "refused" {
            return Err(Status::forbidden(review.resource, "refused", "no"));
        }
        if review.operation != Operation::Delete {
            object["data"]["seen"] = json!("yes");
        }
        self.note("admit", review);
        Ok(())
    }

    async fn committed(&self, review: &Review<'_>, object: &Value) {
        assert_eq!(object["data"]["seen"], "yes");
        self.note("committed", review);
    }

    async fn abandoned(&self, review: &Review<'_>, _object: &Value) {
        self.note("abandoned", review);
    }
}

#[tokio::test]
async fn admission_is_settled_once_for_every_write() {
    let recorder = Arc::new(Recorder::default());
    let cluster = cluster_with(vec![recorder.clone()]).await;
    let made = cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect("new");
    assert_eq!(made["data"]["seen"], "yes");
    assert_eq!(recorder.noted(), ["admit Create a", "committed Create a"]);
    cluster
        .make(CONFIG_MAPS, config("a", "1"))
        .await
        .expect_err("taken");
    assert!(
        recorder.noted().is_empty(),
        "nothing is taken for what cannot be"
    );
    let mut bad = config("b", "1");
    bad["metadata"]["labels"]["v"] = json!("not valid!");
    cluster.make(CONFIG_MAPS, bad).await.expect_err("invalid");
    assert_eq!(recorder.noted(), ["admit Create b", "abandoned Create b"]);
    let dry = WriteOptions {
        dry_run: true,
        ..WriteOptions::default()
    };
    cluster
        .create(
            &cluster.caller,
            CONFIG_MAPS,
            Some("default"),
            config("c", "1"),
            &dry,
        )
        .await
        .expect("could be");
    assert_eq!(recorder.noted(), ["admit Create c", "abandoned Create c"]);
    let refused = cluster.make(CONFIG_MAPS, config("refused", "1")).await;
    assert_eq!(refused.expect_err("refused").code, 403);
    assert!(recorder.noted().is_empty());
    cluster
        .delete(
            &cluster.caller,
            CONFIG_MAPS,
            &named("a"),
            &DeleteOptions::default(),
        )
        .await
        .expect("there");
    assert_eq!(recorder.noted(), ["admit Delete a", "committed Delete a"]);
    assert!(!meta::uid(&made).is_empty());
}
