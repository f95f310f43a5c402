//! Role-based access control: what a caller may do by the roles that are bound to them. Roles and bindings are read where
//! the engine keeps them in memory.
//! Source: k8s.io/kubernetes, `plugin/pkg/auth/authorizer/rbac` and `pkg/registry/rbac/validation`.

use std::sync::Arc;

use serde_json::Value;

use super::engine::Engine;
use super::history::Stored;
use super::{Caller, ObjectKey, meta};
use crate::resource::rows::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES};

mod escalation;
pub mod policy;
mod rules;

pub use rules::{Action, matches};

/// The group that RBAC's users and groups are of.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// What a service account's user name begins with.
pub const SERVICE_ACCOUNT_USER: &str = "system:serviceaccount:";

/// A rule that applies to a caller, and by which binding.
pub struct Granted {
    /// The role that has the rule.
    role: Arc<Stored>,
    index: usize,
    /// `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    pub by: String,
}

impl Granted {
    /// The rule.
    pub fn rule(&self) -> &Value {
        &meta::list(&self.role.value, &["rules"])[self.index]
    }
}

impl Engine {
    /// The rules that apply to a caller: everywhere, and in a namespace.
    pub fn rules_of(&self, caller: &Caller, namespace: Option<&str>) -> Vec<Granted> {
        let mut granted = Vec::new();
        self.bound(caller, CLUSTER_ROLE_BINDINGS, "", &mut granted);
        if let Some(namespace) = namespace {
            self.bound(caller, ROLE_BINDINGS, namespace, &mut granted);
        }
        granted
    }

    fn bound(
        &self,
        caller: &Caller,
        bindings: super::ResourceId,
        namespace: &str,
        granted: &mut Vec<Granted>,
    ) {
        let Some(kind) = self.cache.kind(bindings) else {
            return;
        };
        let prefix = match namespace {
            "" => String::new(),
            namespace => format!("{namespace}/"),
        };
        for (_, binding) in kind.snapshot(&prefix).items {
            let subjects = meta::list(&binding.value, &["subjects"]);
            let Some(subject) = subjects.iter().find(|one| is_subject(one, caller)) else {
                continue;
            };
            let reference = &binding.value["roleRef"];
            let Some(role) = self.role(reference, namespace) else {
                continue;
            };
            let by = format!(
                "{} \"{}\" of {} \"{}\" to {} \"{}\"",
                meta::text(&binding.value, &["kind"]),
                full_name(&binding.value),
                meta::text(reference, &["kind"]),
                meta::text(reference, &["name"]),
                meta::text(subject, &["kind"]),
                subject_name(subject),
            );
            let rules = meta::list(&role.value, &["rules"]).len();
            granted.extend((0..rules).map(|index| Granted {
                role: role.clone(),
                index,
                by: by.clone(),
            }));
        }
    }

    /// The role that a binding in a namespace refers to.
    pub(super) fn role(&self, reference: &Value, namespace: &str) -> Option<Arc<Stored>> {
        let (kind, namespace) = match meta::text(reference, &["kind"]) {
            "ClusterRole" => (CLUSTER_ROLES, None),
            "Role" => (ROLES, Some(namespace.to_owned())),
            _ => return None,
        };
        let key = ObjectKey {
            namespace,
            name: meta::text(reference, &["name"]).to_owned(),
        };
        self.cached(self.row(kind).ok()?, &key)
    }

    /// Whether a role that is bound to the caller allows an action; by which binding.
    pub fn allowed_by_role(&self, caller: &Caller, action: &Action<'_>) -> Option<String> {
        let granted = self.rules_of(caller, action.namespace);
        let found = granted.iter().find(|one| matches(one.rule(), action))?;
        Some(format!("RBAC: allowed by {}", found.by))
    }
}

/// "namespace/name", as a subject of kind `ServiceAccount` is shown, or the name.
fn subject_name(subject: &Value) -> String {
    let name = meta::text(subject, &["name"]);
    match meta::text(subject, &["namespace"]) {
        "" => name.to_owned(),
        namespace => format!("{name}/{namespace}"),
    }
}

fn full_name(binding: &Value) -> String {
    match meta::namespace(binding) {
        "" => meta::name(binding).to_owned(),
        namespace => format!("{}/{namespace}", meta::name(binding)),
    }
}

fn is_subject(subject: &Value, caller: &Caller) -> bool {
    let name = meta::text(subject, &["name"]);
    match meta::text(subject, &["kind"]) {
        "User" => caller.user == name,
        "Group" => caller.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let namespace = meta::text(subject, &["namespace"]);
            caller
                .user
                .strip_prefix(SERVICE_ACCOUNT_USER)
                .and_then(|rest| rest.split_once(':'))
                == Some((namespace, name))
        }
        _ => false,
    }
}
