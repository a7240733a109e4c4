//! The protobuf form of OpenAPI v2 (`openapi.v2.Document` of gnostic), written from the same parts.
//!
//! Only the fields that this crate's documents use are known here; the numbers are gnostic's.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Sink, security_definitions};
use crate::encode;

/// A message, first byte to last.
#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 & 0x7f | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn message(&mut self, number: u32, message: &Message) {
        self.bytes(number, &message.0);
    }

    /// A string, unless it is empty or none.
    pub(super) fn text(&mut self, number: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str).filter(|t| !t.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
    }

    pub(super) fn texts(&mut self, number: u32, value: Option<&Value>) {
        for text in value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
    }

    pub(super) fn flag(&mut self, number: u32, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.varint(u64::from(number) << 3);
            self.varint(1);
        }
    }

    pub(super) fn integer(&mut self, number: u32, value: Option<&Value>) {
        if let Some(n) = value.and_then(Value::as_i64).filter(|n| *n != 0) {
            self.varint(u64::from(number) << 3);
            self.varint(n as u64);
        }
    }

    pub(super) fn double(&mut self, number: u32, value: Option<&Value>) {
        if let Some(n) = value.and_then(Value::as_f64).filter(|n| *n != 0.0) {
            self.fixed(number, n);
        }
    }

    /// A boolean that is there whatever it says.
    pub(super) fn choice(&mut self, number: u32, value: bool) {
        self.varint(u64::from(number) << 3);
        self.varint(value.into());
    }

    /// A double that is there whatever it says.
    pub(super) fn fixed(&mut self, number: u32, value: f64) {
        self.varint(u64::from(number) << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// `Any`: the value as YAML text, of which JSON is a part.
    pub(super) fn any(&mut self, number: u32, value: &Value) {
        let mut any = Message::default();
        let mut yaml = encode::any(value);
        yaml.push(b'\n');
        any.bytes(2, &yaml);
        self.message(number, &any);
    }

    /// A `Named…` entry.
    pub(super) fn named(&mut self, number: u32, name: &str, value: &Message) {
        let mut entry = Message::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(number, &entry);
    }

    pub(super) fn extensions(&mut self, number: u32, value: &Value) {
        for (name, value) in value.as_object().into_iter().flatten().filter(|(n, _)| n.starts_with("x-")) {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.any(2, value);
            self.message(number, &entry);
        }
    }
}

/// Parts of a document as messages.
#[derive(Default)]
pub(super) struct ProtoParts {
    paths: BTreeMap<String, Message>,
    definitions: BTreeMap<String, Message>,
    parameters: BTreeMap<String, Message>,
}

impl Sink for ProtoParts {
    fn path(&mut self, path: &str, item: &Value) {
        self.paths.insert(path.to_owned(), path_item(item));
    }

    fn definition(&mut self, name: &str, value: &Value) {
        self.definitions.insert(name.to_owned(), schema(value));
    }

    fn parameter(&mut self, name: &str, value: &Value) {
        self.parameters.insert(name.to_owned(), parameter(value));
    }
}

impl ProtoParts {
    pub(super) fn finish(self, version: &str) -> Vec<u8> {
        let mut document = Message::default();
        document.bytes(1, b"2.0");
        let mut info = Message::default();
        info.bytes(1, b"Kubernetes");
        info.bytes(2, version.as_bytes());
        document.message(2, &info);
        let mut paths = Message::default();
        for (path, item) in &self.paths {
            paths.named(2, path, item);
        }
        document.message(8, &paths);
        drop(self.paths);
        let mut definitions = Message::default();
        for (name, schema) in &self.definitions {
            definitions.named(1, name, schema);
        }
        document.message(9, &definitions);
        let mut parameters = Message::default();
        for (name, parameter) in &self.parameters {
            parameters.named(1, name, parameter);
        }
        document.message(10, &parameters);
        let mut requirement = Message::default();
        requirement.named(1, "BearerToken", &Message::default());
        document.message(12, &requirement);
        let mut security = Message::default();
        for (name, value) in security_definitions().as_object().into_iter().flatten() {
            let mut key = Message::default();
            for (number, field) in [(1, "type"), (2, "name"), (3, "in"), (4, "description")] {
                key.text(number, value.get(field));
            }
            let mut item = Message::default();
            item.message(2, &key);
            security.named(1, name, &item);
        }
        document.message(13, &security);
        document.0
    }
}

fn schema(value: &Value) -> Message {
    let get = |name: &str| value.get(name);
    let mut out = Message::default();
    out.text(1, get("$ref"));
    out.text(2, get("format"));
    out.text(3, get("title"));
    out.text(4, get("description"));
    if let Some(default) = get("default") {
        out.any(5, default);
    }
    out.double(6, get("multipleOf"));
    out.double(7, get("maximum"));
    out.flag(8, get("exclusiveMaximum"));
    out.double(9, get("minimum"));
    out.flag(10, get("exclusiveMinimum"));
    out.integer(11, get("maxLength"));
    out.integer(12, get("minLength"));
    out.text(13, get("pattern"));
    out.integer(14, get("maxItems"));
    out.integer(15, get("minItems"));
    out.flag(16, get("uniqueItems"));
    out.integer(17, get("maxProperties"));
    out.integer(18, get("minProperties"));
    out.texts(19, get("required"));
    for value in get("enum").and_then(Value::as_array).into_iter().flatten() {
        out.any(20, value);
    }
    if let Some(additional) = get("additionalProperties") {
        let mut item = Message::default();
        match additional {
            Value::Bool(any) => item.choice(2, *any),
            other => item.message(1, &schema(other)),
        }
        out.message(21, &item);
    }
    if let Some(kind) = get("type") {
        let mut item = Message::default();
        item.text(1, Some(kind));
        out.message(22, &item);
    }
    if let Some(items) = get("items") {
        let mut item = Message::default();
        item.message(1, &schema(items));
        out.message(23, &item);
    }
    for value in get("allOf").and_then(Value::as_array).into_iter().flatten() {
        out.message(24, &schema(value));
    }
    if let Some(Value::Object(properties)) = get("properties") {
        let mut named = Message::default();
        for (name, value) in properties {
            named.named(1, name, &schema(value));
        }
        out.message(25, &named);
    }
    if let Some(docs) = get("externalDocs") {
        let mut message = Message::default();
        message.text(1, docs.get("description"));
        message.text(2, docs.get("url"));
        out.message(29, &message);
    }
    if let Some(example) = get("example") {
        out.any(30, example);
    }
    out.extensions(31, value);
    out
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in
        [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (6, "options"), (7, "head"), (8, "patch")]
    {
        if let Some(value) = value.get(method) {
            out.message(number, &operation(value));
        }
    }
    for value in value.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(9, &parameters_item(value));
    }
    out.extensions(10, value);
    out
}

