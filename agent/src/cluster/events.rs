//! Events: what a user reads at the end of `kubectl describe`. Repeated ones are counted, floods are cut off.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};

use super::{ClusterError, request};
use crate::{
    errors::Backoff,
    pod::{EventSeverity, PodRef},
};

/// Events that wait while the control plane is away; what comes then is lost, and said to be.
const QUEUE: usize = 1024;
/// Different events that are remembered so that their repetitions are counted.
const REMEMBERED: usize = 4096;
/// Attempts for one event.
const ATTEMPTS: usize = 12;
/// What one object may send at once, and how soon it may send one more.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_mins(5);
/// What core/v1 events are signed with.
const COMPONENT: &str = "portolan-agent";

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EventSubject {
    /// A pod of this node.
    Pod(PodRef),
    /// The node itself.
    Node(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Occurrence {
    subject: EventSubject,
    is_warning: bool,
    reason: String,
    message: String,
}

/// Where events are handed in. Never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(client: Client, node_name: String) -> Self {
        let (queue, occurrences) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, node_name, occurrences));
        Self { queue }
    }

    /// Records an event.
    pub fn record(
        &self,
        subject: EventSubject,
        severity: EventSeverity,
        reason: &str,
        message: String,
    ) {
        let occurrence = Occurrence {
            subject,
            is_warning: severity == EventSeverity::Warning,
            reason: reason.to_owned(),
            message,
        };
        if let Err(error) = self.queue.try_send(occurrence) {
            tracing::warn!(%error, reason, "an event is lost");
        }
    }
}

async fn write_all(client: Client, node_name: String, mut queue: mpsc::Receiver<Occurrence>) {
    let mut correlator = Correlator::default();
    while let Some(occurrence) = queue.recv().await {
        let Some(record) = correlator.correlate(&occurrence, Instant::now()) else {
            continue;
        };
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        for attempt in 1..=ATTEMPTS {
            match write(&client, &node_name, &occurrence, &record).await {
                Ok(()) => break,
                // The namespace is going, or the event is not to the API's liking.
                Err(error) if error.is_final() || matches!(error.code(), Some(403 | 404)) => {
                    tracing::debug!(error = %error.chain(), "an event is refused");
                    break;
                }
                Err(error) if attempt == ATTEMPTS => {
                    tracing::warn!(error = %error.chain(), "an event is given up");
                }
                Err(_) => tokio::time::sleep(backoff.pause()).await,
            }
        }
    }
}

/// One Event object and how often it has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    name: String,
    first: jiff::Timestamp,
    count: i32,
}

/// Tells repetitions from news, and floods from either.
#[derive(Default)]
struct Correlator {
    records: HashMap<Occurrence, Record>,
    order: VecDeque<Occurrence>,
    allowances: HashMap<EventSubject, (u32, Instant)>,
}

impl Correlator {
    /// `None`: the subject has said too much.
    fn correlate(&mut self, occurrence: &Occurrence, now: Instant) -> Option<Record> {
        if !self.allow(&occurrence.subject, now) {
            return None;
        }
        if let Some(record) = self.records.get_mut(occurrence) {
            record.count = record.count.saturating_add(1);
            return Some(record.clone());
        }
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.records.remove(&oldest);
        }
        let first = jiff::Timestamp::now();
        let record = Record {
            name: format!(
                "{}.{:x}",
                name_of(&occurrence.subject),
                first.as_nanosecond()
            ),
            first,
            count: 1,
        };
        self.records.insert(occurrence.clone(), record.clone());
        self.order.push_back(occurrence.clone());
        Some(record)
    }

    fn allow(&mut self, subject: &EventSubject, now: Instant) -> bool {
        if self.allowances.len() >= REMEMBERED && !self.allowances.contains_key(subject) {
            self.allowances
                .retain(|_, (_, at)| now.duration_since(*at) < REFILL);
        }
        let (left, at) = self
            .allowances
            .entry(subject.clone())
            .or_insert((BURST, now));
        let refilled = now.duration_since(*at).as_secs() / REFILL.as_secs();
        if refilled > 0 {
            *left = BURST.min(left.saturating_add(u32::try_from(refilled).unwrap_or(BURST)));
            *at = now;
        }
        let is_allowed = *left > 0;
        *left = left.saturating_sub(1);
        is_allowed
    }
}

