//! The node's signs of life: a Lease every ten seconds, and the Node's status where the API shows another or an old one.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    ClusterError, NodeFacts, Pressure,
    node::{self, NodeState},
    request,
};
use crate::errors::chain;

const NAMESPACE: &str = "kube-node-lease";
const RENEW_EVERY: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// The node counts as lost after this long without a renewal.
const LEASE_SECONDS: i32 = 40;
/// An unchanged status is written again this often.
const STATUS_EVERY: Duration = Duration::from_mins(5);

/// Keeps one node alive in the cluster's eyes.
pub struct Heartbeat {
    client: Client,
    facts: NodeFacts,
    state_dir: PathBuf,
    node_uid: String,
    written: Option<Instant>,
}

impl Heartbeat {
    /// For a node as `register` returned it.
    pub fn new(client: Client, facts: NodeFacts, state_dir: PathBuf) -> Self {
        Self {
            client,
            facts,
            state_dir,
            node_uid: String::new(),
            written: None,
        }
    }

    /// Beats for ever. While the control plane is away it tries every second, so that the node is back as soon as it is.
    pub async fn run(mut self) {
        let mut ticks = interval(RETRY_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed: Option<Instant> = None;
        let mut is_failing = false;
        loop {
            ticks.tick().await;
            if renewed.is_some_and(|at| at.elapsed() < RENEW_EVERY) {
                continue;
            }
            match self.beat().await {
                Ok(()) => {
                    renewed = Some(Instant::now());
                    if std::mem::take(&mut is_failing) {
                        tracing::info!("the control plane hears the node again");
                    }
                }
                // Once a silence is enough in the log.
                Err(error) if !is_failing => {
                    is_failing = true;
                    tracing::warn!(error = %error.chain(), "no heartbeat got through");
                }
                Err(_) => {}
            }
        }
    }

    async fn beat(&mut self) -> Result<(), ClusterError> {
        self.write_status_if_due().await?;
        self.renew_lease().await
    }

    /// Compares with what the API shows, not with what was written last: the control plane marks a node that it has not
    /// heard from.
    async fn write_status_if_due(&mut self) -> Result<(), ClusterError> {
        let name = &self.facts.name;
        let shown = match node::fetch(&self.client, name).await {
            // Someone deleted the Node under a living agent.
            Err(error) if error.code() == Some(404) => {
                node::ensure_node(&self.client, &self.facts).await?
            }
            shown => shown?,
        };
        self.node_uid = shown.metadata.uid.unwrap_or_default();
        let before = shown.status.and_then(|status| status.conditions);
        let pressure = Pressure::read(&self.state_dir).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "can't measure the node's pressure");
            Pressure::default()
        });
        let state = NodeState {
            is_ready: true,
            pressure,
        };
        let now = jiff::Timestamp::now();
        let status = node::status(&self.facts, state, before.as_deref(), now);
        let own = status.conditions.as_deref().unwrap_or_default();
        let is_fresh = self.written.is_some_and(|at| at.elapsed() < STATUS_EVERY);
        if is_fresh && !node::conditions_differ(own, before.as_deref()) {
            return Ok(());
        }
        node::patch_status(&self.client, name, &status).await?;
        self.written = Some(Instant::now());
        Ok(())
    }

    async fn renew_lease(&self) -> Result<(), ClusterError> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let name = &self.facts.name;
        let now = MicroTime(jiff::Timestamp::now());
        let body = json!({"spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now,
        }});
        let body = Patch::Merge(body);
        let params = PatchParams::default();
        let work = api.patch(name, &params, &body);
        match request("renew lease", name, work).await {
            Err(error) if error.code() == Some(404) => {
                let lease = self.new_lease(now);
                let params = PostParams::default();
                let work = api.create(&params, &lease);
                request("create lease", name, work).await.map(drop)
            }
            renewed => renewed.map(drop),
        }
    }

    fn new_lease(&self, now: MicroTime) -> Lease {
        let name = &self.facts.name;
        Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(NAMESPACE.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid: self.node_uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        }
    }
}
