//! Writing: create, update and patch. One path for all kinds: authorize, decode, default, admit, validate,
//! compare-and-swap in the store.

use std::sync::Arc;

use serde_json::Value;

use super::admission::{Admission, Operation, Review};
use super::engine::Engine;
use super::history::Stored;
use super::object::{
    encode, name_type, parse, place, refuse_faults, released, same_but_metadata, same_content,
};
use super::patch::{self, PatchError};
use super::subresource::View;
use super::{Caller, ObjectKey, PatchKind, ResourceId, Status, WriteOptions, meta};
use crate::resource::{
    Faults, Generation, Resource, Verb, schema, validate_metadata, validate_metadata_update,
};
use crate::store::{Guard, KeyValue, Written};

/// How often a generated name may be taken before the client is told.
const NAME_ATTEMPTS: usize = 8;

/// What a write came to.
#[derive(Debug)]
pub struct Outcome {
    /// The object as it is now.
    pub object: Value,
    /// What the client should know though the write succeeded.
    pub warnings: Vec<String>,
}

/// The admissions that have said yes to a request.
pub(super) struct Admitted<'a> {
    review: Review<'a>,
    rules: Vec<&'a Arc<dyn Admission>>,
}

impl Admitted<'_> {
    /// The write took place or not.
    pub(super) async fn settle(self, took_place: bool, object: &Value) {
        for rule in self.rules {
            if took_place && !self.review.dry_run {
                rule.committed(&self.review, object).await;
            } else {
                rule.abandoned(&self.review, object).await;
            }
        }
    }
}