fn operation(value: &Value) -> Message {
    let get = |name: &str| value.get(name);
    let mut out = Message::default();
    out.texts(1, get("tags"));
    out.text(3, get("description"));
    out.text(5, get("operationId"));
    out.texts(6, get("produces"));
    out.texts(7, get("consumes"));
    for value in get("parameters").and_then(Value::as_array).into_iter().flatten() {
        out.message(8, &parameters_item(value));
    }
    let mut responses = Message::default();
    for (code, value) in get("responses").and_then(Value::as_object).into_iter().flatten() {
        let mut response = Message::default();
        response.text(1, value.get("description"));
        if let Some(value) = value.get("schema") {
            let mut item = Message::default();
            item.message(1, &schema(value));
            response.message(2, &item);
        }
        let mut either = Message::default();
        either.message(1, &response);
        responses.named(1, code, &either);
    }
    out.message(9, &responses);
    out.texts(10, get("schemes"));
    out.extensions(13, value);
    out
}

/// A parameter, or a reference to one.
fn parameters_item(value: &Value) -> Message {
    let mut item = Message::default();
    if value.get("$ref").is_some() {
        let mut reference = Message::default();
        reference.text(1, value.get("$ref"));
        item.message(2, &reference);
    } else {
        item.message(1, &parameter(value));
    }
    item
}

/// A parameter in the body, the path or the query.
fn parameter(value: &Value) -> Message {
    let get = |name: &str| value.get(name);
    let mut either = Message::default();
    if get("in").and_then(Value::as_str) == Some("body") {
        let mut body = Message::default();
        body.text(1, get("description"));
        body.text(2, get("name"));
        body.text(3, get("in"));
        body.flag(4, get("required"));
        if let Some(value) = get("schema") {
            body.message(5, &schema(value));
        }
        either.message(1, &body);
    } else {
        let mut simple = Message::default();
        simple.flag(1, get("required"));
        simple.text(2, get("in"));
        simple.text(3, get("description"));
        simple.text(4, get("name"));
        // Parameters in the query have one field more before their type.
        let (slot, kind, unique) = match get("in").and_then(Value::as_str) {
            Some("path") => (4, 5, 19),
            Some("header") => (1, 5, 19),
            _ => (3, 6, 20),
        };
        simple.text(kind, get("type"));
        simple.flag(unique, get("uniqueItems"));
        let mut non_body = Message::default();
        non_body.message(slot, &simple);
        either.message(2, &non_body);
    }
    either
}
