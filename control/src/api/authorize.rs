//! Authorization: who may do what. Administrators may all; a node's agent may what its own pods need; everybody may what
//! the roles say that are bound to them.

use serde_json::Value;

use super::engine::Engine;
use super::meta;
use super::rbac::Action;
use super::watch::Scope;
use super::{Caller, ObjectKey, Status};
use crate::resource::rows::{
    CONFIG_MAPS, ENDPOINT_SLICES, EVENTS, LEASES, NODES, PERSISTENT_VOLUMES, PODS, SECRETS,
    SERVICE_ACCOUNTS, SERVICES, VOLUME_CLAIMS,
};
use crate::resource::{Resource, Verb};

/// The group that may all.
const ADMINISTRATORS: &str = "system:masters";
/// The group of nodes' agents.
const NODES_GROUP: &str = "system:nodes";
/// What a node's user name begins with.
const NODE_USER: &str = "system:node:";
/// Where nodes' leases are.
const LEASE_NAMESPACE: &str = "kube-node-lease";

impl Caller {
    /// Whether it may all.
    pub fn is_administrator(&self) -> bool {
        self.groups.iter().any(|group| group == ADMINISTRATORS)
    }

    /// The name of the node whose agent it is.
    pub fn node(&self) -> Option<&str> {
        let member = self.groups.iter().any(|group| group == NODES_GROUP);
        self.user.strip_prefix(NODE_USER).filter(|_| member)
    }
}

/// A request, as far as authorization looks at it.
struct Request<'a> {
    row: &'a Resource,
    verb: Verb,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    subresource: Option<&'a str>,
}

impl<'a> Request<'a> {
    fn action(&self) -> Action<'a> {
        Action {
            verb: self.verb.name(),
            group: self.row.id.group,
            resource: self.row.id.plural,
            subresource: self.subresource,
            namespace: self.namespace,
            name: self.name,
            path: None,
        }
    }
}

impl Engine {
    /// Refuses what a caller may not do.
    pub(super) fn authorize(
        &self,
        caller: &Caller,
        row: &Resource,
        verb: Verb,
        namespace: Option<&str>,
        name: Option<&str>,
        subresource: Option<&str>,
    ) -> Result<(), Status> {
        if caller.is_administrator() {
            return Ok(());
        }
        let request = Request {
            row,
            verb,
            namespace,
            name,
            subresource,
        };
        if caller
            .node()
            .is_some_and(|node| self.node_may(node, &request))
            || self.allowed_by_role(caller, &request.action()).is_some()
        {
            return Ok(());
        }
        Err(refused(caller, &request))
    }

    /// Whether a caller may do something, and why ("" where no role says so).
    pub fn decide(&self, caller: &Caller, action: &Action<'_>) -> Option<String> {
        if caller.is_administrator() {
            return Some(String::new());
        }
        let served = self.table.rows().iter();
        let row = served
            .filter(|row| row.id.group == action.group)
            .find(|row| row.id.plural == action.resource);
        let verb = Verb::parse(action.verb);
        if let (Some(node), Some(row), Some(verb), None) = (caller.node(), row, verb, action.path) {
            let request = Request {
                row,
                verb,
                namespace: action.namespace,
                name: action.name,
                subresource: action.subresource,
            };
            if self.node_may(node, &request) {
                return Some(String::new());
            }
        }
        self.allowed_by_role(caller, action)
    }

    /// Lists and watches that are allowed for what they select: a node's own pods.
    pub(super) fn permitted_selection(
        &self,
        caller: &Caller,
        row: &Resource,
        verb: Verb,
        scope: &Scope,
        refused: Status,
    ) -> Result<&std::sync::Arc<Resource>, Status> {
        let own = caller.node().is_some_and(|node| {
            scope.selection.fields.value_of("spec.nodeName") == Some(node)
                && matches!(verb, Verb::List | Verb::Watch)
        });
        if row.id == PODS && own {
            self.row(row.id)
        } else {
            Err(refused)
        }
    }

    fn node_may(&self, node: &str, request: &Request<'_>) -> bool {
        use Verb::{Create, Delete, Get, List, Patch, Update, Watch};
        let verb = request.verb;
        let own_name = request.name == Some(node);
        let id = request.row.id;
        if id == NODES {
            // A create has no name in its request line; its object is checked on the way (see `check_node_object`).
            return match verb {
                Get | List | Watch | Create => request.subresource.is_none(),
                Patch | Update => own_name,
                Delete | Verb::DeleteCollection => false,
            };
        }
        if id == LEASES {
            let home = request.namespace == Some(LEASE_NAMESPACE);
            return home && (verb == Create || (own_name && matches!(verb, Get | Patch | Update)));
        }
        if id == EVENTS {
            return matches!(verb, Create | Patch | Update);
        }
        if id == PODS {
            let status = request.subresource == Some("status") && matches!(verb, Patch | Update);
            let whole = request.subresource.is_none() && matches!(verb, Get | Delete);
            return (status || whole) && self.runs_on(request, node);
        }
        if id == SERVICES || id == ENDPOINT_SLICES {
            return matches!(verb, Get | List | Watch);
        }
        // A token is bound to one of the node's pods: see `bind_token`.
        if id == SERVICE_ACCOUNTS && request.subresource == Some("token") {
            return verb == Create && self.a_pod_needs(node, request);
        }
        if [SECRETS, CONFIG_MAPS, SERVICE_ACCOUNTS, VOLUME_CLAIMS].contains(&id) {
            let whole = request.subresource.is_none();
            return whole && verb == Get && self.a_pod_needs(node, request);
        }
        if id == PERSISTENT_VOLUMES {
            let whole = request.subresource.is_none();
            return whole && verb == Get && self.a_claim_is_bound(node, request);
        }
        false
    }

