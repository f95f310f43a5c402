//! Field ownership (metadata.managedFields) and server-side apply: who wrote which fields last, who applied which, and
//! what an apply may therefore change, must not change, and takes away.
//! Source: KEP-555; sigs.k8s.io/structured-merge-diff, `merge`.
//!
//! Inside, the fieldsV1 of an entry are a text: as trees of JSON values they would be most of what the control plane
//! keeps in memory. [`shown`] makes the trees that clients see.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::status::{Cause, Details};
use super::{Status, meta};
use crate::resource::Resource;
use crate::resource::schema::{Node, Set};

mod set;
mod typed;

pub use set::FieldSet;
use typed::Typed;

/// The field manager of `kubectl apply --server-side`.
const KUBECTL: &str = "kubectl";
/// Where `kubectl apply` without --server-side keeps what it applied.
const LAST_APPLIED: &[&str] = &[
    "metadata",
    "annotations",
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// Who is said to own what an object had before anybody was noted.
const BEFORE: &str = "before-first-apply";
/// What nobody owns: the server's own, and what tells the object from others.
const OWNERLESS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// What a manager did to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// What tells one entry of managedFields from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Manager {
    operation: Operation,
    name: String,
    /// "" for an apply, which goes on under a newer version.
    api_version: String,
    subresource: String,
}

impl Manager {
    /// As conflicts name it.
    fn shown(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text = format!("{text} with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text = format!("{text} using {}", self.api_version);
        }
        text
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    set: FieldSet,
    api_version: String,
    time: String,
}

/// Who owns which fields of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managers(BTreeMap<Manager, Owned>);

impl Managers {
    /// As an object has them; `None`: it has none, or none that can be read.
    pub fn of(object: &Value) -> Option<Self> {
        let entries = meta::list(object, &["metadata", "managedFields"]);
        if entries.is_empty() {
            return None;
        }
        let mut managers = BTreeMap::new();
        for entry in entries {
            // One empty entry asks to forget all.
            if entry.as_object().is_some_and(Map::is_empty) && entries.len() == 1 {
                return Some(Self::default());
            }
            let operation = match meta::text(entry, &["operation"]) {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            let api_version = meta::text(entry, &["apiVersion"]).to_owned();
            let manager = Manager {
                operation,
                name: meta::text(entry, &["manager"]).to_owned(),
                api_version: match operation {
                    Operation::Apply => String::new(),
                    Operation::Update => api_version.clone(),
                },
                subresource: meta::text(entry, &["subresource"]).to_owned(),
            };
            let owned = Owned {
                set: FieldSet::from_value(&tree(&entry["fieldsV1"]))?,
                api_version,
                time: meta::text(entry, &["time"]).to_owned(),
            };
            managers.insert(manager, owned);
        }
        Some(Self(managers))
    }

    /// Puts them into an object, in Kubernetes' order.
    pub fn write(&self, object: &mut Value) {
        let mut entries: Vec<(&Manager, &Owned)> = self.0.iter().collect();
        let order = |(manager, owned): &(&Manager, &Owned)| {
            (manager.operation, owned.time.clone(), manager.name.clone())
        };
        entries.sort_by_key(order);
        let entries: Vec<Value> = entries
            .into_iter()
            .map(|(manager, owned)| {
                let mut entry = json!({
                    "manager": manager.name,
                    "operation": manager.operation.name(),
                    "apiVersion": owned.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": owned.set.to_value().to_string(),
                });
                for (field, text) in [("time", &owned.time), ("subresource", &manager.subresource)]
                {
                    if !text.is_empty() {
                        entry[field] = json!(text);
                    }
                }
                entry
            })
            .collect();
        let entries = (!entries.is_empty()).then_some(Value::Array(entries));
        meta::set_metadata(object, "managedFields", entries);
    }

    /// Whether both own the same, whenever they took it.
    pub fn same_sets(&self, other: &Self) -> bool {
        let sets = |managers: &Self| -> Vec<(Manager, FieldSet)> {
            let each = managers.0.iter();
            each.map(|(manager, owned)| (manager.clone(), owned.set.clone()))
                .collect()
        };
        sets(self) == sets(other)
    }
}

/// fieldsV1 as a tree, however it is kept.
fn tree(fields: &Value) -> Cow<'_, Value> {
    match fields {
        Value::String(text) => Cow::Owned(serde_json::from_str(text).unwrap_or(Value::Null)),
        tree => Cow::Borrowed(tree),
    }
}

/// An object as clients see it: with trees for fieldsV1.
pub fn shown(object: &Value) -> Cow<'_, Value> {
    let entries = meta::list(object, &["metadata", "managedFields"]);
    if !entries.iter().any(|entry| entry["fieldsV1"].is_string()) {
        return Cow::Borrowed(object);
    }
    let mut shown = object.clone();
    if let Some(entries) = shown["metadata"]["managedFields"].as_array_mut() {
        for entry in entries {
            entry["fieldsV1"] = tree(&entry["fieldsV1"]).into_owned();
        }
    }
    Cow::Owned(shown)
}

