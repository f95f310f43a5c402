//! Config maps, secrets and service accounts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::super::{Behaviour, Column, Faults, Path, columns, names};
use super::fill;
use crate::api::meta;

/// How much all values of a config map or secret may hold, in bytes.
const SIZE_LIMIT: usize = 1024 * 1024;
/// What an immutable object answers.
const IMMUTABLE_SET: &str = "field is immutable when `immutable` is set";

/// What config maps do.
pub struct ConfigMaps;
/// What secrets do.
pub struct Secrets;
/// What service accounts do.
pub struct ServiceAccounts;

fn entries<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    meta::at(object, &[field])
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| (key, value.as_str().unwrap_or("")))
}

fn keys(object: &Value, field: &str, faults: &mut Faults) {
    for (key, _) in entries(object, field) {
        let path = Path::new(field).key(key);
        faults.invalid_each(&path, key, &names::config_key(key));
    }
}

fn decoded_size(text: &str) -> usize {
    STANDARD
        .decode(text)
        .map_or(text.len(), |bytes| bytes.len())
}

fn unchanging(object: &Value, old: &Value, fields: &[&str], faults: &mut Faults) {
    if old["immutable"] != true {
        return;
    }
    if object["immutable"] != true {
        faults.forbidden(&Path::new("immutable"), IMMUTABLE_SET);
    }
    for field in fields {
        if object.get(*field) != old.get(*field) {
            faults.forbidden(&Path::new(field), IMMUTABLE_SET);
        }
    }
}

impl Behaviour for ConfigMaps {
    fn validate(&self, object: &Value, faults: &mut Faults) {
        keys(object, "data", faults);
        keys(object, "binaryData", faults);
        for (key, _) in entries(object, "binaryData") {
            if meta::at(object, &["data", key]).is_some() {
                let path = Path::new("data").key(key);
                faults.invalid_text(&path, key, "duplicate of key present in binaryData");
            }
        }
        let texts: usize = entries(object, "data").map(|(_, value)| value.len()).sum();
        let bytes: usize = entries(object, "binaryData")
            .map(|(_, value)| decoded_size(value))
            .sum();
        if texts + bytes > SIZE_LIMIT {
            faults.too_long(&Path::new(""), SIZE_LIMIT);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        unchanging(object, old, &["data", "binaryData"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::config::CONFIG_MAPS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::config::config_map(object, now)
    }
}

/// The keys that a secret of a type must have.
fn required_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    }
}

impl Behaviour for Secrets {
    fn default(&self, object: &mut Value) {
        let Some(fields) = object.as_object_mut() else {
            return;
        };
        fill(fields, "type", "Opaque");
        // stringData is only for writing: what it says is stored in data.
        if let Some(Value::Object(texts)) = fields.remove("stringData") {
            let data = fields.entry("data").or_insert_with(|| json!({}));
            for (key, text) in texts {
                data[key] = json!(STANDARD.encode(text.as_str().unwrap_or("")));
            }
        }
    }

    fn validate(&self, object: &Value, faults: &mut Faults) {
        keys(object, "data", faults);
        let size: usize = entries(object, "data")
            .map(|(_, value)| decoded_size(value))
            .sum();
        if size > SIZE_LIMIT {
            faults.too_long(&Path::new("data"), SIZE_LIMIT);
        }
        for key in required_keys(meta::text(object, &["type"])) {
            if meta::at(object, &["data", key]).is_none() {
                faults.required(&Path::new("data").key(key), "");
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, faults: &mut Faults) {
        super::super::metadata::immutable(object, old, &["type"], faults);
        unchanging(object, old, &["data"], faults);
    }

    fn columns(&self) -> &'static [Column] {
        columns::config::SECRETS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::config::secret(object, now)
    }
}

impl Behaviour for ServiceAccounts {
    fn columns(&self) -> &'static [Column] {
        columns::config::SERVICE_ACCOUNTS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        columns::config::service_account(object, now)
    }
}
