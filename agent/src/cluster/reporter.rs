//! Writes pods' statuses and finishes their deletion.
//!
//! One entry a pod holds the newest status that the node knows; at most one request a pod is under way, a bounded number
//! in all. A failed write is tried again with whatever is newest then.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use tokio::sync::{Semaphore, mpsc};

use super::{
    ClusterError, request,
    status_patch::{differs, status_patch},
};
use crate::{errors::Backoff, pod::PodRef};

/// Requests under way at once, so that a node with hundreds of pods doesn't flood a server that has just come back.
const CONCURRENT_REQUESTS: usize = 16;

/// How long the node waits before it contradicts what the control plane wrote into a status.
const OBJECTION_PAUSE: Duration = Duration::from_secs(1);

/// What the reporter is told.
#[derive(Clone, Debug)]
pub enum ReporterInput {
    /// The node's own view of a pod.
    Status(PodRef, Box<PodStatus>),
    /// Nothing of a pod is left on the node.
    Terminated(PodRef),
    /// The API's view of a pod.
    Observed(Arc<Pod>),
    /// All the pods that the API has for this node.
    Present(Vec<Arc<Pod>>),
    /// The API has this pod no more.
    Gone(String),
}

/// A pod's pending writes.
struct Entry {
    pod: PodRef,
    status: Option<Box<PodStatus>>,
    observed: Option<Box<PodStatus>>,
    is_dirty: bool,
    is_terminated: bool,
    is_busy: bool,
    backoff: Backoff,
}

impl Entry {
    fn new(pod: PodRef) -> Self {
        Self {
            pod,
            status: None,
            observed: None,
            is_dirty: false,
            is_terminated: false,
            is_busy: false,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(10)),
        }
    }
}

/// How something that was under way for a pod ended.
enum Outcome {
    Patched(Result<Option<Box<PodStatus>>, ClusterError>),
    Deleted(Result<(), ClusterError>),
    Paused,
}

/// The writer of pods' statuses.
pub struct Reporter {
    client: Client,
    requests: Arc<Semaphore>,
    entries: HashMap<String, Entry>,
    under_way: FuturesUnordered<BoxFuture<'static, (String, Outcome)>>,
}

