//! Decoding: a value against a type. What has the wrong type is refused in the words of Go's decoder, as clients of
//! Kubernetes know them; fields that the type does not have are dropped and named; nulls, and lists and maps
//! without elements, are dropped as Go drops them; quantities and times get their canonical text.

use serde_json::{Map, Value};

use super::super::quantity;
use super::{Node, Set};

/// What decoding came to.
#[derive(Debug)]
pub struct Decoded {
    /// The value with only the fields that its type has.
    pub value: Value,
    /// `unknown field "spec.foo"`, one for each that was dropped.
    pub unknown: Vec<String>,
}

/// Decodes an object of the type at `index`.
pub fn decode(set: &Set, index: usize, value: Value) -> Result<Decoded, String> {
    let mut decoder = Decoder {
        set,
        unknown: Vec::new(),
    };
    let at = Place {
        full: String::new(),
        go: String::new(),
        owner: "",
    };
    let value = decoder.node(&Node::Object(index), value, &at)?;
    Ok(Decoded {
        value,
        unknown: decoder.unknown,
    })
}

struct Decoder<'a> {
    set: &'a Set,
    unknown: Vec<String>,
}

/// Where a value stands.
struct Place<'a> {
    /// "spec.containers[0].name"
    full: String,
    /// The same without indices and keys, as Go reports it.
    go: String,
    /// The Go type whose field it is.
    owner: &'a str,
}

impl Place<'_> {
    fn inside(&self, suffix: &str) -> Self {
        Self {
            full: format!("{}{suffix}", self.full),
            go: self.go.clone(),
            owner: self.owner,
        }
    }
}

