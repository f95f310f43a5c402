//! Creating objects.

use serde_json::Value;

use super::admission::{Operation, Review};
use super::engine::Engine;
use super::history::Stored;
use super::object::{encode, place, refuse_faults};
use super::write::{Outcome, Proposed};
use super::{Caller, ObjectKey, ResourceId, Status, WriteOptions, meta};
use crate::resource::{Faults, Generation, Resource, Verb, validate_metadata, warnings};
use crate::store::{Guard, Written};

/// How often a generated name may be taken before the client is told.
const NAME_ATTEMPTS: usize = 8;

impl Engine {
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
        let mut decoded = self.decode(row, object, options)?;
        if let Some(question) = row.question {
            if row.namespaced {
                place(row, namespace, &mut decoded.object)?;
            }
            decoded.object = self.answer(caller, row, question, decoded.object).await?;
            return Ok(decoded);
        }
        self.create_decoded(caller, row, namespace, (decoded.into(), options))
            .await
    }

    /// Creates an object that has been checked against its type.
    pub(super) async fn create_decoded(
        &self,
        caller: &Caller,
        row: &Resource,
        namespace: Option<&str>,
        (proposed, options): (Proposed, &WriteOptions),
    ) -> Result<Outcome, Status> {
        let mut outcome = Outcome {
            object: proposed.object,
            warnings: proposed.warnings,
            created: true,
        };
        Self::check_node_object(caller, row, &outcome.object)?;
        place(row, namespace, &mut outcome.object)?;
        if row.namespaced {
            self.check_namespace(row, namespace.unwrap_or(""), meta::name(&outcome.object))
                .await?;
        }
        self.begin(row, &mut outcome.object)?;
        outcome.warnings.extend(warnings::of(&outcome.object));
        self.own_new(
            caller,
            row,
            &mut outcome.object,
            (proposed.managers, options),
        );
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
        self.check_escalation(caller, row, &object, None)?;
        let review = Review {
            operation: Operation::Create,
            resource: row.id,
            key: &key,
            subresource: None,
            old: None,
            caller,
            dry_run: options.dry_run,
        };
        if self.is_taken(row, &key).await? {
            return Err(Status::already_exists(row.id, &key.name));
        }
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
}
