//! Nobody hands out what they may not do themselves: who writes a role must have its rules (or the verb "escalate"), who
//! writes a binding must have its role's (or the verb "bind").

use serde_json::Value;

use super::rules::{Single, singles};
use super::{Action, GROUP, Granted};
use crate::api::engine::Engine;
use crate::api::{Caller, Status, meta};
use crate::resource::Resource;
use crate::resource::rows::{CLUSTER_ROLE_BINDINGS, CLUSTER_ROLES, ROLE_BINDINGS, ROLES};

impl Engine {
    /// Refuses a write of a role or binding that gives away more than the caller has.
    pub(in crate::api) fn check_escalation(
        &self,
        caller: &Caller,
        row: &Resource,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let role = row.id == ROLES || row.id == CLUSTER_ROLES;
        let binding = row.id == ROLE_BINDINGS || row.id == CLUSTER_ROLE_BINDINGS;
        if caller.is_administrator() || !(role || binding) {
            return Ok(());
        }
        let same = |field: &str| old.is_some_and(|old| old.get(field) == object.get(field));
        if role && same("rules") && same("aggregationRule") {
            return Ok(());
        }
        if binding && same("subjects") && same("roleRef") {
            return Ok(());
        }
        let namespace = Some(meta::namespace(object)).filter(|name| !name.is_empty());
        let (verb, resource, name, rules) = if role {
            let rules = meta::list(object, &["rules"]).to_vec();
            ("escalate", row.id.plural, meta::name(object), rules)
        } else {
            let reference = &object["roleRef"];
            let name = meta::text(reference, &["name"]);
            let plural = match meta::text(reference, &["kind"]) {
                "Role" => ROLES.plural,
                _ => CLUSTER_ROLES.plural,
            };
            let found = self.role(reference, namespace.unwrap_or(""));
            let Some(found) = found else {
                let (group, kind) = (GROUP, meta::text(reference, &["kind"]));
                return Err(Status::not_found(
                    crate::resource::rows::id(group, "v1", plural),
                    if kind.is_empty() { "" } else { name },
                ));
            };
            (
                "bind",
                plural,
                name,
                meta::list(&found.value, &["rules"]).to_vec(),
            )
        };
        let action = Action {
            verb,
            group: GROUP,
            resource,
            namespace,
            name: Some(name),
            ..Action::default()
        };
        // What selects roles to aggregate can select any.
        let aggregates = role && meta::at(object, &["aggregationRule"]).is_some();
        let granted = self.rules_of(caller, namespace);
        if self.allowed_by_role(caller, &action).is_some() {
            return Ok(());
        }
        let everything =
            serde_json::json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]});
        let wanted: Vec<Single> = rules
            .iter()
            .chain(aggregates.then_some(&everything))
            .flat_map(singles)
            .collect();
        refuse_uncovered(caller, row, meta::name(object), (&wanted, &granted))
    }
}

fn refuse_uncovered(
    caller: &Caller,
    row: &Resource,
    name: &str,
    (wanted, granted): (&[Single], &[Granted]),
) -> Result<(), Status> {
    let covered = |one: &&Single| !granted.iter().any(|own| one.is_covered_by(own.rule()));
    let missing: Vec<String> = wanted.iter().filter(covered).map(Single::shown).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = caller.groups.iter().map(|one| format!("{one:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        caller.user,
        groups.join(" "),
        missing.join("\n")
    );
    Err(Status::forbidden(row.id, name, &why))
}
