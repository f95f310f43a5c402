//! Events: what happened to an object, for people. A repeated event counts up instead of filling the store, and no
//! controller waits for one to be written.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    client::Client,
    clock::Clock,
    meta,
    resources::EVENTS,
    worker::{Error, chain},
};
use crate::api::ObjectKey;

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// It is.
    Normal,
    /// It is not.
    Warning,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// "apps/v1".
    pub api_version: String,
    /// "Deployment".
    pub kind: String,
    /// metadata.namespace, if the kind has one.
    pub namespace: Option<String>,
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
}

impl Regarding {
    /// A typed object.
    pub fn object<T: Resource + Metadata<Ty = ObjectMeta>>(object: &T) -> Self {
        let metadata = object.metadata();
        Self {
            api_version: T::API_VERSION.to_owned(),
            kind: T::KIND.to_owned(),
            namespace: metadata.namespace.clone(),
            name: meta::name(metadata).to_owned(),
            uid: meta::uid(metadata).to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Occurrence {
    regarding: Regarding,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Where controllers put events; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<(Occurrence, Timestamp)>,
    clock: Arc<dyn Clock>,
}

/// How many events may wait to be written before new ones are dropped (and logged).
const WAITING: usize = 4096;
/// How many events are remembered so that a repetition counts up.
const REMEMBERED: usize = 4096;

impl Recorder {
    /// A recorder, and the task that writes what it records.
    pub fn new(
        client: Client,
        component: &'static str,
        clock: &Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let writer = Writer {
            client,
            component,
            known: HashMap::new(),
            order: VecDeque::new(),
        };
        let recorder = Self {
            sender,
            clock: Arc::clone(clock),
        };
        (recorder, writer.run(receiver, shutdown))
    }

    /// Records that something happened to an object.
    pub fn record(
        &self,
        regarding: Regarding,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let occurrence = Occurrence {
            regarding,
            severity,
            reason,
            message,
        };
        if let Err(refused) = self.sender.try_send((occurrence, self.clock.now())) {
            let (occurrence, _) = refused.into_inner();
            warn!(?occurrence, "an event is lost: too many wait to be written");
        }
    }
}

struct Known {
    name: String,
    count: u32,
}

struct Writer {
    client: Client,
    component: &'static str,
    known: HashMap<Occurrence, Known>,
    order: VecDeque<Occurrence>,
}

impl Writer {
    async fn run(
        mut self,
        mut receiver: mpsc::Receiver<(Occurrence, Timestamp)>,
        shutdown: CancellationToken,
    ) {
        let write_all = async {
            while let Some((occurrence, when)) = receiver.recv().await {
                if let Err(cause) = self.write(&occurrence, when).await {
                    let cause = chain(&cause);
                    warn!(?occurrence, cause, "an event is lost");
                }
            }
        };
        shutdown.run_until_cancelled(write_all).await;
    }

    async fn write(&mut self, occurrence: &Occurrence, when: Timestamp) -> Result<(), Error> {
        let namespace = occurrence
            .regarding
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        if let Some(known) = self.known.get_mut(occurrence) {
            known.count += 1;
            let key = ObjectKey {
                namespace: Some(namespace.clone()),
                name: known.name.clone(),
            };
            let patch = json!({"count": known.count, "lastTimestamp": seconds(when)});
            match self.client.merge_at(EVENTS, &key, None, None, patch).await {
                Ok(_) => return Ok(()),
                // It has outlived its time; the next one begins a new count.
                Err(error) if error.code() == Some(404) => {
                    self.known.remove(occurrence);
                }
                Err(error) => return Err(error),
            }
        }
        let component = voice(self.component, &occurrence.regarding.kind);
        let mut mark = when.as_nanosecond();
        let name = loop {
            let name = format!("{}.{mark:x}", occurrence.regarding.name);
            let event = event(occurrence, component, &namespace, &name, when);
            match self.client.create(EVENTS, Some(&namespace), event).await {
                Ok(_) => break name,
                // Something else happened to the object at the same moment.
                Err(status) if status.is_already_exists() => mark += 1,
                // A namespace that is being cleared takes no events, and none is missed.
                Err(status) if status.code == 403 || status.code == 404 => return Ok(()),
                Err(source) => {
                    let action = format!("create event {namespace}/{name}");
                    return Err(Error::Api { action, source });
                }
            }
        };
        self.remember(occurrence.clone(), name);
        Ok(())
    }

    fn remember(&mut self, occurrence: Occurrence, name: String) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(occurrence.clone());
        self.known.insert(occurrence, Known { name, count: 1 });
    }
}

/// Who speaks, as Kubernetes names its controllers: each kind's has its own voice.
fn voice(component: &'static str, kind: &str) -> &'static str {
    match (component, kind) {
        ("kube-controller-manager", "Deployment") => "deployment-controller",
        ("kube-controller-manager", "ReplicaSet") => "replicaset-controller",
        ("kube-controller-manager", "StatefulSet") => "statefulset-controller",
        ("kube-controller-manager", "DaemonSet") => "daemonset-controller",
        ("kube-controller-manager", "Job") => "job-controller",
        ("kube-controller-manager", "CronJob") => "cronjob-controller",
        ("kube-controller-manager", "Node") => "node-controller",
        ("kube-controller-manager", "Service") => "endpoint-slice-controller",
        _ => component,
    }
}

fn event(
    occurrence: &Occurrence,
    component: &str,
    namespace: &str,
    name: &str,
    when: Timestamp,
) -> Value {
    let regarding = &occurrence.regarding;
    let mut object = json!({
        "apiVersion": regarding.api_version,
        "kind": regarding.kind,
        "name": regarding.name,
        "uid": regarding.uid,
    });
    if let Some(namespace) = &regarding.namespace {
        object["namespace"] = json!(namespace);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": name},
        "involvedObject": object,
        "type": occurrence.severity.text(),
        "reason": occurrence.reason,
        "message": occurrence.message,
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "",
        "firstTimestamp": seconds(when),
        "lastTimestamp": seconds(when),
        "count": 1,
    })
}

/// A time as `metav1.Time` is written: whole seconds, UTC.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
