//! The tables of namespaces, events and leases.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, UNKNOWN, age, column, human, name, wide};
use crate::api::meta;

/// The columns of namespaces.
pub const NAMESPACES: &[Column] = &[
    NAME,
    column("Status", "string", "The status of the namespace"),
    AGE,
];

/// The columns of events.
pub const EVENTS: &[Column] = &[
    column("Last Seen", "string", "Time this event was last seen."),
    column(
        "Type",
        "string",
        "Type of this event (Normal, Warning), new types could be added in the future",
    ),
    column("Reason", "string", "Why the action was taken."),
    column("Object", "string", "The object that this event is about."),
    wide(
        "Subobject",
        "string",
        "The part of the object that this event is about.",
    ),
    wide("Source", "string", "The component reporting this event."),
    column(
        "Message",
        "string",
        "A human-readable description of the status of this operation.",
    ),
    wide("First Seen", "string", "Time this event was first seen."),
    wide(
        "Count",
        "string",
        "The number of times this event has occurred.",
    ),
    Column {
        priority: 1,
        ..NAME
    },
];

/// The columns of leases.
pub const LEASES: &[Column] = &[
    NAME,
    column(
        "Holder",
        "string",
        "The identity of the holder of a current lease.",
    ),
    AGE,
];

/// The cells of a namespace.
pub fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(meta::text(object, &["status", "phase"])),
        age(object, now),
    ]
}

/// The cells of a lease.
pub fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(meta::text(object, &["spec", "holderIdentity"])),
        age(object, now),
    ]
}

fn ago(time: &str, now: Timestamp) -> Option<String> {
    let time: Timestamp = time.parse().ok()?;
    Some(human(now.as_second() - time.as_second()))
}

/// The cells of an event.
pub fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let text = |path: &[&str]| meta::text(object, path);
    let first = ago(text(&["firstTimestamp"]), now).or_else(|| ago(text(&["eventTime"]), now));
    let last = ago(text(&["lastTimestamp"]), now)
        .or_else(|| ago(text(&["series", "lastObservedTime"]), now))
        .or_else(|| first.clone());
    let unknown = || UNKNOWN.to_owned();
    let count = meta::number(object, &["count"])
        .or_else(|| meta::number(object, &["series", "count"]))
        .filter(|count| *count > 0)
        .unwrap_or(1);
    let component = match text(&["source", "component"]) {
        "" => text(&["reportingComponent"]),
        component => component,
    };
    let host = text(&["source", "host"]);
    let source = if host.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {host}")
    };
    let about = match text(&["involvedObject", "name"]) {
        "" => text(&["involvedObject", "kind"]).to_lowercase(),
        name => format!(
            "{}/{name}",
            text(&["involvedObject", "kind"]).to_lowercase()
        ),
    };
    vec![
        json!(last.unwrap_or_else(unknown)),
        json!(text(&["type"])),
        json!(text(&["reason"])),
        json!(about),
        json!(text(&["involvedObject", "fieldPath"])),
        json!(source),
        json!(text(&["message"]).trim()),
        json!(first.unwrap_or_else(unknown)),
        json!(count),
        name(object),
    ]
}