    fn runs_on(&self, request: &Request<'_>, node: &str) -> bool {
        let Some(name) = request.name else {
            return false;
        };
        let key = ObjectKey {
            namespace: request.namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        // A pod that is gone is nobody's: the agent is told that it is not found.
        self.cached(request.row, &key)
            .is_none_or(|pod| meta::text(&pod.value, &["spec", "nodeName"]) == node)
    }

    /// Whether a pod on the node refers to the secret, config map or service account.
    fn a_pod_needs(&self, node: &str, request: &Request<'_>) -> bool {
        let (Some(namespace), Some(name), Some(pods)) =
            (request.namespace, request.name, self.cache.kind(PODS))
        else {
            return false;
        };
        let plural = request.row.id.plural;
        pods.snapshot(&format!("{namespace}/"))
            .items
            .iter()
            .filter(|(_, pod)| meta::text(&pod.value, &["spec", "nodeName"]) == node)
            .any(|(_, pod)| refers_to(&pod.value["spec"], plural, name))
    }

    /// Whether a pod on the node uses a claim that is bound to the volume.
    fn a_claim_is_bound(&self, node: &str, request: &Request<'_>) -> bool {
        let (Some(name), Ok(volumes), Ok(claims)) = (
            request.name,
            self.row(PERSISTENT_VOLUMES),
            self.row(VOLUME_CLAIMS),
        ) else {
            return false;
        };
        let volume = ObjectKey {
            namespace: None,
            name: name.to_owned(),
        };
        let Some(volume) = self.cached(volumes, &volume) else {
            return false;
        };
        let claim = &volume.value["spec"]["claimRef"];
        let key = ObjectKey {
            namespace: Some(meta::text(claim, &["namespace"]).to_owned()),
            name: meta::text(claim, &["name"]).to_owned(),
        };
        let is_bound = self
            .cached(claims, &key)
            .is_some_and(|claim| meta::text(&claim.value, &["spec", "volumeName"]) == name);
        let of_claim = Request {
            row: claims,
            verb: Verb::Get,
            namespace: key.namespace.as_deref(),
            name: Some(&key.name),
            subresource: None,
        };
        is_bound && self.a_pod_needs(node, &of_claim)
    }

    /// A node's agent makes only its own Node and Lease.
    pub(super) fn check_node_object(
        caller: &Caller,
        row: &Resource,
        object: &Value,
    ) -> Result<(), Status> {
        let Some(node) = caller.node().filter(|_| !caller.is_administrator()) else {
            return Ok(());
        };
        let name = meta::name(object);
        if (row.id == NODES || row.id == LEASES) && name != node {
            return Err(Status::forbidden(
                row.id,
                name,
                &format!(
                    "node {node:?} is not allowed to create {} {name:?}",
                    row.singular
                ),
            ));
        }
        Ok(())
    }
}

/// Whether a pod's spec names an object of a kind anywhere that pods can.
fn refers_to(spec: &Value, plural: &str, name: &str) -> bool {
    let fields: &[&str] = match plural {
        "secrets" => &[
            "secretName",
            "secretRef",
            "secretKeyRef",
            "secret",
            "imagePullSecrets",
        ],
        "configmaps" => &["configMap", "configMapRef", "configMapKeyRef"],
        "persistentvolumeclaims" => &["claimName"],
        _ => &["serviceAccountName"],
    };
    match spec {
        Value::Object(entries) => entries.iter().any(|(field, value)| {
            let named = fields.contains(&field.as_str()) && names(value, name);
            named || refers_to(value, plural, name)
        }),
        Value::Array(items) => items.iter().any(|item| refers_to(item, plural, name)),
        _ => false,
    }
}

fn names(value: &Value, name: &str) -> bool {
    match value {
        Value::String(text) => text == name,
        Value::Object(reference) => reference.get("name").is_some_and(|found| found == name),
        Value::Array(items) => items.iter().any(|item| names(item, name)),
        _ => false,
    }
}

fn refused(caller: &Caller, request: &Request<'_>) -> Status {
    let id = request.row.id;
    let resource = match request.subresource {
        Some(subresource) => format!("{}/{subresource}", id.plural),
        None => id.plural.to_owned(),
    };
    let place = match request.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    Status::forbidden(
        id,
        request.name.unwrap_or(""),
        &format!(
            "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}",
            caller.user,
            request.verb.name(),
            id.group
        ),
    )
}
