//! Which key each node joined with, so that nobody takes the name of a node that lives.

use std::sync::Arc;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::api::{Api, Caller, ObjectKey, ResourceId, Status};
use crate::pki::Fingerprint;
use crate::store::{self, Guard, Store, Written};

const PREFIX: &str = "/portolan/members/";
const COMPONENT: &str = "portolan-join";
const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASES: ResourceId = ResourceId {
    group: "coordination.k8s.io",
    version: "v1",
    plural: "leases",
};
/// How long a node without a lease keeps its name: time enough to make one after joining. Also the life of a lease
/// that does not state its own.
const GRACE: SignedDuration = SignedDuration::from_secs(40);

/// The names that are taken.
pub struct Members {
    api: Arc<dyn Api>,
    store: Arc<dyn Store>,
}

#[derive(Serialize, Deserialize)]
struct Member {
    /// The SHA-256 of the public key.
    key: String,
    joined: Timestamp,
}

/// Why a name can't be had.
#[derive(Debug, thiserror::Error)]
pub enum Taken {
    /// Another node lives under it.
    #[error("another node named {0:?} is a member of the cluster and alive")]
    Alive(String),
    /// It could not be found out.
    #[error("can't look up the node's name")]
    Store(#[from] store::Error),
    /// It could not be found out.
    #[error("can't look up the node's lease")]
    Api(#[from] Status),
    /// What the store holds can't be read.
    #[error("the record of node {name:?} is damaged")]
    Damaged {
        /// Whose.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl Members {
    /// Members as the store knows them.
    pub fn new(api: Arc<dyn Api>, store: Arc<dyn Store>) -> Self {
        Self { api, store }
    }

    /// Gives a name to a key. The key that has it may come again at any time; another one only when the node's lease
    /// has run out, for then it has lost its state and begins anew.
    pub async fn admit(&self, name: &str, key: &Fingerprint, now: Timestamp) -> Result<(), Taken> {
        let place = format!("{PREFIX}{name}");
        loop {
            let current = self.store.get(place.as_bytes()).await?;
            let guard = match &current {
                None => Guard::Absent,
                Some(current) => {
                    let member: Member = serde_json::from_slice(&current.value)
                        .map_err(|source| damaged(name, source))?;
                    if member.key == key.to_string() {
                        return Ok(());
                    }
                    if self.is_alive(name, &member, now).await? {
                        return Err(Taken::Alive(name.to_owned()));
                    }
                    Guard::At(current.mod_revision)
                }
            };
            let member = Member {
                key: key.to_string(),
                joined: now,
            };
            let value = serde_json::to_vec(&member).map_err(|source| damaged(name, source))?;
            let put = self
                .store
                .put(place.as_bytes(), Bytes::from(value), guard, None);
            // Refused: another one was faster, and is looked at in the next round.
            if let Written::Done(_) = put.await? {
                return Ok(());
            }
        }
    }

    async fn is_alive(&self, name: &str, member: &Member, now: Timestamp) -> Result<bool, Taken> {
        if now.duration_since(member.joined) < GRACE {
            return Ok(true);
        }
        let key = ObjectKey {
            namespace: Some(LEASE_NAMESPACE.to_owned()),
            name: name.to_owned(),
        };
        let lease = match self.api.get(&Caller::system(COMPONENT), LEASES, &key).await {
            Ok(lease) => lease,
            Err(status) if status.code == 404 => return Ok(false),
            Err(status) => return Err(Taken::Api(status)),
        };
        let renewed = lease["spec"]["renewTime"].as_str();
        let Some(renewed) = renewed.and_then(|text| text.parse::<Timestamp>().ok()) else {
            return Ok(false);
        };
        let life = lease["spec"]["leaseDurationSeconds"].as_i64();
        let life = life.map_or(GRACE, SignedDuration::from_secs);
        Ok(now.duration_since(renewed) < life)
    }
}

fn damaged(name: &str, source: serde_json::Error) -> Taken {
    Taken::Damaged {
        name: name.to_owned(),
        source,
    }
}
