//! Deleting: at once, or by marking the object where finalizers or a grace period hold it.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::admission::{Operation, Review};
use super::engine::Engine;
use super::history::Stored;
use super::object::{encode, parse};
use super::write::Replaced;
use super::{Caller, DeleteOptions, ListOptions, ObjectKey, ResourceId, Status, meta};
use crate::resource::{Resource, Verb};
use crate::store::{Guard, KeyValue, Written};

/// Holds an object until its dependents are gone; the garbage collector takes it off.
const FOREGROUND: &str = "foregroundDeletion";
/// Holds an object until its dependents are let go; the garbage collector takes it off.
const ORPHAN: &str = "orphan";

impl Engine {
    /// Deletes an object. Answers with the object where it lives on for a while, else with a Status.
    pub async fn delete_object(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        options: &DeleteOptions,
    ) -> Result<Value, Status> {
        let place = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, Verb::Delete, place, None)?;
        let store_key = Self::store_key(row, key);
        let mut found = self.store.get(store_key.as_bytes()).await?;
        loop {
            let Some(stored) = found else {
                return Err(Status::not_found(row.id, &key.name));
            };
            let current = parse(&stored)?;
            check_preconditions(row, key, &current.value, options)?;
            if let Some(why) = row.behaviour.protected(&current.value) {
                return Err(Status::forbidden(row.id, &key.name, why));
            }
            match self.delete_current(caller, row, &current, options).await? {
                Ended::Answer(answer) => return Ok(answer),
                Ended::Lost(newer) => found = newer,
            }
        }
    }

    async fn delete_current(
        &self,
        caller: &Caller,
        row: &Resource,
        current: &Stored,
        options: &DeleteOptions,
    ) -> Result<Ended, Status> {
        let asked = options.grace_period_seconds;
        let grace = row.behaviour.grace(&current.value, asked).unwrap_or(0);
        let mut marked = current.value.clone();
        hold_for_dependents(&mut marked, options)?;
        let held = grace > 0
            || !meta::finalizers(&marked).is_empty()
            || !meta::list(&marked, &["spec", "finalizers"]).is_empty();
        if !held {
            if options.dry_run {
                return Ok(Ended::Answer(gone(row, &current.value)));
            }
            let replaced = self.remove(caller, row, current, &current.value).await?;
            return Ok(match replaced {
                Replaced::Done(last) if row.behaviour.returns_deleted() => Ended::Answer(last),
                Replaced::Done(last) => Ended::Answer(gone(row, &last)),
                Replaced::Lost(newer) => Ended::Lost(newer),
            });
        }
        self.mark(&mut marked, grace);
        if marked == current.value || options.dry_run {
            return Ok(Ended::Answer(marked));
        }
        let key = Self::store_key(row, &meta::key(&marked));
        let guard = Guard::At(current.revision);
        let written = self
            .store
            .put(key.as_bytes(), encode(&marked), guard, None)
            .await?;
        Ok(match written {
            Written::Done(revision) => Ended::Answer(Stored::new(marked, revision).value),
            Written::Refused(newer) => Ended::Lost(newer),
        })
    }

    /// Says in the object that it is being deleted; an earlier mark is only ever shortened.
    fn mark(&self, object: &mut Value, grace: i64) {
        let earlier = meta::number(object, &["metadata", "deletionGracePeriodSeconds"]);
        if meta::is_terminating(object) && earlier.unwrap_or(0) <= grace {
            return;
        }
        let now = (self.clock)();
        let end = now
            .checked_add(SignedDuration::from_secs(grace))
            .unwrap_or(now);
        let end = Value::from(meta::time(end));
        meta::set_metadata(object, "deletionTimestamp", Some(end));
        let seconds = Value::from(grace);
        meta::set_metadata(object, "deletionGracePeriodSeconds", Some(seconds));
        if let Some(generation) = meta::number(object, &["metadata", "generation"]) {
            meta::set_metadata(object, "generation", Some(Value::from(generation + 1)));
        }
        if object["kind"] == "Namespace" {
            meta::child_mut(object, "status").insert("phase".to_owned(), json!("Terminating"));
        }
    }

    /// Takes an object out of the store.
    pub(super) async fn remove(
        &self,
        caller: &Caller,
        row: &Resource,
        current: &Stored,
        last: &Value,
    ) -> Result<Replaced, Status> {
        let key = meta::key(&current.value);
        let review = Review {
            operation: Operation::Delete,
            resource: row.id,
            key: &key,
            subresource: None,
            old: Some(&current.value),
            caller,
            dry_run: false,
        };
        let mut object = last.clone();
        let admitted = self.admit(review, &mut object).await?;
        let store_key = Self::store_key(row, &key);
        let guard = Guard::At(current.revision);
        let result = self.store.delete(store_key.as_bytes(), guard).await;
        let took_place = matches!(result, Ok(Written::Done(_)));
        admitted.settle(took_place, last).await;
        Ok(match result? {
            Written::Done(revision) => Replaced::Done(Stored::new(last.clone(), revision).value),
            Written::Refused(newer) => Replaced::Lost(newer),
        })
    }

    /// Deletes what a list shows; answers with the list.
    pub async fn delete_collection(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        options: (&ListOptions, &DeleteOptions),
    ) -> Result<Value, Status> {
        let (list, delete) = options;
        let place = (namespace, None);
        let row = self.permitted(caller, resource, Verb::DeleteCollection, place, None)?;
        let page = self.page(caller, resource, namespace, list).await?;
        let mut items = Vec::with_capacity(page.items.len());
        for stored in page.items {
            let key = meta::key(&stored.value);
            match self.delete_object(caller, resource, &key, delete).await {
                Ok(_) => items.push(stored.value.clone()),
                Err(status) if status.is_not_found() => {}
                Err(status) => return Err(status),
            }
        }
        Ok(json!({
            "kind": row.list_kind(),
            "apiVersion": row.id.api_version(),
            "metadata": {"resourceVersion": page.revision.to_string()},
            "items": items,
        }))
    }
}

