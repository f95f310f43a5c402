//! The columns of tables, as kubectl shows them: one file for each group of kinds.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Column;
use crate::api::meta;

pub mod cluster;
pub mod config;
pub mod jobs;
pub mod metrics;
pub mod nodes;
pub mod pods;
pub mod rbac;
pub mod services;
pub mod storage;
pub mod workloads;

/// What a cell shows that has no value.
pub const NONE: &str = "<none>";
/// What a cell shows whose value is not known.
pub const UNKNOWN: &str = "<unknown>";

const fn column(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column {
        name,
        kind,
        format: "",
        description,
        priority: 0,
    }
}

const fn wide(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    Column {
        priority: 1,
        ..column(name, kind, description)
    }
}

/// The column of the object's name.
pub const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    description: "Name must be unique within a namespace.",
    priority: 0,
};

/// The column of the object's age.
pub const AGE: Column = column(
    "Age",
    "string",
    "CreationTimestamp is when the server created this object, in UTC.",
);

/// The columns of a kind that has none of its own.
pub const NAME_AND_AGE: &[Column] = &[NAME, AGE];

/// The cells of a kind that has no columns of its own.
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// The cell of the object's name.
pub fn name(object: &Value) -> Value {
    Value::from(meta::name(object))
}

/// The cell of the object's age.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(meta::text(object, &["metadata", "creationTimestamp"]), now)
}

/// How long ago a time was.
pub fn since(time: &str, now: Timestamp) -> Value {
    match time.parse::<Timestamp>() {
        Ok(time) => Value::from(human(now.as_second() - time.as_second())),
        Err(_) => Value::from(UNKNOWN),
    }
}

/// A duration as kubectl shows it: two units at most, the more of them the shorter it is.
pub fn human(seconds: i64) -> String {
    let two = |large: i64, unit: char, small: i64, sub: char| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{sub}")
        }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        _ if seconds < 120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(days, 'd', hours % 24, 'h'),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => two(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// A text, or "<none>" for the empty one.
fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { NONE } else { text })
}

/// How many entries the maps of an object hold together.
fn count(object: &Value, fields: &[&str]) -> Value {
    let entries = |field: &&str| {
        object
            .get(*field)
            .and_then(Value::as_object)
            .map_or(0, Map::len)
    };
    let total: usize = fields.iter().map(entries).sum();
    json!(total)
}

/// The texts of the elements of a list, joined by commas.
fn joined(list: &[Value], path: &[&str]) -> String {
    let texts: Vec<&str> = list.iter().map(|one| meta::text(one, path)).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectl_s() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 60, "3h1m"),
            (8 * 3600 + 60, "8h"),
            (50 * 3600, "2d2h"),
            (9 * 86400, "9d"),
            (3 * 365 * 86400, "3y"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
