//! Kubernetes' protobuf: the envelope ("k8s\0", then a `runtime.Unknown`) and the messages in it, read into JSON by the
//! types and the field numbers of the schema. Source: k8s.io/apimachinery, `pkg/runtime/serializer/protobuf`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::fields::Part;
use super::{Node, Set};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may lie in each other.
const DEPTH_LIMIT: usize = 64;

/// Why bytes are no message of their type.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// They don't begin as Kubernetes' protobuf does.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Prefix,
    /// They end in the middle of a field.
    #[error("unexpected EOF")]
    Short,
    /// A field has a form that its type does not have, or none that there is.
    #[error("proto: wrong wireType for field {0}")]
    Form(u32),
    /// A text is not UTF-8.
    #[error("proto: a string field contains invalid UTF-8")]
    Text,
    /// Messages lie too deep in each other.
    #[error("proto: exceeded max recursion depth")]
    Deep,
    /// JSON inside of the message can't be read.
    #[error("proto: embedded JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A kind that is not known here.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Kind {
        /// As the envelope names it.
        api_version: String,
        /// As the envelope names it.
        kind: String,
    },
}

/// Reads a body: an object with its apiVersion and kind.
pub fn decode(set: &Set, bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut envelope = Reader(bytes.strip_prefix(MAGIC).ok_or(Malformed::Prefix)?);
    while let Some((number, wire)) = envelope.field()? {
        match number {
            1 => {
                let mut type_meta = Reader(wire.bytes(number)?);
                while let Some((number, wire)) = type_meta.field()? {
                    match number {
                        1 => api_version = text(wire.bytes(number)?)?,
                        2 => kind = text(wire.bytes(number)?)?,
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes(number)?,
            _ => {}
        }
    }
    let unknown = || Malformed::Kind {
        api_version: api_version.clone(),
        kind: kind.clone(),
    };
    let definition = definition(&api_version, &kind);
    let index = set.index(&definition).ok_or_else(unknown)?;
    let mut value = message(set, index, raw)?;
    value["apiVersion"] = json!(api_version);
    value["kind"] = json!(kind);
    Ok(value)
}

/// The definition of a kind: "apps/v1", "Deployment" is "io.k8s.api.apps.v1.Deployment".
fn definition(api_version: &str, kind: &str) -> String {
    // Every group has this one.
    if kind == "DeleteOptions" {
        return "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or(group);
    format!("io.k8s.api.{package}.{version}.{kind}")
}

/// Reads a message of the type at `index`.
pub fn message(set: &Set, index: usize, bytes: &[u8]) -> Result<Value, Malformed> {
    let mut fields = Map::new();
    let decoder = Decoder { set, depth: 0 };
    decoder.fields(&set.get(index).definition, index, bytes, &mut fields)?;
    Ok(Value::Object(fields))
}

struct Decoder<'a> {
    set: &'a Set,
    depth: usize,
}

impl Decoder<'_> {
    fn deeper(&self) -> Result<Self, Malformed> {
        if self.depth == DEPTH_LIMIT {
            return Err(Malformed::Deep);
        }
        Ok(Self {
            set: self.set,
            depth: self.depth + 1,
        })
    }

    /// Reads the message `definition` into the JSON fields of the type at `index`.
    fn fields(
        &self,
        definition: &str,
        index: usize,
        bytes: &[u8],
        into: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        let Some(parts) = self.set.parts(definition) else {
            return Ok(());
        };
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.field()? {
            match parts.get(&number) {
                None => {}
                Some(Part::Inline(other)) => {
                    self.deeper()?
                        .fields(other, index, wire.bytes(number)?, into)?;
                }
                Some(Part::Field(name, pointer)) => {
                    let Some(field) = self.set.get(index).fields.get(*name) else {
                        continue;
                    };
                    self.field(name, &field.node, *pointer, (number, wire), into)?;
                }
            }
        }
        Ok(())
    }

    fn field(
        &self,
        name: &str,
        node: &Node,
        pointer: bool,
        (number, wire): (u32, Wire<'_>),
        into: &mut Map<String, Value>,
    ) -> Result<(), Malformed> {
        match node {
            Node::List(each) => {
                let list = into.entry(name).or_insert_with(|| json!([]));
                let Some(list) = list.as_array_mut() else {
                    return Ok(());
                };
                if let (Node::Integer { .. }, Wire::Bytes(packed)) = (&**each, wire) {
                    let mut packed = Reader(packed);
                    while !packed.0.is_empty() {
                        list.push(integer(packed.varint()?));
                    }
                } else {
                    list.push(self.value(each, number, wire)?);
                }
            }
            Node::Map(each) => {
                let (key, value) = self.entry(each, wire.bytes(number)?)?;
                let map = into.entry(name).or_insert_with(|| json!({}));
                map[key] = value;
            }
            _ => {
                let value = self.value(node, number, wire)?;
                if value.is_null() || (!pointer && is_zero(&value)) {
                    return Ok(());
                }
                into.insert(name.to_owned(), value);
            }
        }
        Ok(())
    }

    /// An entry of a map: a message of a key and a value.
    fn entry(&self, each: &Node, bytes: &[u8]) -> Result<(String, Value), Malformed> {
        let mut key = String::new();
        let mut value = match each {
            Node::Text | Node::Bytes => json!(""),
            Node::List(_) => json!([]),
            Node::Integer { .. } => json!(0),
            _ => Value::Null,
        };
        let mut reader = Reader(bytes);
        while let Some((number, wire)) = reader.field()? {
            match (number, each) {
                (1, _) => key = text(wire.bytes(number)?)?,
                // A list as a map's value is a message of its own on the wire: authentication.v1.ExtraValue.
                (2, Node::List(item)) => {
                    let mut items = Vec::new();
                    let mut inner = Reader(wire.bytes(number)?);
                    while let Some((number, wire)) = inner.field()? {
                        items.push(self.value(item, number, wire)?);
                    }
                    value = Value::Array(items);
                }
                (2, _) => value = self.value(each, number, wire)?,
                _ => {}
            }
        }
        Ok((key, value))
    }

    fn value(&self, node: &Node, number: u32, wire: Wire<'_>) -> Result<Value, Malformed> {
        Ok(match node {
            Node::Integer { .. } => integer(wire.varint(number)?),
            Node::Boolean => Value::Bool(wire.varint(number)? != 0),
            Node::Number => json!(wire.double(number)?),
            Node::Text => Value::String(text(wire.bytes(number)?)?),
            Node::Bytes => Value::String(STANDARD.encode(wire.bytes(number)?)),
            Node::Time { micro } => time(wire.bytes(number)?, *micro)?,
            Node::Quantity => quantity(wire.bytes(number)?)?,
            Node::IntOrString => int_or_string(wire.bytes(number)?)?,
            Node::Object(index) => {
                let mut fields = Map::new();
                let definition = &self.set.get(*index).definition;
                self.deeper()?
                    .fields(definition, *index, wire.bytes(number)?, &mut fields)?;
                Value::Object(fields)
            }
            // runtime.RawExtension and metav1.FieldsV1: JSON in a message's first field.
            Node::Any => {
                let mut found = Value::Null;
                let mut reader = Reader(wire.bytes(number)?);
                while let Some((number, wire)) = reader.field()? {
                    if number == 1 {
                        found = serde_json::from_slice(wire.bytes(number)?)?;
                    }
                }
                found
            }
            Node::Map(_) | Node::List(_) => return Err(Malformed::Form(number)),
        })
    }
}

/// Whether Go leaves the value out of JSON (omitempty).
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(is) => !is,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Negative numbers are ten bytes long on the wire, whatever their type.
fn integer(raw: u64) -> Value {
    Value::from(raw.cast_signed())
}

fn text(bytes: &[u8]) -> Result<String, Malformed> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Text)
}

/// metav1.Time and `MicroTime`; an empty message is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, Malformed> {
    let (mut seconds, mut nanos, mut reader) = (0, 0, Reader(bytes));
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => seconds = wire.varint(number)?.cast_signed(),
            2 => nanos = i32::try_from(wire.varint(number)?.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let at = Timestamp::new(seconds, nanos).map_err(|_| Malformed::Form(1))?;
    Ok(Value::from(if micro {
        crate::api::meta::micro_time(at)
    } else {
        crate::api::meta::time(at)
    }))
}

/// resource.Quantity: its text.
fn quantity(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut found, mut reader) = ("0".to_owned(), Reader(bytes));
    while let Some((number, wire)) = reader.field()? {
        if number == 1 {
            found = text(wire.bytes(number)?)?;
        }
    }
    Ok(Value::String(found))
}

