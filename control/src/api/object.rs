//! Objects on their way through a write: their bytes in the store, their type and place, what tells two of them apart.

use bytes::Bytes;
use serde_json::Value;

use super::history::Stored;
use super::{Status, meta};
use crate::resource::{Faults, Resource};
use crate::store::KeyValue;

/// Nothing but its finalizers kept it, and they are gone.
pub(super) fn released(object: &Value) -> bool {
    let grace = meta::number(object, &["metadata", "deletionGracePeriodSeconds"]);
    let held_by_spec = !meta::list(object, &["spec", "finalizers"]).is_empty();
    meta::is_terminating(object)
        && grace.unwrap_or(0) == 0
        && meta::finalizers(object).is_empty()
        && !held_by_spec
}

pub(super) fn same_but_metadata(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else {
        return false;
    };
    let rest = |fields: &serde_json::Map<String, Value>| {
        let mut rest = fields.clone();
        rest.remove("metadata");
        rest
    };
    rest(one) == rest(other)
}

/// An object's bytes in the store: all but its version, which the store keeps itself.
pub(super) fn encode(object: &Value) -> Bytes {
    let mut object = object.clone();
    meta::set_metadata(&mut object, "resourceVersion", None);
    Bytes::from(serde_json::to_vec(&object).expect("a JSON value always serializes"))
}

/// An object from its bytes in the store.
pub(super) fn parse(stored: &KeyValue) -> Result<Stored, Status> {
    let value: Value = serde_json::from_slice(&stored.value).map_err(|error| {
        Status::internal(format!(
            "the store holds an object that can't be read: {error}"
        ))
    })?;
    Ok(Stored::new(value, stored.mod_revision))
}

pub(super) fn refuse_faults(row: &Resource, object: &Value, faults: Faults) -> Result<(), Status> {
    if faults.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        row.id.group,
        row.kind,
        meta::name(object),
        faults.into_causes(),
    ))
}

/// The body's apiVersion and kind are the URL's, given or not.
pub(super) fn name_type(row: &Resource, object: &mut Value) -> Result<(), Status> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Status::bad_request(format!(
            "couldn't get version/kind; json parse error: the body must be a JSON object, not {object}"
        )));
    };
    let version = row.id.api_version();
    let given = |field: &str| {
        let text = fields.get(field).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let (given_version, given_kind) = (given("apiVersion"), given("kind"));
    if let Some(given) = given_version.as_ref().filter(|given| **given != version) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({version})"
        )));
    }
    if let Some(given) = given_kind.as_ref().filter(|given| *given != row.kind) {
        return Err(Status::bad_request(format!(
            "{given} in version \"{}\" cannot be handled as a {}: the kind of the body is not the kind of the URL",
            row.id.version, row.kind
        )));
    }
    fields.insert("apiVersion".to_owned(), Value::from(version));
    fields.insert("kind".to_owned(), Value::from(row.kind));
    Ok(())
}

/// The body's namespace is the URL's, given or not.
pub(super) fn place(
    row: &Resource,
    namespace: Option<&str>,
    object: &mut Value,
) -> Result<(), Status> {
    let given = meta::namespace(object).to_owned();
    match namespace.filter(|_| row.namespaced) {
        Some(namespace) if given.is_empty() || given == namespace => {
            meta::set_metadata(object, "namespace", Some(Value::from(namespace)));
            Ok(())
        }
        Some(_) => Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
        None if row.namespaced => Err(Status::bad_request(
            "an empty namespace may not be set during creation",
        )),
        None => {
            meta::set_metadata(object, "namespace", None);
            Ok(())
        }
    }
}
