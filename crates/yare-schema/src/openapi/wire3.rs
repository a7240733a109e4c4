//! The protobuf form of OpenAPI v3 (`openapi.v3.Document` of gnostic), written from the same parts.
//!
//! Only the fields that this crate's documents use are known here; the numbers are gnostic's.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Sink, wire::Message};

/// Parts of a document as messages.
#[derive(Default)]
pub(super) struct ProtoParts {
    paths: BTreeMap<String, Message>,
    definitions: BTreeMap<String, Message>,
}

impl Sink for ProtoParts {
    fn path(&mut self, path: &str, item: &Value) {
        self.paths.insert(path.to_owned(), path_item(item));
    }

    fn definition(&mut self, name: &str, value: &Value) {
        self.definitions.insert(name.to_owned(), schema_or_reference(value));
    }
}

impl ProtoParts {
    /// The document. `info` and `security` are JSON, as the document has them.
    pub(super) fn finish(&self, info: &Value, security: Option<&Value>) -> Vec<u8> {
        let mut document = Message::default();
        document.bytes(1, b"3.0.0");
        let mut message = Message::default();
        message.text(1, info.get("title"));
        message.text(6, info.get("version"));
        document.message(2, &message);
        let mut paths = Message::default();
        for (path, item) in &self.paths {
            paths.named(1, path, item);
        }
        document.message(4, &paths);
        let mut components = Message::default();
        if !self.definitions.is_empty() {
            let mut schemas = Message::default();
            for (name, schema) in &self.definitions {
                schemas.named(1, name, schema);
            }
            components.message(1, &schemas);
        }
        if let Some(security) = security {
            let mut schemes = Message::default();
            for (name, value) in entries(security) {
                let mut scheme = Message::default();
                for (number, field) in [(1, "type"), (2, "description"), (3, "name"), (4, "in")] {
                    scheme.text(number, value.get(field));
                }
                schemes.named(1, name, &either(1, &scheme));
            }
            components.message(7, &schemes);
        }
        document.message(5, &components);
        document.0
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// One of several that a message may be.
fn either(number: u32, message: &Message) -> Message {
    let mut out = Message::default();
    out.message(number, message);
    out
}

fn schema_or_reference(value: &Value) -> Message {
    match value.get("$ref") {
        Some(target) => {
            let mut reference = Message::default();
            reference.text(1, Some(target));
            either(2, &reference)
        }
        None => either(1, &schema(value)),
    }
}

fn schema(value: &Value) -> Message {
    let get = |name: &str| value.get(name);
    let mut out = Message::default();
    out.flag(1, get("nullable"));
    if let Some(docs) = get("externalDocs") {
        let mut message = Message::default();
        message.text(1, docs.get("description"));
        message.text(2, docs.get("url"));
        out.message(6, &message);
    }
    if let Some(example) = get("example") {
        out.any(7, example);
    }
    out.text(9, get("title"));
    out.double(10, get("multipleOf"));
    out.double(11, get("maximum"));
    out.flag(12, get("exclusiveMaximum"));
    out.double(13, get("minimum"));
    out.flag(14, get("exclusiveMinimum"));
    out.integer(15, get("maxLength"));
    out.integer(16, get("minLength"));
    out.text(17, get("pattern"));
    out.integer(18, get("maxItems"));
    out.integer(19, get("minItems"));
    out.flag(20, get("uniqueItems"));
    out.integer(21, get("maxProperties"));
    out.integer(22, get("minProperties"));
    out.texts(23, get("required"));
    for value in items(value, "enum") {
        out.any(24, value);
    }
    out.text(25, get("type"));
    for (number, field) in [(26, "allOf"), (27, "oneOf"), (28, "anyOf")] {
        for value in items(value, field) {
            out.message(number, &schema_or_reference(value));
        }
    }
    if let Some(not) = get("not") {
        out.message(29, &schema(not));
    }
    if let Some(items) = get("items") {
        out.message(30, &either(1, &schema_or_reference(items)));
    }
    if let Some(properties) = get("properties") {
        let mut named = Message::default();
        for (name, value) in entries(properties) {
            named.named(1, name, &schema_or_reference(value));
        }
        out.message(31, &named);
    }
    match get("additionalProperties") {
        None => {}
        Some(Value::Bool(any)) => {
            let mut item = Message::default();
            item.choice(2, *any);
            out.message(32, &item);
        }
        Some(additional) => out.message(32, &either(1, &schema_or_reference(additional))),
    }
    if let Some(default) = get("default") {
        // Other defaults have no form: that there is one is all that shows.
        let mut item = Message::default();
        match default {
            Value::Number(n) => item.fixed(1, n.as_f64().unwrap_or_default()),
            Value::Bool(b) => item.choice(2, *b),
            Value::String(text) => item.bytes(3, text.as_bytes()),
            _ => {}
        }
        out.message(33, &item);
    }
    out.text(34, get("description"));
    out.text(35, get("format"));
    out.extensions(36, value);
    out
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in
        [(4, "get"), (5, "put"), (6, "post"), (7, "delete"), (8, "options"), (9, "head"), (10, "patch")]
    {
        if let Some(value) = value.get(method) {
            out.message(number, &operation(value));
        }
    }
    for value in items(value, "parameters") {
        out.message(13, &parameter(value));
    }
    out
}

fn operation(value: &Value) -> Message {
    let get = |name: &str| value.get(name);
    let mut out = Message::default();
    out.texts(1, get("tags"));
    out.text(3, get("description"));
    out.text(5, get("operationId"));
    for value in items(value, "parameters") {
        out.message(6, &parameter(value));
    }
    if let Some(value) = get("requestBody") {
        let mut body = Message::default();
        body.message(2, &content(value));
        body.flag(3, value.get("required"));
        out.message(7, &either(1, &body));
    }
    let mut responses = Message::default();
    for (code, value) in get("responses").into_iter().flat_map(entries) {
        let mut response = Message::default();
        response.text(1, value.get("description"));
        if value.get("content").is_some() {
            response.message(3, &content(value));
        }
        responses.named(2, code, &either(1, &response));
    }
    out.message(8, &responses);
    out.extensions(13, value);
    out
}

/// What bodies and answers are, by media type.
fn content(value: &Value) -> Message {
    let mut out = Message::default();
    for (media, value) in value.get("content").into_iter().flat_map(entries) {
        let schema = value.get("schema").map(schema_or_reference).unwrap_or_default();
        out.named(1, media, &either(1, &schema));
    }
    out
}

fn parameter(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, value.get("name"));
    out.text(2, value.get("in"));
    out.text(3, value.get("description"));
    out.flag(4, value.get("required"));
    if let Some(value) = value.get("schema") {
        out.message(10, &schema_or_reference(value));
    }
    either(1, &out)
}
