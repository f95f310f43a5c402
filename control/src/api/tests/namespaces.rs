//! What every namespace has is there again when somebody took it away.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{Cluster, cluster_of, named};
use crate::api::{Api, DeleteOptions, ResourceId, WriteOptions};
use crate::resource::rows::{CONFIG_MAPS, SERVICE_ACCOUNTS};

const ROOT: &str = "kube-root-ca.crt";

/// Waits for an object that is as it should be.
async fn appears(
    cluster: &Cluster,
    resource: ResourceId,
    name: &str,
    is_right: impl Fn(&Value) -> bool,
) -> Value {
    let looking = async {
        loop {
            match cluster.get(&cluster.caller, resource, &named(name)).await {
                Ok(found) if is_right(&found) => return found,
                _ => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(Duration::from_secs(10), looking)
        .await
        .unwrap_or_else(|_| panic!("{name} does not appear"))
}

#[tokio::test]
async fn what_every_namespace_has_comes_back() {
    let cluster = cluster_of(|_| Vec::new(), Some("PEM".to_owned())).await;
    for (resource, name) in [(SERVICE_ACCOUNTS, "default"), (CONFIG_MAPS, ROOT)] {
        let first = appears(&cluster, resource, name, |_| true).await;
        let options = DeleteOptions::default();
        cluster
            .delete(&cluster.caller, resource, &named(name), &options)
            .await
            .expect("deleted");
        let uid = first["metadata"]["uid"].clone();
        appears(&cluster, resource, name, |found| {
            found["metadata"]["uid"] != uid
        })
        .await;
    }
}

#[tokio::test]
async fn a_changed_certificate_is_set_right() {
    let cluster = cluster_of(|_| Vec::new(), Some("PEM".to_owned())).await;
    let mut map = appears(&cluster, CONFIG_MAPS, ROOT, |_| true).await;
    map["data"] = json!({"ca.crt": "another's"});
    let options = WriteOptions::default();
    cluster
        .update(
            &cluster.caller,
            CONFIG_MAPS,
            &named(ROOT),
            None,
            map,
            &options,
        )
        .await
        .expect("changed");
    let is_right = |found: &Value| found["data"]["ca.crt"] == "PEM";
    appears(&cluster, CONFIG_MAPS, ROOT, is_right).await;
}