impl Reporter {
    /// A reporter that has nothing to report yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            requests: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
            entries: HashMap::new(),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Works until nobody can tell it anything any more.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<ReporterInput>) {
        loop {
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take_in(input),
                    None => return,
                },
                Some((uid, outcome)) = self.under_way.next() => self.conclude(&uid, outcome),
            }
        }
    }

    fn take_in(&mut self, input: ReporterInput) {
        match input {
            ReporterInput::Status(pod, status) => {
                let entry = self.entry(pod);
                // A write under way is not yet in what was observed.
                entry.is_dirty = entry.is_busy || differs(&status, entry.observed.as_deref());
                entry.status = Some(status);
                let uid = entry.pod.uid.clone();
                self.proceed(&uid);
            }
            ReporterInput::Terminated(pod) => {
                let entry = self.entry(pod);
                entry.is_terminated = true;
                let uid = entry.pod.uid.clone();
                self.proceed(&uid);
            }
            ReporterInput::Observed(pod) => self.observe(&pod),
            ReporterInput::Present(pods) => {
                let present: Vec<&str> = pods
                    .iter()
                    .filter_map(|pod| pod.metadata.uid.as_deref())
                    .collect();
                self.entries
                    .retain(|uid, _| present.contains(&uid.as_str()));
                for pod in &pods {
                    self.observe(pod);
                }
            }
            ReporterInput::Gone(uid) => {
                self.entries.remove(&uid);
            }
        }
    }

    fn entry(&mut self, pod: PodRef) -> &mut Entry {
        self.entries
            .entry(pod.uid.clone())
            .or_insert_with(|| Entry::new(pod))
    }

    /// Remembers what the API shows, and objects to it where the node knows better: the control plane marks the pods of
    /// a node that it has not heard from.
    fn observe(&mut self, pod: &Pod) {
        let (Some(uid), Some(name)) = (&pod.metadata.uid, &pod.metadata.name) else {
            return;
        };
        let entry = self.entry(PodRef {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
            uid: uid.clone(),
        });
        entry.observed = pod.status.clone().map(Box::new);
        let objects = entry
            .status
            .as_ref()
            .is_some_and(|own| differs(own, pod.status.as_ref()));
        // While a write is under way the API may show its predecessor.
        if objects && !entry.is_dirty && !entry.is_busy {
            entry.is_dirty = true;
            self.pause(uid, OBJECTION_PAUSE);
        }
    }

    /// Starts the next write of a pod, if there is one and none is under way.
    fn proceed(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        if entry.is_busy {
            return;
        }
        let work = match &entry.status {
            Some(status) if entry.is_dirty => {
                entry.is_dirty = false;
                let body = status_patch(uid, status, entry.observed.as_deref());
                patch(self.client.clone(), entry.pod.clone(), body)
                    .map(Outcome::Patched)
                    .boxed()
            }
            _ if entry.is_terminated => delete(self.client.clone(), entry.pod.clone())
                .map(Outcome::Deleted)
                .boxed(),
            _ => return,
        };
        entry.is_busy = true;
        let (uid, requests) = (uid.to_owned(), self.requests.clone());
        self.under_way.push(Box::pin(async move {
            let _permit = requests.acquire().await;
            (uid, work.await)
        }));
    }

    fn pause(&mut self, uid: &str, pause: Duration) {
        if let Some(entry) = self.entries.get_mut(uid) {
            entry.is_busy = true;
            let uid = uid.to_owned();
            self.under_way.push(Box::pin(async move {
                tokio::time::sleep(pause).await;
                (uid, Outcome::Paused)
            }));
        }
    }

    fn conclude(&mut self, uid: &str, outcome: Outcome) {
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.is_busy = false;
        match outcome {
            Outcome::Paused => {
                // Meanwhile the API may have come to show what the node knows.
                let own = entry.status.as_ref();
                entry.is_dirty = own.is_some_and(|own| differs(own, entry.observed.as_deref()));
                self.proceed(uid);
            }
            Outcome::Patched(Ok(stored)) => {
                entry.observed = stored;
                entry.backoff.reset();
                self.proceed(uid);
            }
            Outcome::Deleted(Ok(())) => {
                self.entries.remove(uid);
            }
            Outcome::Patched(Err(error)) | Outcome::Deleted(Err(error)) if error.is_gone() => {
                tracing::debug!(error = %error.chain(), "the pod's object is gone");
                self.entries.remove(uid);
            }
            Outcome::Patched(Err(error)) if error.is_final() => {
                tracing::error!(error = %error.chain(), "the API refuses a status");
                self.proceed(uid);
            }
            Outcome::Patched(Err(error)) => {
                entry.is_dirty = true;
                self.retry(uid, &error);
            }
            Outcome::Deleted(Err(error)) => self.retry(uid, &error),
        }
    }

    fn retry(&mut self, uid: &str, error: &ClusterError) {
        if let Some(entry) = self.entries.get_mut(uid) {
            let pause = entry.backoff.pause();
            tracing::warn!(error = %error.chain(), retry_in = ?pause, "a pod's write failed");
            self.pause(uid, pause);
        }
    }
}

async fn patch(
    client: Client,
    pod: PodRef,
    body: serde_json::Value,
) -> Result<Option<Box<PodStatus>>, ClusterError> {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let (object, params, body) = (name_of(&pod), PatchParams::default(), Patch::Merge(body));
    let work = api.patch_status(&pod.name, &params, &body);
    let stored = request("patch the status of pod", &object, work).await?;
    Ok(stored.status.map(Box::new))
}

async fn delete(client: Client, pod: PodRef) -> Result<(), ClusterError> {
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    let object = name_of(&pod);
    request("delete pod", &object, api.delete(&pod.name, &params))
        .await
        .map(drop)
}

fn name_of(pod: &PodRef) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
