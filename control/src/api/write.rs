//! Writing: update and patch, and what creates share with them. One path for all kinds: authorize, decode, default,
//! admit, validate, compare-and-swap in the store.

use serde_json::Value;

use super::admission::{Operation, Review};
use super::engine::Engine;
use super::history::Stored;
use super::managed::Managers;
use super::object::{encode, name_type, parse, place, refuse_faults, released, same_but_metadata};
use super::patch::{self, PatchError};
use super::subresource::View;
use super::{Caller, ObjectKey, PatchKind, ResourceId, Status, WriteOptions, meta};
use crate::resource::{
    Faults, Generation, Resource, Verb, schema, validate_metadata, validate_metadata_update,
    warnings,
};
use crate::store::{Guard, KeyValue, Written};

/// What a write came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The object as it is now.
    pub object: Value,
    /// What the client should know though the write succeeded.
    pub warnings: Vec<String>,
    /// Whether the write made it.
    pub created: bool,
}

/// What a write is to make of an object.
#[derive(Debug, Default)]
pub(super) struct Proposed {
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
    /// Who owns what then, where the write says so itself.
    pub(super) managers: Option<Managers>,
}

impl From<Outcome> for Proposed {
    fn from(decoded: Outcome) -> Self {
        Self {
            object: decoded.object,
            warnings: decoded.warnings,
            managers: None,
        }
    }
}

impl Engine {
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
            created: false,
        })
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
            Ok(Proposed {
                object: proposed.object.clone(),
                warnings: proposed.warnings.clone(),
                managers: None,
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
        if kind == PatchKind::Apply {
            return self.apply_object(&request, patch).await;
        }
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
                .map(Proposed::from)
                .map_err(|status| patch::undecodable(kind, &patch, status))
        };
        self.rewrite(&request, make).await
    }

    /// Reads, lets `make` propose the view's new content, and writes; again where another write came between.
    pub(super) async fn rewrite(
        &self,
        request: &Write<'_>,
        make: impl Fn(&Value) -> Result<Proposed, Status> + Send + Sync,
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
            let sent = Managers::of(&object);
            request.finish(&current.value, &mut object);
            self.own(
                request,
                &current.value,
                &mut object,
                (proposed.managers, sent),
            );
            let mut warnings = proposed.warnings;
            if request.view.is_whole() && object.get("spec") != current.value.get("spec") {
                warnings.extend(warnings::of(&object));
            }
            let outcome = |object: &Value| Outcome {
                object: request.view.read(row, object),
                warnings: warnings.clone(),
                created: false,
            };
            if object == current.value {
                return Ok(outcome(&current.value));
            }
            match self.replace(request, &current, object).await? {
                Replaced::Done(object) => return Ok(outcome(&object)),
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
        self.check_escalation(request.caller, row, &object, Some(&current.value))?;
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
pub(super) struct Write<'a> {
    pub(super) caller: &'a Caller,
    pub(super) row: &'a Resource,
    pub(super) key: &'a ObjectKey,
    pub(super) view: View,
    pub(super) options: &'a WriteOptions,
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
