//! The OpenAPI v2 document in protobuf, as kubectl before 1.28 wants it: the messages of gnostic's `OpenAPIv2.proto`, as far
//! as clients read them (schemas, and the parameters of operations).

use serde_json::Value;

/// How clients ask for it, in the older and the newer spelling.
pub const ASKED: [&str; 2] = [
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
];
/// Its media type.
pub const MEDIA_TYPE: &str = ASKED[1];

/// A message that is being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or(0));
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A text; what is absent is not written.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, values: &Value) {
        for value in values.as_array().into_iter().flatten() {
            self.text(field, value);
        }
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.varint(u64::from(field) << 3);
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// A repeated field of names with their values.
    fn named(&mut self, field: u32, values: &Value, write: impl Fn(&Value) -> Self) {
        for (name, value) in values.as_object().into_iter().flatten() {
            let mut entry = Self::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &write(value));
            self.message(field, &entry);
        }
    }

    /// The fields that begin with "x-": names and their values as YAML, which JSON is.
    fn extensions(&mut self, field: u32, of: &Value) {
        for (name, value) in of.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                let mut any = Self::default();
                any.bytes(2, value.to_string().as_bytes());
                let mut entry = Self::default();
                entry.bytes(1, name.as_bytes());
                entry.message(2, &any);
                self.message(field, &entry);
            }
        }
    }
}

/// The bytes of a Document.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    let mut paths = Message::default();
    paths.named(2, &document["paths"], path_item);
    let mut definitions = Message::default();
    definitions.named(1, &document["definitions"], schema);
    let mut message = Message::default();
    message.text(1, &document["swagger"]);
    message.message(2, &info);
    message.message(8, &paths);
    message.message(9, &definitions);
    message.0
}

fn schema(of: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, &of["$ref"]);
    message.text(2, &of["format"]);
    message.text(4, &of["description"]);
    message.texts(19, &of["required"]);
    match &of["additionalProperties"] {
        Value::Null => {}
        Value::Bool(_) => {
            let mut item = Message::default();
            item.flag(2, &of["additionalProperties"]);
            message.message(21, &item);
        }
        values => {
            let mut item = Message::default();
            item.message(1, &schema(values));
            message.message(21, &item);
        }
    }
    if of["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &of["type"]);
        message.message(22, &kind);
    }
    if of["items"].is_object() {
        let mut items = Message::default();
        items.message(1, &schema(&of["items"]));
        message.message(23, &items);
    }
    if of["properties"].is_object() {
        let mut properties = Message::default();
        properties.named(1, &of["properties"], schema);
        message.message(25, &properties);
    }
    message.extensions(31, of);
    message
}

fn path_item(of: &Value) -> Message {
    let mut message = Message::default();
    let operations = [
        ("get", 2),
        ("put", 3),
        ("post", 4),
        ("delete", 5),
        ("patch", 8),
    ];
    for (verb, field) in operations {
        if of[verb].is_object() {
            message.message(field, &operation(&of[verb]));
        }
    }
    parameters(&mut message, 9, &of["parameters"]);
    message
}

fn operation(of: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, &of["tags"]);
    message.text(5, &of["operationId"]);
    message.texts(6, &of["produces"]);
    message.texts(7, &of["consumes"]);
    parameters(&mut message, 8, &of["parameters"]);
    let mut responses = Message::default();
    responses.named(1, &of["responses"], |answer| {
        let (mut response, mut item) = (Message::default(), Message::default());
        response.text(1, &answer["description"]);
        if answer["schema"].is_object() {
            item.message(1, &schema(&answer["schema"]));
            response.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &response);
        value
    });
    message.message(9, &responses);
    message.extensions(13, of);
    message
}

fn parameters(to: &mut Message, field: u32, listed: &Value) {
    for of in listed.as_array().into_iter().flatten() {
        let mut parameter = Message::default();
        let mut inner = Message::default();
        if of["in"] == "body" {
            inner.text(2, &of["name"]);
            inner.text(3, &of["in"]);
            inner.flag(4, &of["required"]);
            inner.message(5, &schema(&of["schema"]));
            parameter.message(1, &inner);
        } else {
            let in_path = of["in"] == "path";
            inner.flag(1, &of["required"]);
            inner.text(2, &of["in"]);
            inner.text(4, &of["name"]);
            inner.text(if in_path { 5 } else { 6 }, &of["type"]);
            inner.flag(if in_path { 19 } else { 20 }, &of["uniqueItems"]);
            let mut outer = Message::default();
            outer.message(if in_path { 4 } else { 3 }, &inner);
            parameter.message(2, &outer);
        }
        let mut item = Message::default();
        item.message(1, &parameter);
        to.message(field, &item);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_gnostics() {
        let document = json!({
            "swagger": "2.0",
            "info": {"title": "t"},
            "definitions": {"A": {"type": "object", "x-k": [1]}},
        });
        let extension = b"\xfa\x01\x0c\x0a\x03x-k\x12\x05\x12\x03[1]";
        let kind = b"\xb2\x01\x08\x0a\x06object";
        let schema = [&kind[..], extension].concat();
        let length = |bytes: &[u8]| u8::try_from(bytes.len()).expect("short");
        let entry = [&b"\x0a\x01A\x12"[..], &[length(&schema)], &schema].concat();
        let definitions = [&[0x0a, length(&entry)][..], &entry].concat();
        let expected = [
            &b"\x0a\x032.0\x12\x03\x0a\x01t\x42\x00\x4a"[..],
            &[length(&definitions)],
            &definitions,
        ];
        assert_eq!(encode(&document), expected.concat());
        let mut message = Message::default();
        message.varint(300);
        assert_eq!(message.0, [0xac, 2]);
    }
}
