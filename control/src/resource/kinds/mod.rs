//! What each kind does itself: its defaults, its rules and its columns.

pub mod budgets;
pub mod config;
mod containers;
pub mod events;
pub mod jobs;
pub mod leases;
pub mod metrics;
pub mod namespaces;
pub mod nodes;
pub mod persistent_volumes;
mod placement_rules;
mod pod_defaults;
mod pod_rules;
pub mod pods;
pub mod priorities;
mod probes;
pub mod rbac;
pub mod service_rules;
pub mod services;
mod volumes;
pub mod workloads;

use serde_json::{Map, Value};

/// Puts a value where the client left none.
fn fill(fields: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    fields
        .entry(field.to_owned())
        .or_insert_with(|| value.into());
}

/// The elements of a list field that are maps.
fn each_mut<'a>(
    fields: &'a mut Map<String, Value>,
    list: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    fields
        .get_mut(list)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

/// A field that is a map, where it is there.
fn map_mut<'a>(
    fields: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    fields.get_mut(field).and_then(Value::as_object_mut)
}

#[cfg(test)]
mod storage_tests;
#[cfg(test)]
mod tests;
