//! Subresources: parts of an object with an address of their own. Each is a view: how it is read from the object, and
//! what a write of it changes in the object.

use serde_json::{Value, json};

use super::engine::Engine;
use super::selector::LabelSelector;
use super::write::Outcome;
use super::{Caller, ObjectKey, ResourceId, Status, WriteOptions, meta};
use crate::resource::rows::NODES;
use crate::resource::{Resource, schema};

/// How a write sees the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// All of it but its status, if that is kept apart.
    Whole,
    /// Its status.
    Status,
    /// Its replicas, as a Scale.
    Scale,
    /// A pod's node, as a Binding.
    Binding,
    /// A namespace's spec.finalizers.
    Finalize,
}

impl View {
    /// The view of a subresource that can be updated.
    pub(super) fn of(row: &Resource, subresource: Option<&str>) -> Result<Self, Status> {
        match subresource {
            None => Ok(Self::Whole),
            Some(name) if row.subresource(name).is_none() => Err(Status::no_such_path()),
            Some("status") => Ok(Self::Status),
            Some("scale") => Ok(Self::Scale),
            Some("binding") => Ok(Self::Binding),
            Some("finalize") => Ok(Self::Finalize),
            Some(_) => Err(Status::method_not_allowed()),
        }
    }

    /// The subresource's name.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Whole => None,
            Self::Status => Some("status"),
            Self::Scale => Some("scale"),
            Self::Binding => Some("binding"),
            Self::Finalize => Some("finalize"),
        }
    }

    /// Whether it is the object itself.
    pub(super) fn is_whole(self) -> bool {
        self == Self::Whole
    }

    /// Whether its body has the type of the object.
    pub(super) fn is_object(self) -> bool {
        matches!(self, Self::Whole | Self::Status | Self::Finalize)
    }

    /// The definition of its body's type.
    pub(super) fn definition(self, row: &Resource) -> &str {
        match self {
            Self::Whole | Self::Status | Self::Finalize => &row.definition,
            Self::Scale => "io.k8s.api.autoscaling.v1.Scale",
            Self::Binding => "io.k8s.api.core.v1.Binding",
        }
    }

    /// What a client reads.
    pub(super) fn read(self, row: &Resource, object: &Value) -> Value {
        match self {
            Self::Scale => scale_of(row, object),
            Self::Whole | Self::Status | Self::Finalize | Self::Binding => object.clone(),
        }
    }

    /// The object after a write of the view.
    pub(super) fn merge(
        self,
        row: &Resource,
        current: &Value,
        proposed: Value,
    ) -> Result<Value, Status> {
        let mut object = current.clone();
        match self {
            Self::Whole => return Ok(proposed),
            Self::Status => match proposed.get("status") {
                Some(status) => object["status"] = status.clone(),
                None => object["status"] = json!({}),
            },
            Self::Scale => {
                let replicas = meta::number(&proposed, &["spec", "replicas"]).unwrap_or(0);
                if replicas < 0 {
                    let mut faults = crate::resource::Faults::new();
                    faults.invalid(
                        &crate::resource::Path::new("spec.replicas"),
                        &Value::from(replicas),
                        "must be greater than or equal to 0",
                    );
                    return Err(Status::invalid(
                        "autoscaling",
                        "Scale",
                        meta::name(current),
                        faults.into_causes(),
                    ));
                }
                meta::child_mut(&mut object, "spec")
                    .insert("replicas".to_owned(), Value::from(replicas));
            }
            Self::Binding => bind(row, &mut object, &proposed)?,
            Self::Finalize => {
                let left = meta::at(&proposed, &["spec", "finalizers"]).cloned();
                let spec = meta::child_mut(&mut object, "spec");
                spec.insert("finalizers".to_owned(), left.unwrap_or_else(|| json!([])));
            }
        }
        Ok(object)
    }
}

fn scale_of(row: &Resource, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let selector = LabelSelector::from_spec(&object["spec"]["selector"]);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": meta::number(object, &["spec", "replicas"]).unwrap_or(0)},
        "status": {
            "replicas": meta::number(object, &["status", "replicas"]).unwrap_or(0),
            "selector": selector.text(),
        },
    });
    if !row.namespaced {
        meta::set_metadata(&mut scale, "namespace", None);
    }
    scale
}

