//! Follows the API and publishes what becomes of it. Level triggered: a broken watch is listed anew.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::index::{Index, Input, Key};
use super::publisher::Publisher;
use crate::api::{Api, Caller, ListOptions, ResourceId, Status, WatchEvent};

const COMPONENT: &str = "portolan-routing";
/// The shortest time between two generations; what happens in between comes together in the next.
const SETTLE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Events on their way from the watches to the index.
const QUEUE: usize = 256;

/// A kind that the table is made from.
struct Source {
    resource: ResourceId,
    parse: fn(Value) -> Result<Input, serde_json::Error>,
    owns: fn(&Key) -> bool,
}

const SOURCES: [Source; 3] = [
    Source {
        resource: resource("", "services"),
        parse: |object| Ok(Input::Service(serde_json::from_value(object)?)),
        owns: |key| matches!(key, Key::Service(_)),
    },
    Source {
        resource: resource("discovery.k8s.io", "endpointslices"),
        parse: |object| Ok(Input::Slice(serde_json::from_value(object)?)),
        owns: |key| matches!(key, Key::Slice(_)),
    },
    Source {
        resource: resource("", "nodes"),
        parse: |object| Ok(Input::Node(serde_json::from_value(object)?)),
        owns: |key| matches!(key, Key::Node(_)),
    },
];

const fn resource(group: &'static str, plural: &'static str) -> ResourceId {
    ResourceId {
        group,
        version: "v1",
        plural,
    }
}

enum Event {
    /// Everything of one kind, read after somebody asked for it so often.
    Listed {
        source: usize,
        inputs: Vec<Input>,
        wanted: u64,
    },
    Changed(Input),
    Gone(Key),
}

/// Publishes until it is dropped.
pub fn run(api: Arc<dyn Api>, publisher: Arc<Publisher>) -> impl Future<Output = ()> + Send {
    // From now on, not from when this is first polled, whoever wants to be up to date waits for it.
    let wanted = publisher.wanted();
    publish(api, publisher, wanted)
}

async fn publish(api: Arc<dyn Api>, publisher: Arc<Publisher>, wanted: watch::Receiver<u64>) {
    let (events, mut inbox) = mpsc::channel(QUEUE);
    let mut watches = JoinSet::new();
    for source in 0..SOURCES.len() {
        let follower = follow(Arc::clone(&api), source, events.clone(), wanted.clone());
        watches.spawn(follower);
    }
    drop(events);
    let mut index = Index::default();
    let mut listed = [None; SOURCES.len()];
    let mut batch = Vec::new();
    while inbox.recv_many(&mut batch, QUEUE).await > 0 {
        let since = Instant::now();
        // The first change goes out at once with whatever has come by now; those behind it wait for the next round.
        for event in batch.drain(..) {
            apply(&mut index, &mut listed, event);
        }
        // Up to which asking all kinds have been read; none before each has been read once.
        if let Some(refreshed) = listed.iter().copied().min().flatten() {
            let mut table = publisher.table();
            index.update(&mut table);
            publisher.publish(table, since);
            publisher.refreshed(refreshed);
            tokio::time::sleep(SETTLE).await;
        }
    }
}

fn apply(index: &mut Index, listed: &mut [Option<u64>], event: Event) {
    match event {
        Event::Listed {
            source,
            inputs,
            wanted,
        } => {
            let mut gone = index.keys();
            gone.retain(SOURCES[source].owns);
            for input in inputs {
                if let Some(key) = input.key() {
                    gone.remove(&key);
                }
                index.apply(input);
            }
            for key in gone {
                index.remove(&key);
            }
            listed[source] = Some(wanted);
        }
        Event::Changed(input) => index.apply(input),
        Event::Gone(key) => index.remove(&key),
    }
}

/// Lists and watches one kind, again and again.
async fn follow(
    api: Arc<dyn Api>,
    source: usize,
    events: mpsc::Sender<Event>,
    mut wanted: watch::Receiver<u64>,
) {
    let mut retry = FIRST_RETRY;
    let mut version = None;
    loop {
        match follow_once(&*api, source, &mut version, &events, &mut wanted).await {
            Ok(Ended::Unheard) => return,
            Ok(Ended::Wanted) => version = None,
            Err(status) => {
                let plural = SOURCES[source].resource.plural;
                tracing::debug!(plural, %status, "a watch ended");
                // A watch that only broke goes on where it was; otherwise everything is listed.
                if status.code == 410 || version.is_none() {
                    version = None;
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                } else {
                    tokio::time::sleep(FIRST_RETRY).await;
                    retry = FIRST_RETRY;
                }
            }
        }
    }
}

/// Why a watch was ended from this side.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// Everything is to be read anew.
    Wanted,
}

async fn follow_once(
    api: &dyn Api,
    source: usize,
    version: &mut Option<String>,
    events: &mpsc::Sender<Event>,
    wanted: &mut watch::Receiver<u64>,
) -> Result<Ended, Status> {
    let caller = Caller::system(COMPONENT);
    let resource = SOURCES[source].resource;
    if version.is_none() {
        // Before the list: who asks later wants a later one.
        let asked = *wanted.borrow_and_update();
        let (listed, as_of) = list(api, &caller, source, asked).await?;
        if events.send(listed).await.is_err() {
            return Ok(Ended::Unheard);
        }
        *version = Some(as_of);
    }
    let options = ListOptions {
        resource_version: version.clone(),
        allow_bookmarks: true,
        ..ListOptions::default()
    };
    let mut watch = api.watch(&caller, resource, None, &options).await?;
    loop {
        let event = tokio::select! {
            event = watch.next() => event,
            changed = wanted.changed() => match changed {
                Ok(()) => return Ok(Ended::Wanted),
                Err(_) => return Ok(Ended::Unheard),
            },
        };
        let Some(event) = event else {
            break;
        };
        let (event, seen) = match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let seen = version_of(&object);
                (parse(source, object).map(Event::Changed), seen)
            }
            WatchEvent::Deleted(object) => {
                let seen = version_of(&object);
                let key = parse(source, object).and_then(|input| input.key());
                (key.map(Event::Gone), seen)
            }
            WatchEvent::Bookmark(seen) => (None, Some(seen)),
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return Ok(Ended::Unheard);
        }
        if seen.is_some() {
            *version = seen;
        }
    }
    Err(Status {
        code: 503,
        reason: "ServiceUnavailable".to_owned(),
        message: "the watch ended".to_owned(),
        details: None,
    })
}

/// Everything of one kind, and the version that it shows.
async fn list(
    api: &dyn Api,
    caller: &Caller,
    source: usize,
    wanted: u64,
) -> Result<(Event, String), Status> {
    let resource = SOURCES[source].resource;
    let list = api
        .list(caller, resource, None, &ListOptions::default())
        .await?;
    let items = list.items.into_iter();
    let listed = Event::Listed {
        source,
        inputs: items.filter_map(|object| parse(source, object)).collect(),
        wanted,
    };
    Ok((listed, list.resource_version))
}

fn version_of(object: &Value) -> Option<String> {
    Some(
        object
            .pointer("/metadata/resourceVersion")?
            .as_str()?
            .to_owned(),
    )
}

fn parse(source: usize, object: Value) -> Option<Input> {
    match (SOURCES[source].parse)(object) {
        Ok(input) => Some(input),
        Err(error) => {
            let plural = SOURCES[source].resource.plural;
            tracing::error!(plural, %error, "an object can't be read and is not routed to");
            None
        }
    }
}
