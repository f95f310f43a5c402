//! What really happened, from etcd itself, and what a watcher must have seen of it.

use std::collections::BTreeMap;

use futures::StreamExt;
use portolan_control::store::{Change, Etcd, Store, WatchEvent};
use serde_json::Value;

use super::watcher::{Kind, Part, Seen};
use super::world::PREFIX;

/// The changes of the watched objects, up to a revision.
#[derive(Debug)]
pub struct History {
    changes: Vec<Seen>,
    last: i64,
}

impl History {
    /// Reads all changes from one revision to another.
    pub async fn read(store: &Etcd, first: i64, last: i64) -> Self {
        let watch = store.watch(PREFIX.as_bytes(), Some(first)).await;
        let mut watch = watch.expect("a watch");
        let mut changes = Vec::new();
        loop {
            let event = watch.next().await.expect("it goes on");
            let reached = match event.expect("the history is there") {
                WatchEvent::Changes(batch) => {
                    changes.extend(batch.iter().map(seen));
                    batch.last().map_or(0, Change::revision)
                }
                WatchEvent::Progress(revision) => revision,
            };
            if reached >= last {
                changes.retain(|change| change.revision <= last);
                return Self { changes, last };
            }
        }
    }

    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether each part of what a watcher saw is the history from where the part began to where it ended; and whether
    /// each list that it began anew with shows what there was.
    pub fn compare(&self, parts: &[Part]) -> Result<(), String> {
        for part in parts {
            let between =
                |change: &&Seen| part.from < change.revision && change.revision <= part.to;
            let expected: Vec<&Seen> = self.changes.iter().filter(between).collect();
            // A write that nobody heard of may still have come after the last that counts.
            let counts = |seen: &&Seen| seen.revision <= self.last;
            let seen: Vec<&Seen> = part.seen.iter().filter(counts).collect();
            if seen != expected {
                let place = seen
                    .iter()
                    .zip(&expected)
                    .position(|(seen, expected)| seen != expected);
                let place = place.unwrap_or(seen.len().min(expected.len()));
                return Err(format!(
                    "from {} to {}: event {place} is {:?}, and should be {:?}",
                    part.from,
                    part.to,
                    seen.get(place),
                    expected.get(place)
                ));
            }
            self.compare_list(part)?;
        }
        Ok(())
    }

    fn compare_list(&self, part: &Part) -> Result<(), String> {
        let mut state: BTreeMap<&str, &str> = BTreeMap::new();
        let mut known = Vec::new();
        for change in self
            .changes
            .iter()
            .filter(|change| change.revision <= part.from)
        {
            known.push(change.name.as_str());
            match change.kind {
                Kind::Deleted => {
                    state.remove(change.name.as_str());
                }
                Kind::Added | Kind::Modified => {
                    state.insert(&change.name, &change.value);
                }
            }
        }
        // What was there before the history begins is not compared.
        let listed: BTreeMap<&str, &str> = part
            .listed
            .iter()
            .filter(|(name, _)| known.contains(&name.as_str()))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        if listed == state {
            Ok(())
        } else {
            Err(format!(
                "the list as of {} shows {listed:?}, and should {state:?}",
                part.from
            ))
        }
    }
}

fn seen(change: &Change) -> Seen {
    let name = String::from_utf8_lossy(change.key());
    let name = name.trim_start_matches(PREFIX).to_owned();
    let value = |bytes: &[u8]| {
        let object: Value = serde_json::from_slice(bytes).expect("an object");
        object["data"]["value"].as_str().unwrap_or("").to_owned()
    };
    let (kind, value) = match change {
        Change::Put { current, previous } => {
            let kind = if previous.is_none() {
                Kind::Added
            } else {
                Kind::Modified
            };
            (kind, value(&current.value))
        }
        Change::Delete { previous, .. } => {
            let last = previous.as_ref().expect("nothing is compacted");
            (Kind::Deleted, value(&last.value))
        }
    };
    Seen {
        revision: change.revision(),
        kind,
        name,
        value,
    }
}