/// Puts a pod on a node.
fn bind(row: &Resource, object: &mut Value, binding: &Value) -> Result<(), Status> {
    let name = meta::name(object).to_owned();
    let node = meta::text(binding, &["target", "name"]);
    let kind = meta::text(binding, &["target", "kind"]);
    if !matches!(kind, "" | "Node") || node.is_empty() {
        return Err(Status::bad_request(
            "a binding's target must be a Node with a name",
        ));
    }
    let binding_id = ResourceId {
        plural: "pods/binding",
        ..row.id
    };
    let taken = meta::text(object, &["spec", "nodeName"]);
    if !taken.is_empty() {
        let why = format!("pod {name} is already assigned to node \"{taken}\"");
        return Err(Status::conflict(binding_id, &name, &why));
    }
    if meta::is_terminating(object) {
        let why = format!("pod {name} is being deleted, cannot be assigned to a host");
        return Err(Status::conflict(binding_id, &name, &why));
    }
    meta::child_mut(object, "spec").insert("nodeName".to_owned(), Value::from(node));
    let scheduled = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": meta::time(jiff::Timestamp::now()),
    });
    let status = meta::child_mut(object, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(scheduled);
    }
    Ok(())
}

impl Engine {
    /// Decodes the body of a view.
    pub(super) fn decode_view(
        &self,
        row: &Resource,
        view: View,
        body: Value,
        options: &WriteOptions,
    ) -> Result<Outcome, Status> {
        if view.is_object() {
            return self.decode(row, body, options);
        }
        let schema = self.table.schema();
        let index = schema
            .index(view.definition(row))
            .ok_or_else(|| Status::internal(format!("no type {}", view.definition(row))))?;
        let decoded = schema::decode(schema, index, body).map_err(Status::bad_request)?;
        Ok(Outcome {
            object: decoded.value,
            warnings: decoded.unknown,
            created: false,
        })
    }

    /// Reads a subresource.
    pub async fn read_subresource(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: &str,
    ) -> Result<Value, Status> {
        use crate::resource::Verb::Get;
        let place = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, Get, place, Some(subresource))?;
        let view = View::of(row, Some(subresource))?;
        self.cache.catch_up().await?;
        let found = self
            .cached(row, key)
            .ok_or_else(|| Status::not_found(resource, &key.name))?;
        Ok(view.read(row, &found.value))
    }

    /// Reads an object for what a subresource of it does elsewhere: a pod for its log, which a node has.
    pub async fn read_for(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        (verb, subresource): (crate::resource::Verb, &str),
    ) -> Result<std::sync::Arc<super::history::Stored>, Status> {
        let place = (key.namespace.as_deref(), Some(key.name.as_str()));
        let row = self.permitted(caller, resource, verb, place, Some(subresource))?;
        self.cache.catch_up().await?;
        self.cached(row, key)
            .ok_or_else(|| Status::not_found(resource, &key.name))
    }

    /// A node, for the control plane's own use.
    pub fn node(&self, name: &str) -> Result<std::sync::Arc<super::history::Stored>, Status> {
        let key = ObjectKey {
            namespace: None,
            name: name.to_owned(),
        };
        self.cached(self.row(NODES)?, &key)
            .ok_or_else(|| Status::not_found(NODES, name))
    }

    /// Posts to a subresource: a binding, an eviction, or the wish for a token.
    pub async fn post_subresource(
        &self,
        caller: &Caller,
        resource: ResourceId,
        key: &ObjectKey,
        subresource: &str,
        body: Value,
        options: &WriteOptions,
    ) -> Result<Value, Status> {
        use crate::resource::Verb::Create;
        let place = (key.namespace.as_deref(), Some(key.name.as_str()));
        self.permitted(caller, resource, Create, place, Some(subresource))?;
        let success = || json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        match subresource {
            "binding" => {
                self.update_object(caller, resource, key, Some(subresource), body, options)
                    .await?;
            }
            "eviction" => {
                self.evict(caller, key, (&body, options)).await?;
            }
            "token" => {
                let kind = "io.k8s.api.authentication.v1.TokenRequest";
                let schema = self.table.schema();
                let index = schema.index(kind);
                let index = index.ok_or_else(|| Status::internal(format!("no type {kind}")))?;
                let decoded = schema::decode(schema, index, body).map_err(Status::bad_request)?;
                self.cache.catch_up().await?;
                return self.request_token(caller, key, decoded.value);
            }
            _ => return Err(Status::method_not_allowed()),
        }
        Ok(success())
    }
}