/// intstr.IntOrString: which of the two, and both.
fn int_or_string(bytes: &[u8]) -> Result<Value, Malformed> {
    let (mut is_text, mut number_of, mut text_of) = (false, 0, String::new());
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.field()? {
        match number {
            1 => is_text = wire.varint(number)? == 1,
            2 => number_of = wire.varint(number)?.cast_signed(),
            3 => text_of = text(wire.bytes(number)?)?,
            _ => {}
        }
    }
    Ok(if is_text {
        Value::String(text_of)
    } else {
        Value::from(number_of)
    })
}

/// A field's content as it stands on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    fn varint(self, number: u32) -> Result<u64, Malformed> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(Malformed::Form(number)),
        }
    }

    fn double(self, number: u32) -> Result<f64, Malformed> {
        match self {
            Self::Fixed(bits) => Ok(f64::from_bits(bits)),
            _ => Err(Malformed::Form(number)),
        }
    }

    fn bytes(self, number: u32) -> Result<&'a [u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed::Form(number)),
        }
    }
}

/// Bytes that are still to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Short)
    }

    fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed::Form(0))?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed(fixed(self.take(8)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed::Short)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed(fixed(self.take(4)?)),
            _ => return Err(Malformed::Form(number)),
        };
        Ok(Some((number, wire)))
    }
}

/// A little-endian number of at most eight bytes.
fn fixed(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
