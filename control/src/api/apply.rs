//! Server-side apply, and noting who owns the fields that other writes change.

use serde_json::Value;

use super::engine::Engine;
use super::managed::{Managers, Writer};
use super::object::place;
use super::patch::PatchError;
use super::subresource::View;
use super::write::{Outcome, Proposed, Write};
use super::{Caller, Status, WriteOptions, meta};
use crate::resource::{Faults, Path, Resource, Verb};

impl Engine {
    /// Applies a configuration: merges it into the object that there is, or makes the object.
    pub(super) async fn apply_object(
        &self,
        request: &Write<'_>,
        config: Value,
    ) -> Result<Outcome, Status> {
        let (row, options) = (request.row, request.options);
        if !matches!(request.view, View::Whole | View::Status) {
            let why = "apply is not supported by this subresource".to_owned();
            return Err(PatchError::Unsupported(why).into_status());
        }
        if options.field_manager.is_none() {
            let mut faults = Faults::new();
            faults.required(&Path::new("fieldManager"), "is required for apply patch");
            let (group, kind) = ("meta.k8s.io", "PatchOptions");
            return Err(Status::invalid(group, kind, "", faults.into_causes()));
        }
        let mut config = self.decode(row, config, options)?;
        place(row, request.key.namespace.as_deref(), &mut config.object)?;
        let name = meta::name(&config.object);
        if name != request.key.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                request.key.name
            )));
        }
        let writer = self.writer(request.caller, row, (request.view.name(), options))?;
        writer.check(&config.object)?;
        let make = |live: &Value| {
            let (object, managers) = writer.apply(live, &config.object, options.force)?;
            Ok(Proposed {
                object,
                warnings: config.warnings.clone(),
                managers: Some(managers),
            })
        };
        loop {
            let applied = self.rewrite(request, make).await;
            match applied {
                Err(status) if status.is_not_found() && request.view.is_whole() => {}
                other => return other,
            }
            let new = Proposed {
                object: config.object.clone(),
                warnings: config.warnings.clone(),
                managers: Some(writer.first_apply(&config.object)),
            };
            let namespace = request.key.namespace.as_deref();
            self.permitted(
                request.caller,
                row.id,
                Verb::Create,
                (namespace, None),
                None,
            )?;
            let created = self
                .create_decoded(request.caller, row, namespace, (new, options))
                .await;
            match created {
                Err(status) if status.is_already_exists() => {}
                other => return other,
            }
        }
    }

    fn writer<'a>(
        &'a self,
        caller: &'a Caller,
        row: &Resource,
        (subresource, options): (Option<&'a str>, &'a WriteOptions),
    ) -> Result<Writer<'a>, Status> {
        let name = options.field_manager.as_deref().unwrap_or(&caller.user);
        let now = meta::time((self.clock)());
        Writer::new(self.table.schema(), row, name, subresource, now)
            .ok_or_else(|| Status::internal(format!("no type {}", row.definition)))
    }

    /// Notes the owners of a changed object: those that an apply made, or the current ones (or those that the client
    /// sent), changed by what the write changes.
    pub(super) fn own(
        &self,
        request: &Write<'_>,
        current: &Value,
        object: &mut Value,
        (applied, sent): (Option<Managers>, Option<Managers>),
    ) {
        let kept = meta::at(current, &["metadata", "managedFields"]).cloned();
        let live = Managers::of(current);
        let row = request.row;
        let managers = match (applied, live.clone()) {
            (Some(applied), _) => applied,
            (None, live) => {
                let writer = self
                    .writer(request.caller, row, (request.view.name(), request.options))
                    .ok()
                    .filter(|_| row.owners);
                let Some(writer) = writer else {
                    return meta::set_metadata(object, "managedFields", kept);
                };
                let sent = sent.filter(|_| request.view.is_whole());
                let mut managers = sent.or(live).unwrap_or_default();
                writer.update(&mut managers, Some(current), object);
                managers
            }
        };
        if live.unwrap_or_default().same_sets(&managers) {
            // When nothing else has changed either, there is nothing to write, and no newer time to note.
            meta::set_metadata(object, "managedFields", kept);
            if object == current {
                return;
            }
        }
        managers.write(object);
    }

    /// Notes the owners of a new object.
    pub(super) fn own_new(
        &self,
        caller: &Caller,
        row: &Resource,
        object: &mut Value,
        (applied, options): (Option<Managers>, &WriteOptions),
    ) {
        if let Some(managers) = applied {
            return managers.write(object);
        }
        if let (true, Ok(writer)) = (row.owners, self.writer(caller, row, (None, options))) {
            let mut managers = Managers::default();
            writer.update(&mut managers, None, object);
            managers.write(object);
        }
    }
}
