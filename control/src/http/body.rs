//! Reading request bodies: bounded in size, time and depth; JSON with an eye on duplicate fields, or YAML.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api::{PatchKind, Status};
use crate::resource::schema::{self, protobuf};

/// Bytes of a body, as Kubernetes limits them.
const LIMIT: usize = 3 * 1024 * 1024;
/// How long a client may take to send it.
const TIME: Duration = Duration::from_mins(1);

/// A body, read.
#[derive(Debug, Default)]
pub struct Parsed {
    /// What it says.
    pub value: Value,
    /// `duplicate field "spec.replicas"`, one for each.
    pub duplicates: Vec<String>,
}

/// Reads a body's bytes.
pub async fn bytes(body: Body) -> Result<Bytes, Status> {
    let collected = tokio::time::timeout(TIME, Limited::new(body, LIMIT).collect())
        .await
        .map_err(|_| Status::timeout("the request's body did not arrive in time"))?;
    match collected {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(LIMIT)),
        Err(error) => Err(Status::bad_request(format!(
            "the request's body can't be read: {error}"
        ))),
    }
}

/// The media type of a body without its parameters; "" where none is given.
fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or("")
        .trim()
}

fn unknown_format(accepted: &str) -> Status {
    Status::unsupported_media_type(format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    ))
}

/// Parses an object; the types are what protobuf is read by.
pub fn object(types: &schema::Set, headers: &HeaderMap, bytes: &[u8]) -> Result<Parsed, Status> {
    match media_type(headers) {
        "" | "application/json" => json(bytes),
        "application/yaml" => yaml(bytes),
        "application/vnd.kubernetes.protobuf" => {
            let value = protobuf::decode(types, bytes)
                .map_err(|error| Status::bad_request(error.to_string()))?;
            Ok(Parsed {
                value,
                duplicates: Vec::new(),
            })
        }
        _ => Err(unknown_format(
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// Parses the options of a deletion, where there are any.
pub fn options(types: &schema::Set, headers: &HeaderMap, bytes: &[u8]) -> Result<Value, Status> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    Ok(object(types, headers, bytes)?.value)
}

/// Parses a patch; its media type says of which kind it is.
pub fn patch(headers: &HeaderMap, bytes: &[u8]) -> Result<(PatchKind, Parsed), Status> {
    let kind = match media_type(headers) {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        "application/apply-patch+yaml" => return Ok((PatchKind::Apply, yaml(bytes)?)),
        _ => {
            return Err(unknown_format(
                "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, \
                 application/apply-patch+yaml",
            ));
        }
    };
    Ok((kind, json(bytes)?))
}

fn json(bytes: &[u8]) -> Result<Parsed, Status> {
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        path: String::new(),
        duplicates: &duplicates,
    };
    let value = seed
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            Status::bad_request(format!(
                "couldn't get version/kind; json parse error: {error}"
            ))
        })?;
    Ok(Parsed {
        value,
        duplicates: duplicates.into_inner(),
    })
}

fn yaml(bytes: &[u8]) -> Result<Parsed, Status> {
    let value = serde_saphyr::from_slice(bytes).map_err(|error| {
        Status::bad_request(format!(
            "couldn't get version/kind; yaml parse error: {error}"
        ))
    })?;
    Ok(Parsed {
        value,
        duplicates: Vec::new(),
    })
}

/// Reads a JSON value and notes the fields that come twice; as in Kubernetes the last one counts.
struct Seed<'a> {
    path: String,
    duplicates: &'a RefCell<Vec<String>>,
}

impl Seed<'_> {
    fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        Self {
            path,
            duplicates: self.duplicates,
        }
    }

    fn element(&self, index: usize) -> Self {
        Self {
            path: format!("{}[{index}]", self.path),
            duplicates: self.duplicates,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.element(list.len()))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let seed = self.field(&name);
            if map.contains_key(&name) {
                let fault = format!("duplicate field \"{}\"", seed.path);
                self.duplicates.borrow_mut().push(fault);
            }
            let value = entries.next_value_seed(seed)?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::resource::Table;

    fn headers(kind: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers
    }

    fn object(headers: &HeaderMap, bytes: &[u8]) -> Result<Parsed, Status> {
        super::object(Table::built_in().schema(), headers, bytes)
    }

    #[test]
    fn duplicate_fields_are_named() {
        let text = br#"{"a": 1, "spec": {"b": [{"c": 1, "c": 2}]}, "a": 3}"#;
        let parsed = object(&headers("application/json"), text).expect("JSON");
        assert_eq!(parsed.value, json!({"a": 3, "spec": {"b": [{"c": 2}]}}));
        assert_eq!(
            parsed.duplicates,
            ["duplicate field \"spec.b[0].c\"", "duplicate field \"a\""]
        );
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        for text in ["{", "{} {}", "", &deep] {
            let error = object(&headers("application/json"), text.as_bytes()).expect_err("no JSON");
            assert_eq!(error.code, 400);
        }
    }

    #[test]
    fn yaml_is_read_and_other_formats_are_not() {
        let parsed = object(&headers("application/yaml"), b"a:\n  - 1\n  - x\n").expect("YAML");
        assert_eq!(parsed.value, json!({"a": [1, "x"]}));
        let kind = headers("application/vnd.kubernetes.protobuf");
        assert_eq!(object(&kind, b"k9s\0").expect_err("no protobuf").code, 400);
        let kind = headers("text/plain");
        assert_eq!(object(&kind, b"x").expect_err("unknown").code, 415);
    }
}