enum Ended {
    Answer(Value),
    Lost(Option<KeyValue>),
}

fn check_preconditions(
    row: &Resource,
    key: &ObjectKey,
    current: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let differs = |asked: &Option<String>, actual: &str| {
        asked
            .as_deref()
            .filter(|asked| *asked != actual)
            .map(str::to_owned)
    };
    let uid = meta::uid(current);
    if let Some(asked) = differs(&options.uid, uid) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(row.id, &key.name, &why));
    }
    let version = meta::resource_version(current);
    if let Some(asked) = differs(&options.resource_version, version) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record \
             ({version}). The object might have been modified"
        );
        return Err(Status::conflict(row.id, &key.name, &why));
    }
    Ok(())
}

/// The finalizers of the garbage collector, as the propagation asks.
fn hold_for_dependents(object: &mut Value, options: &DeleteOptions) -> Result<(), Status> {
    let wanted = match options.propagation_policy.as_deref() {
        None => return Ok(()),
        Some("Background") => None,
        Some("Foreground") => Some(FOREGROUND),
        Some("Orphan") => Some(ORPHAN),
        Some(other) => {
            let mut faults = crate::resource::Faults::new();
            faults.unsupported(
                &crate::resource::Path::new("propagationPolicy"),
                other,
                &["Foreground", "Background", "Orphan", "nil"],
            );
            return Err(Status::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                faults.into_causes(),
            ));
        }
    };
    let mut finalizers: Vec<String> = meta::finalizers(object)
        .into_iter()
        .filter(|name| *name != FOREGROUND && *name != ORPHAN)
        .map(str::to_owned)
        .collect();
    finalizers.extend(wanted.map(str::to_owned));
    let finalizers = (!finalizers.is_empty()).then(|| json!(finalizers));
    meta::set_metadata(object, "finalizers", finalizers);
    Ok(())
}

/// The Status that says that an object is gone.
fn gone(row: &Resource, object: &Value) -> Value {
    let mut details = json!({
        "name": meta::name(object),
        "kind": row.id.plural,
        "uid": meta::uid(object),
    });
    if !row.id.group.is_empty() {
        details["group"] = json!(row.id.group);
    }
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}
