//! Roles and their bindings.

use jiff::Timestamp;
use serde_json::Value;

use super::super::{Behaviour, Column, Faults, Path, columns};
use super::fill;
use crate::api::meta;
use crate::api::rbac::GROUP;

/// What roles do; whether they are of the whole cluster.
pub struct Roles(pub bool);
/// What bindings do; whether they are of the whole cluster.
pub struct Bindings(pub bool);

impl Behaviour for Roles {
    fn validate(&self, object: &Value, faults: &mut Faults) {
        for (at, rule) in meta::list(object, &["rules"]).iter().enumerate() {
            policy_rule(rule, self.0, &Path::new("rules").index(at), faults);
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::rbac::ROLES
    }

    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        columns::rbac::role(object)
    }
}

fn policy_rule(rule: &Value, wide: bool, path: &Path, faults: &mut Faults) {
    let is_empty = |field: &str| meta::list(rule, &[field]).is_empty();
    if is_empty("verbs") {
        let why = "verbs must contain at least one value";
        faults.required(&path.child("verbs"), why);
    }
    if !is_empty("nonResourceURLs") {
        let place = path.child("nonResourceURLs");
        let given = &rule["nonResourceURLs"];
        if !wide {
            let why = "namespaced rules cannot apply to non-resource URLs";
            faults.invalid(&place, given, why);
        }
        if !(is_empty("apiGroups") && is_empty("resources") && is_empty("resourceNames")) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            faults.invalid(&place, given, why);
        }
        return;
    }
    for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
        if is_empty(field) {
            let why = format!("resource rules must supply at least one {what}");
            faults.required(&path.child(field), &why);
        }
    }
}

impl Behaviour for Bindings {
    fn default(&self, object: &mut Value) {
        fill(meta::child_mut(object, "roleRef"), "apiGroup", GROUP);
        let subjects = object.get_mut("subjects").and_then(Value::as_array_mut);
        for subject in subjects.into_iter().flatten() {
            let group = match meta::text(subject, &["kind"]) {
                "User" | "Group" => GROUP,
                _ => continue,
            };
            if let Some(fields) = subject.as_object_mut() {
                fill(fields, "apiGroup", group);
            }
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        let path = Path::new("roleRef");
        let reference = |field: &str| meta::text(object, &["roleRef", field]);
        if reference("apiGroup") != GROUP {
            faults.unsupported(&path.child("apiGroup"), reference("apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.0 {
            &["ClusterRole"]
        } else {
            &["Role", "ClusterRole"]
        };
        if !kinds.contains(&reference("kind")) {
            faults.unsupported(&path.child("kind"), reference("kind"), kinds);
        }
        if reference("name").is_empty() {
            faults.required(&path.child("name"), "");
        }
        for (at, subject) in meta::list(object, &["subjects"]).iter().enumerate() {
            check_subject(subject, &Path::new("subjects").index(at), faults);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        if object["roleRef"] != old["roleRef"] {
            let given = &object["roleRef"];
            faults.invalid(&Path::new("roleRef"), given, "cannot change roleRef");
        }
    }

    fn columns(&self) -> &'static [Column] {
        columns::rbac::BINDINGS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::rbac::binding(object, now)
    }
}

fn check_subject(subject: &Value, path: &Path, faults: &mut Faults) {
    let text = |field: &str| meta::text(subject, &[field]);
    if text("name").is_empty() {
        faults.required(&path.child("name"), "");
    }
    let groups: &[&str] = match text("kind") {
        "ServiceAccount" => {
            // In a binding of a namespace, an account without one is of this namespace in Kubernetes' old versions
            // only; now it must say so.
            if text("namespace").is_empty() {
                faults.required(&path.child("namespace"), "");
            }
            &[""]
        }
        "User" | "Group" => &[GROUP],
        other => {
            let known = &["ServiceAccount", "User", "Group"];
            faults.unsupported(&path.child("kind"), other, known);
            return;
        }
    };
    if !groups.contains(&text("apiGroup")) {
        faults.unsupported(&path.child("apiGroup"), text("apiGroup"), groups);
    }
}

/// What kinds do that are only asked (reviews): nothing, they are never stored.
pub struct Reviews;

impl Behaviour for Reviews {}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::status::Cause;

    fn faults_of(behaviour: &dyn Behaviour, mut object: Value) -> Vec<String> {
        behaviour.default(&mut object);
        let mut faults = Faults::new();
        behaviour.validate(&object, &mut faults);
        faults.into_causes().iter().map(Cause::line).collect()
    }

    #[test]
    fn rules_say_what_they_are_about() {
        let found = faults_of(
            &Roles(false),
            json!({"rules": [{"resources": ["pods"]}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
        );
        assert_eq!(
            found,
            [
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
    }

    #[test]
    fn bindings_name_a_role_and_subjects() {
        let role = json!({"kind": "ClusterRole", "name": "view"});
        let fine = json!({"roleRef": role, "subjects": [{"kind": "User", "name": "a"}]});
        assert_eq!(faults_of(&Bindings(true), fine), [""; 0]);
        let found = faults_of(
            &Bindings(true),
            json!({"roleRef": {"kind": "Role"}, "subjects": [{"kind": "ServiceAccount", "name": "a"}]}),
        );
        assert_eq!(
            found,
            [
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "roleRef.name: Required value",
                "subjects[0].namespace: Required value",
            ]
        );
    }
}