async fn write(
    client: &Client,
    node_name: &str,
    occurrence: &Occurrence,
    record: &Record,
) -> Result<(), ClusterError> {
    let event = event(node_name, occurrence, record);
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if record.count > 1 {
        let body = Patch::Merge(json!({
            "count": event.count,
            "lastTimestamp": event.last_timestamp,
        }));
        let params = PatchParams::default();
        let work = api.patch(&record.name, &params, &body);
        match request("patch event", &record.name, work).await {
            // It has expired: begin anew.
            Err(error) if error.code() == Some(404) => {}
            patched => return patched.map(drop),
        }
    }
    let params = PostParams::default();
    let work = api.create(&params, &event);
    match request("create event", &record.name, work).await {
        // An answer to an earlier attempt was lost.
        Err(error) if error.code() == Some(409) => Ok(()),
        created => created.map(drop),
    }
}

fn name_of(subject: &EventSubject) -> &str {
    match subject {
        EventSubject::Pod(pod) => &pod.name,
        EventSubject::Node(name) => name,
    }
}

fn event(node_name: &str, occurrence: &Occurrence, record: &Record) -> Event {
    let (kind, namespace, uid) = match &occurrence.subject {
        EventSubject::Pod(pod) => ("Pod", Some(pod.namespace.clone()), pod.uid.clone()),
        EventSubject::Node(name) => ("Node", None, name.clone()),
    };
    let severity = if occurrence.is_warning {
        "Warning"
    } else {
        "Normal"
    };
    Event {
        metadata: ObjectMeta {
            name: Some(record.name.clone()),
            namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name_of(&occurrence.subject).to_owned()),
            namespace,
            uid: Some(uid),
            ..ObjectReference::default()
        },
        reason: Some(occurrence.reason.clone()),
        message: Some(occurrence.message.clone()),
        type_: Some(severity.to_owned()),
        source: Some(EventSource {
            component: Some(COMPONENT.to_owned()),
            host: Some(node_name.to_owned()),
        }),
        first_timestamp: Some(Time(record.first)),
        last_timestamp: Some(Time(jiff::Timestamp::now())),
        count: Some(record.count),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node_name.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        Occurrence {
            subject: EventSubject::Pod(PodRef {
                namespace: "default".to_owned(),
                name: "web".to_owned(),
                uid: "u1".to_owned(),
            }),
            is_warning: true,
            reason: "BackOff".to_owned(),
            message: message.to_owned(),
        }
    }

    #[tokio::test]
    async fn repetitions_are_counted_under_one_name() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let first = correlator
            .correlate(&occurrence("a"), now)
            .expect("allowed");
        let second = correlator
            .correlate(&occurrence("a"), now)
            .expect("allowed");
        assert_eq!((first.count, second.count), (1, 2));
        assert_eq!(first.name, second.name);
        let other = correlator
            .correlate(&occurrence("b"), now)
            .expect("allowed");
        assert_eq!(other.count, 1);
    }

    #[tokio::test]
    async fn a_flood_is_cut_off_and_let_in_again_later() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let allowed = (0..100)
            .filter(|number| {
                correlator
                    .correlate(&occurrence(&number.to_string()), now)
                    .is_some()
            })
            .count();
        assert_eq!(allowed, 25);
        assert!(
            correlator
                .correlate(&occurrence("later"), now + REFILL)
                .is_some()
        );
        assert!(
            correlator
                .correlate(&occurrence("again"), now + REFILL)
                .is_none()
        );
    }

    #[tokio::test]
    async fn an_event_points_at_its_pod() {
        let occurrence = occurrence("Back-off restarting failed container");
        let record = Correlator::default()
            .correlate(&occurrence, Instant::now())
            .expect("allowed");
        let event = event("n1", &occurrence, &record);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u1"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert!(event.metadata.name.expect("a name").starts_with("web."));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }
}
