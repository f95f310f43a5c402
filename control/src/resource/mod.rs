//! The table of resources: what the API serves, as data. Adding a kind is a row in [`rows`], with a [`Behaviour`] where
//! the kind has defaults, rules or columns of its own; the engine knows no kind by name.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::api::ResourceId;
use crate::api::reviews::Question;

pub mod columns;
pub mod faults;
pub mod kinds;
mod metadata;
pub mod names;
pub mod quantity;
pub mod rows;
pub mod schedule;
pub mod schema;
pub mod warnings;

pub use faults::{Faults, Path};
pub use metadata::{validate as validate_metadata, validate_update as validate_metadata_update};
pub use names::NameRule;

/// A verb of the API, as discovery and authorization name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Create an object.
    Create,
    /// Delete an object.
    Delete,
    /// Delete what a list shows.
    DeleteCollection,
    /// Read one object.
    Get,
    /// Read many.
    List,
    /// Change parts of an object.
    Patch,
    /// Replace an object.
    Update,
    /// Follow a list.
    Watch,
}

impl Verb {
    /// "deletecollection", "get", ...
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Get => "get",
            Self::List => "list",
            Self::Patch => "patch",
            Self::Update => "update",
            Self::Watch => "watch",
        }
    }
}

impl Verb {
    /// A verb by its name.
    pub fn parse(name: &str) -> Option<Self> {
        ALL_VERBS.iter().copied().find(|verb| verb.name() == name)
    }
}

/// All verbs, in discovery's order.
pub const ALL_VERBS: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// A part of an object with an address of its own.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// "status".
    pub name: &'static str,
    /// The group, version and kind of its body: ("", "v1", "Binding").
    pub kind: (&'static str, &'static str, &'static str),
    /// What may be done with it.
    pub verbs: &'static [Verb],
}

/// When metadata.generation moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The kind has none.
    None,
    /// When spec changes.
    Spec,
    /// When anything but metadata changes.
    Content,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// "Ready"
    pub name: &'static str,
    /// "string", "integer", "date".
    pub kind: &'static str,
    /// "name" for the object's name.
    pub format: &'static str,
    /// What it shows.
    pub description: &'static str,
    /// 0: always shown; 1: only in wide output.
    pub priority: i32,
}

/// What a kind does beyond what every object does. All of it is pure: a value in, a value or faults out.
pub trait Behaviour: Send + Sync + 'static {
    /// Fills in what the client left out; also run on objects read from a client's update.
    fn default(&self, _object: &mut Value) {}

    /// A new object's first state, after defaulting and before admission: resets what a client may not set.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Carries over from the old object what a client may not change by an update of the whole object.
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    /// What is wrong with an object.
    fn validate(&self, _object: &Value, _faults: &mut Faults) {}

    /// What is wrong with a change, beyond what [`Self::validate`] finds in the new object.
    fn validate_update(&self, _object: &Value, _old: &Value, _faults: &mut Faults) {}

    /// The seconds that a deletion gives the object to end; `None`: it goes at once.
    fn grace(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Why an object may never be deleted, where that is so.
    fn protected(&self, _object: &Value) -> Option<&'static str> {
        None
    }

    /// Whether a deletion answers with the object instead of a Status.
    fn returns_deleted(&self) -> bool {
        false
    }

    /// The columns of its table.
    fn columns(&self) -> &'static [Column] {
        columns::NAME_AND_AGE
    }

    /// The cells of an object's row, one for each column.
    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::name_and_age(object, now)
    }
}

/// A row of the table: a kind that the API serves.
pub struct Resource {
    /// Group, version and plural.
    pub id: ResourceId,
    /// "Deployment".
    pub kind: &'static str,
    /// "deployment".
    pub singular: &'static str,
    /// "deploy".
    pub short_names: &'static [&'static str],
    /// "all".
    pub categories: &'static [&'static str],
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// What may be done.
    pub verbs: &'static [Verb],
    /// Its subresources.
    pub subresources: &'static [Subresource],
    /// The rule for its names.
    pub names: NameRule,
    /// When its generation moves.
    pub generation: Generation,
    /// Whether metadata.managedFields is kept; not for kinds that machines write all the time and nobody applies.
    pub owners: bool,
    /// The fields that field selectors know beyond metadata.name and metadata.namespace, each with the text that stands
    /// for its absence ("" for texts, "false" for booleans).
    pub selectable: &'static [(&'static str, &'static str)],
    /// The definition's name in the schema.
    pub definition: String,
    /// What it asks, where its objects are questions that are answered and never stored.
    pub question: Option<Question>,
    /// The kind whose objects it measures, where it is asked of nodes and never stored.
    pub measures: Option<ResourceId>,
    /// What the kind does itself.
    pub behaviour: Box<dyn Behaviour>,
}

impl Resource {
    /// "`DeploymentList`".
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// A subresource by its name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    /// Whether status is kept apart from the rest of the object.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// The keys of all its objects in the store.
    pub fn prefix(&self) -> String {
        let group = if self.id.group.is_empty() {
            "core"
        } else {
            self.id.group
        };
        format!("/registry/{group}/{}/", self.id.plural)
    }
}

/// What the API serves.
pub struct Table {
    rows: Vec<Arc<Resource>>,
    by_id: HashMap<ResourceId, Arc<Resource>>,
    schema: Arc<schema::Set>,
}

impl Table {
    /// The kinds that are built in.
    pub fn built_in() -> Self {
        let mut builder = schema::Builder::default();
        let rows = rows::all(&mut builder);
        Self::new(rows, builder.build())
    }

    /// A table of these rows.
    pub fn new(rows: Vec<Resource>, schema: schema::Set) -> Self {
        let rows: Vec<Arc<Resource>> = rows.into_iter().map(Arc::new).collect();
        let by_id = rows.iter().map(|row| (row.id, row.clone())).collect();
        Self {
            rows,
            by_id,
            schema: Arc::new(schema),
        }
    }

    /// All rows, in the order of discovery.
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// A row by its identity.
    pub fn get(&self, id: ResourceId) -> Option<&Arc<Resource>> {
        self.by_id.get(&id)
    }

    /// A row by the parts of a URL.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.rows.iter().find(|row| {
            row.id.group == group && row.id.version == version && row.id.plural == plural
        })
    }

    /// The types of all rows.
    pub fn schema(&self) -> &Arc<schema::Set> {
        &self.schema
    }

    /// The groups with their versions, core first.
    pub fn groups(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for row in &self.rows {
            match groups.iter_mut().find(|(name, _)| *name == row.id.group) {
                Some((_, versions)) if versions.contains(&row.id.version) => {}
                Some((_, versions)) => versions.push(row.id.version),
                None => groups.push((row.id.group, vec![row.id.version])),
            }
        }
        groups
    }
}
