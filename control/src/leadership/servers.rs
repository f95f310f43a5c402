//! Which servers there are: each says so under a lease, and the leader puts those that live behind the Service
//! `kubernetes`, from where pods and agents learn of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::election::{TTL, end};
use crate::api::{Api, Caller, DeleteOptions, ObjectKey, Status, WriteOptions};
use crate::bootstrap::SERVICE;
use crate::resource::rows::ENDPOINT_SLICES;
use crate::store::{Error, Guard, LeaseId, RangeQuery, Store, WatchEvent};

/// One key a server.
pub const SERVERS: &str = "/portolan/servers/";
const COMPONENT: &str = "apiserver";
const RENEW_EVERY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(200);
/// How soon the servers are looked at again though the watch said nothing.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// Where pods reach it; of one family.
    pub addresses: Vec<IpAddr>,
    /// At which port.
    pub port: u16,
}

/// Says that a server is there until `shutdown`, and takes it back then.
pub async fn register(
    store: Arc<dyn Store>,
    name: String,
    registration: Registration,
    shutdown: CancellationToken,
) {
    let key = format!("{SERVERS}{name}");
    let mut lease = None;
    let keep = async {
        loop {
            match renew(&*store, &key, &registration, &mut lease).await {
                Ok(()) => tokio::time::sleep(RENEW_EVERY).await,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "can't say that this server is there; trying again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(keep).await;
    if let Some(lease) = lease {
        end(&*store, lease).await;
    }
}

async fn renew(
    store: &dyn Store,
    key: &str,
    registration: &Registration,
    lease: &mut Option<LeaseId>,
) -> Result<(), Error> {
    if let Some(held) = *lease {
        match store.lease_keep_alive(held).await {
            Err(Error::NoSuchLease(_)) => *lease = None,
            kept => return kept,
        }
    }
    let granted = store.lease_grant(TTL).await?;
    *lease = Some(granted);
    let value = serde_json::to_vec(registration).expect("addresses and a port are JSON");
    store
        .put(key.as_bytes(), value.into(), Guard::Any, Some(granted))
        .await?;
    Ok(())
}

/// All servers that are there, in the order of their names.
async fn registered(store: &dyn Store) -> Result<Vec<Registration>, Error> {
    let query = RangeQuery {
        prefix: Bytes::from_static(SERVERS.as_bytes()),
        ..RangeQuery::default()
    };
    let found = store.range(query).await?.items;
    let parse = |kv: &crate::store::KeyValue| match serde_json::from_slice(&kv.value) {
        Ok(registration) => Some(registration),
        Err(error) => {
            tracing::error!(%error, key = %String::from_utf8_lossy(&kv.key), "a server says nothing readable");
            None
        }
    };
    Ok(found.iter().filter_map(parse).collect())
}

/// Keeps the Service's endpoints up to date, until it is dropped; `own` counts as there though it may not be yet.
pub async fn publish(store: Arc<dyn Store>, api: Arc<dyn Api>, own: Registration) {
    loop {
        if let Err(status) = publish_changes(&store, &*api, &own).await {
            tracing::warn!(%status, "the servers' endpoints can't be written; trying again");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn publish_changes(
    store: &Arc<dyn Store>,
    api: &dyn Api,
    own: &Registration,
) -> Result<(), Status> {
    let mut watch = store.watch(SERVERS.as_bytes(), None).await?;
    loop {
        publish_once(&**store, api, own).await?;
        let changed = async {
            while let Some(event) = watch.next().await {
                if matches!(event?, WatchEvent::Changes(_)) {
                    return Ok(true);
                }
            }
            Ok::<_, Error>(false)
        };
        match tokio::time::timeout(LOOK_AGAIN, changed).await {
            Ok(Ok(false)) => return Ok(()),
            Ok(changed) => {
                changed?;
            }
            Err(_) => {}
        }
    }
}

/// Writes the endpoints as they are now, if that is not what is there.
pub async fn publish_once(
    store: &dyn Store,
    api: &dyn Api,
    own: &Registration,
) -> Result<(), Status> {
    let mut servers = registered(store).await?;
    servers.push(own.clone());
    // The Service has one port; so have its servers.
    let (same, other): (Vec<_>, Vec<_>) =
        servers.iter().partition(|server| server.port == own.port);
    if !other.is_empty() {
        tracing::debug!(?other, "servers at other ports are left out of the Service");
    }
    let addresses: BTreeSet<IpAddr> = same
        .iter()
        .flat_map(|server| server.addresses.iter().copied())
        .filter(|address| {
            own.addresses
                .first()
                .is_none_or(|first| first.is_ipv4() == address.is_ipv4())
        })
        .collect();
    if addresses.is_empty() {
        tracing::debug!("no server advertises an address that pods reach");
        return Ok(());
    }
    write(api, slice(&addresses, own.port)).await
}

fn slice(addresses: &BTreeSet<IpAddr>, port: u16) -> Value {
    let family = if addresses.iter().all(IpAddr::is_ipv4) {
        "IPv4"
    } else {
        "IPv6"
    };
    let endpoints = addresses.iter().map(
        |address| json!({ "addresses": [address.to_string()], "conditions": { "ready": true } }),
    );
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": SERVICE,
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": SERVICE },
        },
        "addressType": family,
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    })
}

async fn write(api: &dyn Api, mut slice: Value) -> Result<(), Status> {
    let caller = Caller::system(COMPONENT);
    let options = WriteOptions::default();
    let key = ObjectKey {
        namespace: Some("default".to_owned()),
        name: SERVICE.to_owned(),
    };
    let current = match api.get(&caller, ENDPOINT_SLICES, &key).await {
        Ok(current) => Some(current),
        Err(status) if status.code == 404 => None,
        Err(status) => return Err(status),
    };
    if let Some(current) = current {
        if current["addressType"] == slice["addressType"] {
            slice["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
            let updated = api
                .update(&caller, ENDPOINT_SLICES, &key, None, slice, &options)
                .await;
            return updated.map(drop);
        }
        // The family can't be changed in place.
        let delete = DeleteOptions::default();
        api.delete(&caller, ENDPOINT_SLICES, &key, &delete).await?;
    }
    api.create(&caller, ENDPOINT_SLICES, Some("default"), slice, &options)
        .await
        .map(drop)
}
