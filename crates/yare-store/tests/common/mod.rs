//! What the tests of the store share: an indexer that reads labels and the name, drafts, and shorthands.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by several tests, of which none uses all")]

use std::sync::Arc;

use yare_store::{Attrs, CommitError, Draft, Expect, Indexer, Object, Op, Options, Store, Write};

/// Reads `labels` (an object of strings) and, as the field `metadata.name`, `name`.
pub struct TestIndexer;

impl Indexer for TestIndexer {
    fn attrs(&self, _kind: &str, json: &[u8]) -> Attrs {
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let mut labels: Vec<(Box<str>, Box<str>)> = Vec::new();
        for (name, value) in json["labels"].as_object().into_iter().flatten() {
            labels.push((name.as_str().into(), value.as_str().unwrap().into()));
        }
        labels.sort();
        let name = json["name"].as_str().map(|name| ("metadata.name".into(), name.into()));
        Attrs { labels: labels.into(), fields: name.into_iter().collect() }
    }
}

pub fn draft(value: u64) -> Draft {
    padded(value, 0)
}

pub fn padded(value: u64, padding: usize) -> Draft {
    let pad = "x".repeat(padding);
    let json =
        format!(r#"{{"name":"n{value}","labels":{{"v":"{value}"}},"rv":"","v":{value},"pad":"{pad}"}}"#);
    let rv_at = json.find("\"\"").unwrap() + 1;
    Draft { json: json.into_bytes(), rv_at, attrs: None }
}

pub fn value(object: &Object) -> u64 {
    let json: serde_json::Value = serde_json::from_slice(&object.bytes).unwrap();
    assert_eq!(json["rv"].as_str().unwrap(), object.revision.to_string());
    json["v"].as_u64().unwrap()
}

pub fn write(kind: &str, key: &str, expect: Expect, op: Op) -> Write {
    Write { kind: kind.into(), key: key.into(), expect, op }
}

pub fn put(kind: &str, key: &str, value: u64) -> Write {
    write(kind, key, Expect::Anything, Op::Put(draft(value)))
}

pub fn delete(kind: &str, key: &str) -> Write {
    write(kind, key, Expect::Anything, Op::Delete)
}

pub async fn open(options: Options) -> Store {
    Store::open(options, Arc::new(TestIndexer)).await.unwrap()
}

/// Commits one write and returns its object.
pub async fn one(store: &Store, write: Write) -> Result<Arc<Object>, CommitError> {
    store.commit(vec![write]).await.map(|mut objects| objects.remove(0))
}
