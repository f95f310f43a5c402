//! The objects that the table is made from, and which of its entries they touch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::compile;
use super::table::Table;

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// An object that the table is made from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A Service.
    Service(Box<core::Service>),
    /// Some endpoints of a Service.
    Slice(Box<discovery::EndpointSlice>),
    /// A Node.
    Node(Box<core::Node>),
}

impl Input {
    /// Which object it is; `None` for one without a name.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Service(service) => Key::Service(name_of(&service.metadata)?),
            Self::Slice(slice) => Key::Slice(name_of(&slice.metadata)?),
            Self::Node(node) => Key::Node(node.metadata.name.clone()?),
        })
    }
}

/// Namespace and name.
type Name = (String, String);

/// Names an [`Input`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A Service.
    Service(Name),
    /// An `EndpointSlice`.
    Slice(Name),
    /// A Node.
    Node(String),
}

fn name_of(metadata: &ObjectMeta) -> Option<Name> {
    Some((metadata.namespace.clone()?, metadata.name.clone()?))
}

/// The service that a slice belongs to.
fn owner(slice: &discovery::EndpointSlice) -> Option<Name> {
    let (namespace, _) = name_of(&slice.metadata)?;
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some((namespace, service.clone()))
}

/// The objects as they are now.
#[derive(Debug, Default)]
pub(super) struct Index {
    services: BTreeMap<Name, core::Service>,
    /// By service, then by the slice's name.
    slices: BTreeMap<Name, BTreeMap<String, discovery::EndpointSlice>>,
    /// Which service each slice was counted to; a slice's label may change.
    owners: HashMap<Name, Name>,
    nodes: BTreeMap<String, core::Node>,
    /// The table's entries of each service, so that those of a port that is gone can be found.
    entries: HashMap<Name, BTreeSet<String>>,
    touched_services: BTreeSet<Name>,
    touched_nodes: BTreeSet<String>,
}

impl Index {
    /// Puts an object in the place of its older self.
    pub fn apply(&mut self, input: Input) {
        match input {
            Input::Service(service) => {
                if let Some(name) = name_of(&service.metadata) {
                    self.touched_services.insert(name.clone());
                    self.services.insert(name, *service);
                }
            }
            Input::Slice(slice) => {
                if let Some(name) = name_of(&slice.metadata) {
                    self.remove(&Key::Slice(name.clone()));
                    if let Some(owner) = owner(&slice) {
                        self.touched_services.insert(owner.clone());
                        self.owners.insert(name.clone(), owner.clone());
                        self.slices.entry(owner).or_default().insert(name.1, *slice);
                    }
                }
            }
            Input::Node(node) => {
                if let Some(name) = node.metadata.name.clone() {
                    self.touched_nodes.insert(name.clone());
                    self.nodes.insert(name, *node);
                }
            }
        }
    }

    /// Takes an object out; one that is not there is as good as gone.
    pub fn remove(&mut self, key: &Key) {
        match key {
            Key::Service(name) => {
                self.services.remove(name);
                self.touched_services.insert(name.clone());
            }
            Key::Slice(name) => {
                let Some(owner) = self.owners.remove(name) else {
                    return;
                };
                if let Some(slices) = self.slices.get_mut(&owner) {
                    slices.remove(&name.1);
                    if slices.is_empty() {
                        self.slices.remove(&owner);
                    }
                }
                self.touched_services.insert(owner);
            }
            Key::Node(name) => {
                self.nodes.remove(name);
                self.touched_nodes.insert(name.clone());
            }
        }
    }

    /// Every object's key, to find those that a new list no longer has.
    pub fn keys(&self) -> BTreeSet<Key> {
        let services = self.services.keys().cloned().map(Key::Service);
        let slices = self.owners.keys().cloned().map(Key::Slice);
        let nodes = self.nodes.keys().cloned().map(Key::Node);
        services.chain(slices).chain(nodes).collect()
    }

    /// Brings a table up to date, looking only at what was touched.
    pub fn update(&mut self, table: &mut Table) {
        for name in std::mem::take(&mut self.touched_services) {
            let slices = self
                .slices
                .get(&name)
                .into_iter()
                .flat_map(BTreeMap::values);
            let compiled = self.services.get(&name);
            let compiled =
                compiled.map_or(Vec::new(), |service| compile::service(service, &slices));
            let new: BTreeSet<_> = compiled.iter().map(|port| port.id.clone()).collect();
            let old = self.entries.remove(&name).unwrap_or_default();
            for gone in old.difference(&new) {
                table.services.remove(gone);
            }
            if !new.is_empty() {
                self.entries.insert(name, new);
            }
            for port in compiled {
                let known = table.services.get(&port.id);
                if known.is_none_or(|known| **known != port) {
                    table.services.insert(port.id.clone(), Arc::new(port));
                }
            }
        }
        for name in std::mem::take(&mut self.touched_nodes) {
            match self.nodes.get(&name).and_then(compile::node) {
                Some(node) => {
                    let known = table.nodes.get(&name);
                    if known.is_none_or(|known| **known != node) {
                        table.nodes.insert(name, Arc::new(node));
                    }
                }
                None => {
                    table.nodes.remove(&name);
                }
            }
        }
    }
}