impl Engine {
    /// Asks every rule that handles the kind.
    pub(super) async fn admit<'a>(
        &'a self,
        review: Review<'a>,
        object: &mut Value,
    ) -> Result<Admitted<'a>, Status> {
        let mut admitted = Admitted {
            review,
            rules: Vec::new(),
        };
        for rule in &self.admissions {
            if !rule.handles(review.resource) {
                continue;
            }
            match rule.admit(&review, object).await {
                Ok(()) => admitted.rules.push(rule),
                Err(status) => {
                    admitted.settle(false, object).await;
                    return Err(status);
                }
            }
        }
        Ok(admitted)
    }

    /// Checks a body against its kind's type; drops what the type does not have, as the options ask.
    pub(super) fn decode(
        &self,
        row: &Resource,
        mut object: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let unreadable = |why: String| {
            Status::bad_request(format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}",
                kind = row.kind,
                version = row.id.version
            ))
        };
        name_type(row, &mut object)?;
        let index = self
            .table
            .schema()
            .index(&row.definition)
            .ok_or_else(|| Status::internal(format!("no type {}", row.definition)))?;
        let decoded = schema::decode(self.table.schema(), index, object).map_err(unreadable)?;
        let mut faults = options.duplicate_fields.clone();
        faults.extend(decoded.unknown);
        let warnings = match options.field_validation.as_deref() {
            Some("Strict") if !faults.is_empty() => {
                return Err(unreadable(format!(
                    "strict decoding error: {}",
                    faults.join(", ")
                )));
            }
            Some("Ignore") => Vec::new(),
            _ => faults,
        };
        Ok(Outcome {
            object: decoded.value,
            warnings,
        })
    }

    /// Creates an object.
    pub async fn create_object(
        &self,
        caller: &Caller,
        resource: ResourceId,
        namespace: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let row = self.permitted(caller, resource, Verb::Create, (namespace, None), None)?;
        let mut outcome = self.decode(row, object, options)?;
        Self::check_node_object(caller, row, &outcome.object)?;
        place(row, namespace, &mut outcome.object)?;
        if row.namespaced {
            self.check_namespace(row, namespace.unwrap_or(""), meta::name(&outcome.object))
                .await?;
        }
        self.begin(row, &mut outcome.object)?;
        let prefix = meta::text(&outcome.object, &["metadata", "generateName"]).to_owned();
        let generated = meta::name(&outcome.object).is_empty() && !prefix.is_empty();
        let mut attempts = 0;
        loop {
            if generated {
                let name = meta::generated_name(&prefix);
                meta::set_metadata(&mut outcome.object, "name", Some(Value::from(name)));
            }
            attempts += 1;
            match self.insert(caller, row, &outcome.object, options).await {
                Ok(object) => {
                    outcome.object = object;
                    return Ok(outcome);
                }
                Err(status)
                    if generated && status.is_already_exists() && attempts < NAME_ATTEMPTS => {}
                Err(status) => return Err(status),
            }
        }
    }

    /// The metadata and first state of a new object.
    fn begin(&self, row: &Resource, object: &mut Value) -> Result<(), Status> {
        if !meta::resource_version(object).is_empty() {
            return Err(Status::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let metadata = meta::metadata_mut(object);
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
            "resourceVersion",
            "generation",
        ] {
            metadata.remove(field);
        }
        metadata.insert("uid".to_owned(), Value::from(meta::new_uid()));
        let now = meta::time((self.clock)());
        metadata.insert("creationTimestamp".to_owned(), Value::from(now));
        if row.generation != Generation::None {
            metadata.insert("generation".to_owned(), Value::from(1));
        }
        if row.has_status()
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        row.behaviour.default(object);
        row.behaviour.prepare_create(object);
        Ok(())
    }

    /// Admits, validates and stores a new object.
    async fn insert(
        &self,
        caller: &Caller,
        row: &Resource,
        object: &Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        let mut object = object.clone();
        let key = meta::key(&object);
        let review = Review {
            operation: Operation::Create,
            resource: row.id,
            key: &key,
            subresource: None,
            old: None,
            caller,
            dry_run: options.dry_run,
        };
        let admitted = self.admit(review, &mut object).await?;
        let result = self.store_new(row, &key, &object, options.dry_run).await;
        admitted.settle(result.is_ok(), &object).await;
        let revision = result?;
        if let Some(revision) = revision {
            return Ok(Stored::new(object, revision).value);
        }
        Ok(object)
    }

    async fn store_new(
        &self,
        row: &Resource,
        key: &ObjectKey,
        object: &Value,
        dry_run: bool,
    ) -> Result<Option<i64>, Status> {
        let mut faults = Faults::new();
        validate_metadata(row, object, &mut faults);
        row.behaviour.validate(object, &mut faults);
        refuse_faults(row, object, faults)?;
        let store_key = Self::store_key(row, key);
        if dry_run {
            return match self.store.get(store_key.as_bytes()).await? {
                Some(_) => Err(Status::already_exists(row.id, &key.name)),
                None => Ok(None),
            };
        }
        let written = self
            .store
            .put(store_key.as_bytes(), encode(object), Guard::Absent, None)
            .await?;
        match written {
            Written::Done(revision) => Ok(Some(revision)),
            Written::Refused(_) => Err(Status::already_exists(row.id, &key.name)),
        }
    }

    /// Replaces an object or its subresource.
    pub async fn update_object(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let place_of = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, Verb::Update, place_of, subresource)?;
        let view = View::of(row, subresource)?;
        let mut proposed = self.decode_view(row, view, object, options)?;
        if view.is_object() {
            place(row, key.namespace.as_deref(), &mut proposed.object)?;
            let name = meta::name(&proposed.object);
            if name != key.name {
                return Err(Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    key.name
                )));
            }
        }
        let request = Write {
            caller,
            row,
            key,
            view,
            options,
        };
        let make = |_: &Value| {
            Ok(Outcome {
                object: proposed.object.clone(),
                warnings: proposed.warnings.clone(),
            })
        };
        self.rewrite(&request, make).await
    }

    /// Patches an object or its subresource.
    pub async fn patch_object(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: Option<&str>,
        (kind, patch): (PatchKind, Value),
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let place_of = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, Verb::Patch, place_of, subresource)?;
        let view = View::of(row, subresource)?;
        let request = Write {
            caller,
            row,
            key,
            view,
            options,
        };
        let schema = self.table.schema();
        let index = schema.index(view.definition(row));
        let make = |current: &Value| {
            let patched =
                patch::apply(kind, current, &patch, index.map(|index| (&**schema, index)))
                    .map_err(PatchError::into_status)?;
            let strict = WriteOptions {
                field_validation: options.field_validation.clone(),
                duplicate_fields: options.duplicate_fields.clone(),
                ..WriteOptions::default()
            };
            self.decode_view(row, view, patched, &strict)
                .map_err(|status| patch::undecodable(kind, &patch, status))
        };
        self.rewrite(&request, make).await
    }

    /// Reads, lets `make` propose the view's new content, and writes; again where another write came between.
    async fn rewrite(
        &self,
        request: &Write<'_>,
        make: impl Fn(&Value) -> Result<Outcome, Status> + Send + Sync,
    ) -> Result<Outcome, Status> {
        let row = request.row;
        let store_key = Self::store_key(row, request.key);
        let mut found = self.store.get(store_key.as_bytes()).await?;
        loop {
            let Some(stored) = found else {
                return Err(Status::not_found(row.id, &request.key.name));
            };
            let current = parse(&stored)?;
            let proposed = make(&request.view.read(row, &current.value))?;
            request.check_preconditions(&current.value, &proposed.object)?;
            let mut object = request.view.merge(row, &current.value, proposed.object)?;
            request.finish(&current.value, &mut object);
            if same_content(&object, &current.value) {
                return Ok(Outcome {
                    object: request.view.read(row, &current.value),
                    warnings: proposed.warnings,
                });
            }
            match self.replace(request, &current, object).await? {
                Replaced::Done(object) => {
                    return Ok(Outcome {
                        object: request.view.read(row, &object),
                        warnings: proposed.warnings,
                    });
                }
                Replaced::Lost(newer) => found = newer,
            }
        }
    }

    /// Admits, validates and stores a changed object, or takes it out if nothing holds it any longer.
    async fn replace(
        &self,
        request: &Write<'_>,
        current: &Stored,
        mut object: Value,
    ) -> Result<Replaced, Status> {
        let row = request.row;
        let review = Review {
            operation: Operation::Update,
            resource: row.id,
            key: request.key,
            subresource: request.view.name(),
            old: Some(&current.value),
            caller: request.caller,
            dry_run: request.options.dry_run,
        };
        let admitted = self.admit(review, &mut object).await?;
        let result = self.store_changed(request, current, &object).await;
        let took_place = matches!(result, Ok(Replaced::Done(_)));
        admitted.settle(took_place, &object).await;
        result
    }

    async fn store_changed(
        &self,
        request: &Write<'_>,
        current: &Stored,
        object: &Value,
    ) -> Result<Replaced, Status> {
        let row = request.row;
        let mut faults = Faults::new();
        validate_metadata(row, object, &mut faults);
        validate_metadata_update(object, &current.value, &mut faults);
        if request.view.is_whole() {
            row.behaviour.validate(object, &mut faults);
            row.behaviour
                .validate_update(object, &current.value, &mut faults);
        }
        refuse_faults(row, object, faults)?;
        if request.options.dry_run {
            return Ok(Replaced::Done(object.clone()));
        }
        if released(object) {
            return self.remove(request.caller, row, current, object).await;
        }
        let store_key = Self::store_key(row, request.key);
        let guard = Guard::At(current.revision);
        let written = self
            .store
            .put(store_key.as_bytes(), encode(object), guard, None)
            .await?;
        Ok(match written {
            Written::Done(revision) => Replaced::Done(Stored::new(object.clone(), revision).value),
            Written::Refused(newer) => Replaced::Lost(newer),
        })
    }
}

