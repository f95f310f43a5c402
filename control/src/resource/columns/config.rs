//! The tables of config maps, secrets and service accounts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, age, column, count, name};
use crate::api::meta;

const DATA: Column = column("Data", "string", "How many entries it holds.");

/// The columns of config maps.
pub const CONFIG_MAPS: &[Column] = &[NAME, DATA, AGE];

/// The columns of secrets.
pub const SECRETS: &[Column] = &[
    NAME,
    column(
        "Type",
        "string",
        "Used to facilitate programmatic handling of secret data.",
    ),
    DATA,
    AGE,
];

/// The columns of service accounts.
pub const SERVICE_ACCOUNTS: &[Column] = &[
    NAME,
    column(
        "Secrets",
        "string",
        "How many secrets pods of this account may use.",
    ),
    AGE,
];

/// The cells of a config map.
pub fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        count(object, &["data", "binaryData"]),
        age(object, now),
    ]
}

/// The cells of a secret.
pub fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(meta::text(object, &["type"])),
        count(object, &["data"]),
        age(object, now),
    ]
}

/// The cells of a service account.
pub fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    let secrets = meta::list(object, &["secrets"]).len();
    vec![name(object), json!(secrets), age(object, now)]
}
