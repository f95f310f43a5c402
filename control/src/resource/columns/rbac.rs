//! The tables of roles and their bindings.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, age, column, name, wide};
use crate::api::meta;

/// The columns of roles.
pub const ROLES: &[Column] = &[
    NAME,
    column("Created At", "date", "When the role was made."),
];

/// The columns of bindings.
pub const BINDINGS: &[Column] = &[
    NAME,
    column(
        "Role",
        "string",
        "The kind and name of the role that is bound.",
    ),
    AGE,
    wide("Users", "string", "Users in the binding."),
    wide("Groups", "string", "Groups in the binding."),
    wide(
        "ServiceAccounts",
        "string",
        "Service accounts in the binding.",
    ),
];

/// The cells of a role.
pub fn role(object: &Value) -> Vec<Value> {
    let made = meta::text(object, &["metadata", "creationTimestamp"]);
    vec![name(object), json!(made)]
}

/// The cells of a binding.
pub fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let reference = |field: &str| meta::text(object, &["roleRef", field]);
    let subjects = |kind: &str| {
        let listed = meta::list(object, &["subjects"]).iter();
        let of_kind = listed.filter(|one| meta::text(one, &["kind"]) == kind);
        let names: Vec<String> = of_kind
            .map(|one| match meta::text(one, &["namespace"]) {
                "" => meta::text(one, &["name"]).to_owned(),
                namespace => format!("{namespace}/{}", meta::text(one, &["name"])),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        name(object),
        json!(format!("{}/{}", reference("kind"), reference("name"))),
        age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