/// What a compare-and-swap came to.
pub(super) enum Replaced {
    /// The object as it is now, or was at its end.
    Done(Value),
    /// Another write came first; what is there now.
    Lost(Option<KeyValue>),
}

/// An update or patch.
struct Write<'a> {
    caller: &'a Caller,
    row: &'a Resource,
    key: &'a ObjectKey,
    view: View,
    options: &'a WriteOptions,
}

impl Write<'_> {
    /// The version and identity that the client says it has seen must be the current ones.
    fn check_preconditions(&self, current: &Value, proposed: &Value) -> Result<(), Status> {
        let id = self.row.id;
        let version = meta::resource_version(proposed);
        if !version.is_empty() && version != "0" && version != meta::resource_version(current) {
            return Err(Status::modified(id, &self.key.name));
        }
        let (given, actual) = (meta::uid(proposed), meta::uid(current));
        if !given.is_empty() && given != actual {
            return Err(Status::conflict(
                id,
                &self.key.name,
                &format!(
                    "Precondition failed: UID in precondition: {given}, UID in object meta: {actual}"
                ),
            ));
        }
        Ok(())
    }

    /// Keeps what clients may not change, fills in defaults and moves the generation.
    fn finish(&self, current: &Value, object: &mut Value) {
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ] {
            let kept = meta::at(current, &["metadata", field]).cloned();
            meta::set_metadata(object, field, kept);
        }
        let metadata = meta::metadata_mut(object);
        metadata.remove("managedFields");
        metadata.remove("selfLink");
        if self.view.is_whole() {
            if self.row.has_status() {
                match (current.get("status"), object.as_object_mut()) {
                    (Some(status), _) => object["status"] = status.clone(),
                    (None, Some(fields)) => {
                        fields.remove("status");
                    }
                    (None, None) => {}
                }
            }
            self.row.behaviour.prepare_update(object, current);
        }
        self.row.behaviour.default(object);
        let moved = match self.row.generation {
            Generation::None => false,
            Generation::Spec => object.get("spec") != current.get("spec"),
            Generation::Content => !same_but_metadata(object, current),
        };
        if moved {
            let generation = meta::number(current, &["metadata", "generation"]).unwrap_or(0) + 1;
            meta::set_metadata(object, "generation", Some(Value::from(generation)));
        }
    }
}
