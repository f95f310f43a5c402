//! The Lease kube-system/portolan-control, which tells people who leads. It decides nothing: the store's own key does.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::{Api, Caller, ObjectKey, Status, WriteOptions};
use crate::resource::rows::LEASES;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "portolan-control";
const RENEW_EVERY: Duration = Duration::from_secs(10);
const DURATION_SECONDS: i64 = 15;
const RETRY: Duration = Duration::from_secs(1);

/// Says who leads for as long as the term goes, until it is dropped.
pub async fn show(api: Arc<dyn Api>, holder: String) {
    let acquired = now();
    loop {
        let pause = match write(&*api, &holder, &acquired).await {
            Ok(()) => RENEW_EVERY,
            Err(status) => {
                // The namespace may not be there yet.
                tracing::debug!(%status, "the leader's Lease is not written yet");
                RETRY
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

async fn write(api: &dyn Api, holder: &str, acquired: &str) -> Result<(), Status> {
    let caller = Caller::system("portolan-control");
    let options = WriteOptions::default();
    let key = ObjectKey {
        namespace: Some(NAMESPACE.to_owned()),
        name: NAME.to_owned(),
    };
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": DURATION_SECONDS,
            "acquireTime": acquired,
            "renewTime": now(),
            "leaseTransitions": 0,
        },
    });
    let current = match api.get(&caller, LEASES, &key).await {
        Ok(current) => current,
        Err(status) if status.code == 404 => {
            return api
                .create(&caller, LEASES, Some(NAMESPACE), lease, &options)
                .await
                .map(drop);
        }
        Err(status) => return Err(status),
    };
    let known = &current["spec"];
    let is_new = known["holderIdentity"] != *holder;
    let before = known["leaseTransitions"].as_i64().unwrap_or(0);
    lease["spec"]["leaseTransitions"] = Value::from(before + i64::from(is_new));
    lease["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
    api.update(&caller, LEASES, &key, None, lease, &options)
        .await
        .map(drop)
}