fn joined(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

impl<'a> Decoder<'a> {
    fn node(&mut self, node: &Node, value: Value, at: &Place<'a>) -> Result<Value, String> {
        match (node, value) {
            (Node::Any, value)
            | (Node::Text | Node::IntOrString, value @ Value::String(_))
            | (Node::Boolean, value @ Value::Bool(_))
            | (Node::Number, value @ Value::Number(_)) => Ok(value),
            (Node::Integer { bits }, Value::Number(number)) => {
                integer(&number, *bits).ok_or_else(|| {
                    let what = format!("number {number}");
                    self.mismatch(&what, node, at)
                })
            }
            (Node::IntOrString, Value::Number(number)) => integer(&number, 32).ok_or_else(|| {
                let what = format!("number {number}");
                self.mismatch(&what, &Node::Integer { bits: 32 }, at)
            }),
            (Node::Bytes, Value::String(text)) => base64_text(text),
            (Node::Time { micro }, Value::String(text)) => time(&text, *micro),
            (Node::Quantity, Value::String(text)) => quantity_text(&text),
            (Node::Quantity, Value::Number(number)) => quantity_text(&number.to_string()),
            (Node::Quantity, _) => Err(quantity::MALFORMED.to_owned()),
            (Node::Object(index), Value::Object(fields)) => self.object(*index, fields, at),
            (Node::Map(each), Value::Object(entries)) => self.map(each, entries, at),
            (Node::List(each), Value::Array(items)) => self.list(each, items, at),
            (node, value) => Err(self.mismatch(kind_of(&value), node, at)),
        }
    }

    fn object(
        &mut self,
        index: usize,
        fields: Map<String, Value>,
        at: &Place<'a>,
    ) -> Result<Value, String> {
        let described = self.set.get(index);
        let mut kept = Map::new();
        for (name, value) in fields {
            let full = joined(&at.full, &name);
            let Some(field) = described.fields.get(&name) else {
                self.unknown.push(format!("unknown field \"{full}\""));
                continue;
            };
            if value.is_null() {
                continue;
            }
            let place = Place {
                full,
                go: joined(&at.go, &name),
                owner: described.short_name(),
            };
            let value = self.node(&field.node, value, &place)?;
            if field.always || !has_no_elements(&field.node, &value) {
                kept.insert(name, value);
            }
        }
        Ok(Value::Object(kept))
    }

    fn map(
        &mut self,
        each: &Node,
        entries: Map<String, Value>,
        at: &Place<'a>,
    ) -> Result<Value, String> {
        let mut kept = Map::new();
        for (key, value) in entries {
            // Go decodes null into the element's zero value; only texts have one that is worth keeping.
            let value = match (each, value) {
                (Node::Text | Node::Bytes, Value::Null) => Value::from(""),
                (_, Value::Null) => continue,
                (_, value) => value,
            };
            let place = at.inside(&format!(".{key}"));
            kept.insert(key, self.node(each, value, &place)?);
        }
        Ok(Value::Object(kept))
    }

    fn list(&mut self, each: &Node, items: Vec<Value>, at: &Place<'a>) -> Result<Value, String> {
        let mut kept = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            let value = match (each, value) {
                (Node::Object(_), Value::Null) => Value::Object(Map::new()),
                (Node::Text, Value::Null) => Value::from(""),
                (_, value) => value,
            };
            let place = at.inside(&format!("[{index}]"));
            kept.push(self.node(each, value, &place)?);
        }
        Ok(Value::Array(kept))
    }

    fn mismatch(&self, what: &str, node: &Node, at: &Place<'_>) -> String {
        let wanted = self.go_type(node);
        if at.owner.is_empty() {
            return format!("json: cannot unmarshal {what} into Go value of type {wanted}");
        }
        format!(
            "json: cannot unmarshal {what} into Go struct field {}.{} of type {wanted}",
            at.owner, at.go
        )
    }

    fn go_type(&self, node: &Node) -> String {
        match node {
            Node::Any => "interface {}".to_owned(),
            Node::Text | Node::IntOrString | Node::Time { .. } => "string".to_owned(),
            Node::Bytes => "[]uint8".to_owned(),
            Node::Integer { bits } => format!("int{bits}"),
            Node::Number => "float64".to_owned(),
            Node::Boolean => "bool".to_owned(),
            Node::Quantity => "resource.Quantity".to_owned(),
            Node::Object(index) => self.set.get(*index).go_name.clone(),
            Node::Map(each) => format!("map[string]{}", self.go_type(each)),
            Node::List(each) => format!("[]{}", self.go_type(each)),
        }
    }
}

/// A list or map that is empty. An empty struct says something: that it is there.
fn has_no_elements(node: &Node, value: &Value) -> bool {
    match (node, value) {
        (Node::List(_), Value::Array(items)) => items.is_empty(),
        (Node::Map(_), Value::Object(entries)) => entries.is_empty(),
        _ => false,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn integer(number: &serde_json::Number, bits: u8) -> Option<Value> {
    let value = number.as_i64()?;
    (bits == 64 || i32::try_from(value).is_ok()).then(|| Value::from(value))
}

fn quantity_text(text: &str) -> Result<Value, String> {
    let parsed: quantity::Quantity = text
        .parse()
        .map_err(|malformed: quantity::Malformed| malformed.to_string())?;
    Ok(Value::from(parsed.canonical()))
}

fn base64_text(text: String) -> Result<Value, String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    // Line breaks inside are allowed, as in Go.
    let bare: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    match STANDARD.decode(&bare) {
        Ok(_) if bare.len() == text.len() => Ok(Value::String(text)),
        Ok(_) => Ok(Value::String(bare)),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _)
                | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                    bare.len() - bare.len() % 4
                }
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

fn time(text: &str, micro: bool) -> Result<Value, String> {
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        let layout = if micro {
            "2006-01-02T15:04:05.000000Z07:00"
        } else {
            "2006-01-02T15:04:05Z07:00"
        };
        format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
    })?;
    Ok(Value::from(if micro {
        crate::api::meta::micro_time(parsed)
    } else {
        crate::api::meta::time(parsed)
    }))
}