/// A writer of an object, as ownership sees it.
#[derive(Clone)]
pub struct Writer<'a> {
    types: &'a Set,
    root: Node,
    api_version: String,
    name: &'a str,
    subresource: &'a str,
    /// The status has owners of its own.
    apart: bool,
    now: String,
}

impl<'a> Writer<'a> {
    /// Of a kind, through a subresource or not.
    pub fn new(
        types: &'a Set,
        row: &Resource,
        name: &'a str,
        subresource: Option<&'a str>,
        now: String,
    ) -> Option<Self> {
        Some(Self {
            types,
            root: Node::Object(types.index(&row.definition)?),
            api_version: row.id.api_version(),
            name,
            subresource: subresource.unwrap_or(""),
            apart: row.has_status(),
            now,
        })
    }

    fn typed(&self) -> Typed<'_> {
        Typed::new(self.types, &self.root)
    }

    fn manager(&self, operation: Operation) -> Manager {
        Manager {
            operation,
            name: self.name.to_owned(),
            api_version: match operation {
                Operation::Apply => String::new(),
                Operation::Update => self.api_version.clone(),
            },
            subresource: self.subresource.to_owned(),
        }
    }

    fn owned(&self, set: FieldSet) -> Owned {
        Owned {
            set,
            api_version: self.api_version.clone(),
            time: self.now.clone(),
        }
    }

    /// What of a set can be owned through the writer's part of the object.
    fn ownable(&self, mut set: FieldSet) -> FieldSet {
        if self.subresource == "status" {
            let status = set.child("f:status").cloned().unwrap_or_default();
            let mut only = FieldSet::default();
            only.put("f:status", status);
            return only;
        }
        for path in OWNERLESS {
            set.cut(path);
        }
        set.omit(&["metadata"]);
        if self.apart {
            set.cut(&["status"]);
        }
        set
    }

    /// Notes what a create, update or patch changed; `old` is `None` for a create.
    pub fn update(&self, managers: &mut Managers, old: Option<&Value>, new: &Value) {
        let nothing = json!({});
        let changes = self.typed().compare(old.or(Some(&nothing)), Some(new));
        let taken = changes.modified.union(&changes.added);
        for owned in managers.0.values_mut() {
            owned.set = owned.set.difference(&taken).difference(&changes.removed);
        }
        let taken = self.ownable(taken);
        if !taken.is_empty() {
            let own = managers
                .0
                .entry(self.manager(Operation::Update))
                .or_insert_with(|| self.owned(FieldSet::default()));
            own.set = own.set.union(&taken);
            own.time.clone_from(&self.now);
        }
        managers.0.retain(|_, owned| !owned.set.is_empty());
    }

    /// The owners of an object that an apply makes.
    pub fn first_apply(&self, config: &Value) -> Managers {
        let set = self.ownable(self.typed().fields(config));
        let owned = self.owned(set);
        Managers(BTreeMap::from([(self.manager(Operation::Apply), owned)]))
    }

    /// What is wrong with an applied configuration before anything is merged.
    pub fn check(&self, config: &Value) -> Result<(), Status> {
        if meta::at(config, &["metadata", "managedFields"]).is_some() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        match self.typed().nameless(config) {
            Some(why) => Err(Status::internal(format!(
                "failed to create typed patch object: {why}"
            ))),
            None => Ok(()),
        }
    }

    /// The object with a configuration applied, and its owners then.
    pub fn apply(
        &self,
        live: &Value,
        config: &Value,
        force: bool,
    ) -> Result<(Value, Managers), Status> {
        let typed = self.typed();
        let mut managers = Managers::of(live).unwrap_or_else(|| {
            let mut before = Managers::default();
            let unknown = Writer {
                name: BEFORE,
                subresource: "",
                ..self.clone()
            };
            unknown.update(&mut before, None, live);
            before
        });
        let merged = typed.merge(live, config);
        let own = self.manager(Operation::Apply);
        let last = managers.0.get(&own).map(|owned| owned.set.clone());
        // With what nobody owns, so that pruning leaves that alone.
        let set = typed.fields(config);
        managers.0.insert(own.clone(), self.owned(set.clone()));
        let merged = match last {
            Some(last) if !last.is_empty() => prune(&typed, &merged, &last, &managers),
            _ => merged,
        };
        managers
            .0
            .insert(own.clone(), self.owned(self.ownable(set)));
        let changes = typed.compare(Some(live), Some(&merged));
        let taken = changes.modified.union(&changes.added);
        let excused = self.excused(live);
        let mut conflicts = Vec::new();
        for (manager, owned) in &mut managers.0 {
            if *manager == own {
                continue;
            }
            let contested = owned.set.intersection(&taken);
            if !contested.is_empty() {
                let paths = contested.difference(&excused).paths();
                if !paths.is_empty() {
                    conflicts.push((manager.shown(), paths));
                }
                owned.set = owned.set.difference(&contested);
            }
            owned.set = owned.set.difference(&changes.removed);
        }
        if !force && !conflicts.is_empty() {
            return Err(conflict(&conflicts));
        }
        managers.0.retain(|_, owned| !owned.set.is_empty());
        Ok((self.with_last_applied(merged, config), managers))
    }

    /// What `kubectl apply` without --server-side has set before, and nobody has changed since: kubectl may take it over.
    fn excused(&self, live: &Value) -> FieldSet {
        let last = meta::text(live, LAST_APPLIED);
        let (true, Ok(last)) = (self.name == KUBECTL, serde_json::from_str::<Value>(last)) else {
            return FieldSet::default();
        };
        let typed = self.typed();
        let changes = typed.compare(Some(&last), Some(live));
        typed
            .fields(&last)
            .difference(&changes.modified)
            .difference(&changes.added)
            .difference(&changes.removed)
    }

    /// The annotation of the client side, where there is one, follows what is applied, so that going back is possible.
    fn with_last_applied(&self, mut merged: Value, config: &Value) -> Value {
        if self.name == KUBECTL && !meta::text(&merged, LAST_APPLIED).is_empty() {
            merged["metadata"]["annotations"][LAST_APPLIED[2]] = json!(format!("{config}\n"));
        }
        merged
    }
}

