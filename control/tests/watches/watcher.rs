//! A watcher that goes on at another server whenever its own does not do.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::task::JoinHandle;

use super::world::NAMESPACE;

/// A server that says nothing for so long is left.
const SILENCE: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub revision: i64,
    pub kind: Kind,
    pub name: String,
    pub value: String,
}

/// What was seen from one list on: every change after `from`, up to `to`.
#[derive(Debug)]
pub struct Part {
    pub from: i64,
    pub to: i64,
    /// Names and values.
    pub listed: Vec<(String, String)>,
    pub seen: Vec<Seen>,
}

/// See the file's front page.
pub struct Watcher {
    task: JoinHandle<Vec<Part>>,
    until: Arc<AtomicI64>,
}

impl Watcher {
    pub fn start(clients: Vec<kube::Client>, random: fastrand::Rng) -> Self {
        let until = Arc::new(AtomicI64::new(i64::MAX));
        let task = tokio::spawn(watch(clients, random, Arc::clone(&until)));
        Self { task, until }
    }

    /// What it has seen, once that reaches up to a revision.
    pub async fn finish(self, last: i64) -> Vec<Part> {
        self.until.store(last, Ordering::Relaxed);
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended
            .expect("it sees everything in time")
            .expect("no panic")
    }
}

async fn watch(
    clients: Vec<kube::Client>,
    mut random: fastrand::Rng,
    until: Arc<AtomicI64>,
) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut must_list = true;
    loop {
        let client = clients[random.usize(..clients.len())].clone();
        let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
        if must_list {
            let Some(part) = list(&maps).await else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            parts.push(part);
        }
        let part = parts.last_mut().expect("there is a list");
        must_list = follow(&maps, part, &until).await == Ended::Gone;
        if part.to >= until.load(Ordering::Relaxed) {
            return parts;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn list(maps: &Api<ConfigMap>) -> Option<Part> {
    let parameters = ListParams::default();
    let list = tokio::time::timeout(SILENCE, maps.list(&parameters)).await;
    let list = list.ok()?.ok()?;
    let revision = number(list.metadata.resource_version.as_deref());
    Some(Part {
        from: revision,
        to: revision,
        listed: list
            .items
            .iter()
            .map(|map| (name(map), value(map)))
            .collect(),
        seen: Vec::new(),
    })
}

#[derive(PartialEq, Eq)]
enum Ended {
    /// The server no longer has what comes next.
    Gone,
    /// Another server may go on.
    Broken,
}

async fn follow(maps: &Api<ConfigMap>, part: &mut Part, until: &AtomicI64) -> Ended {
    let parameters = WatchParams::default();
    let from = part.to.to_string();
    let opened = tokio::time::timeout(SILENCE, maps.watch(&parameters, &from)).await;
    let mut events = match opened {
        Ok(Ok(events)) => Box::pin(events),
        Ok(Err(kube::Error::Api(status))) if status.code == 410 => return Ended::Gone,
        _ => return Ended::Broken,
    };
    while part.to < until.load(Ordering::Relaxed) {
        let Ok(Some(Ok(event))) = tokio::time::timeout(SILENCE, events.next()).await else {
            return Ended::Broken;
        };
        let (kind, map) = match event {
            WatchEvent::Added(map) => (Kind::Added, map),
            WatchEvent::Modified(map) => (Kind::Modified, map),
            WatchEvent::Deleted(map) => (Kind::Deleted, map),
            WatchEvent::Bookmark(bookmark) => {
                part.to = number(Some(&bookmark.metadata.resource_version)).max(part.to);
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => return Ended::Gone,
            WatchEvent::Error(_) => return Ended::Broken,
        };
        let revision = number(map.metadata.resource_version.as_deref());
        part.to = part.to.max(revision);
        part.seen.push(Seen {
            revision,
            kind,
            name: name(&map),
            value: value(&map),
        });
    }
    Ended::Broken
}

fn number(version: Option<&str>) -> i64 {
    let version = version.expect("every answer has a version");
    version.parse().expect("versions are numbers here")
}

fn name(map: &ConfigMap) -> String {
    map.metadata.name.clone().expect("objects have names")
}

fn value(map: &ConfigMap) -> String {
    let data = map.data.as_ref();
    let value = data.and_then(|data| data.get("value"));
    value.cloned().unwrap_or_default()
}