/// Takes out what the manager applied last time and not this time, and nobody else owns.
fn prune(typed: &Typed<'_>, merged: &Value, last: &FieldSet, managers: &Managers) -> Value {
    let named = |set: &FieldSet| typed.with_named_fields(set);
    let without = |doomed: &FieldSet| typed.without(merged, doomed).unwrap_or_else(|| json!({}));
    let all = named(&typed.fields(merged));
    let pruned = without(&named(last));
    let mut owned = FieldSet::default();
    for manager in managers.0.values() {
        owned = owned.union(&manager.set);
    }
    // What anybody owns comes back, and what went along though the manager never owned it.
    let kept = named(&typed.fields(&pruned)).union(&named(&owned));
    let pruned = without(&all.difference(&kept));
    let kept = named(&typed.fields(&pruned));
    without(&all.difference(&kept).intersection(&named(last)))
}

/// 409, with every contested field as a cause.
fn conflict(conflicts: &[(String, Vec<String>)]) -> Status {
    let each = || {
        conflicts
            .iter()
            .flat_map(|(manager, paths)| paths.iter().map(move |path| (manager, path)))
    };
    let causes: Vec<Cause> = each()
        .map(|(manager, path)| Cause {
            reason: "FieldManagerConflict".to_owned(),
            message: format!("conflict with {manager}"),
            field: path.clone(),
        })
        .collect();
    let message = match each().next() {
        Some((manager, path)) if causes.len() == 1 => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
        }
        _ => {
            let lines: Vec<String> = conflicts
                .iter()
                .map(|(manager, paths)| {
                    format!("conflicts with {manager}:\n- {}", paths.join("\n- "))
                })
                .collect();
            format!(
                "Apply failed with {} conflicts: {}",
                causes.len(),
                lines.join("\n")
            )
        }
    };
    Status {
        code: 409,
        reason: "Conflict".to_owned(),
        message,
        details: Some(Box::new(Details {
            causes,
            ..Details::default()
        })),
    }
}

#[cfg(test)]
mod tests;
