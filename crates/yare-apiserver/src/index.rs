//! What the store extracts from objects for selectors: labels, and the fields that the resource table names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;
use yare_kinds::table::{RESOURCES, Selectable};
use yare_store::{Attrs, Indexer};

use crate::registry::store_kind;

/// The indexer to open the store with.
pub fn indexer() -> Arc<dyn Indexer> {
    let fields = RESOURCES
        .iter()
        .filter(|row| !row.selectable.is_empty() && row.stored_as.is_none())
        .map(|row| (store_kind(row.group, row.plural).to_string(), row.selectable))
        .collect();
    Arc::new(TableIndexer { fields })
}

struct TableIndexer {
    fields: HashMap<String, &'static [Selectable]>,
}

/// Just the labels: everything else is skipped while parsing.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Labelled {
    metadata: Labels,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Labels {
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

impl Indexer for TableIndexer {
    fn attrs(&self, kind: &str, json: &[u8]) -> Attrs {
        let labels = |l: Option<BTreeMap<Box<str>, Box<str>>>| l.into_iter().flatten().collect();
        let Some(selectable) = self.fields.get(kind) else {
            let parsed: Labelled = serde_json::from_slice(json).unwrap_or_default();
            return Attrs { labels: labels(parsed.metadata.labels), fields: Box::default() };
        };
        let object: Value = serde_json::from_slice(json).unwrap_or_default();
        let mut fields: Vec<(Box<str>, Box<str>)> =
            selectable.iter().map(|s| (s.name.into(), (s.read)(&object).into())).collect();
        fields.sort();
        let metadata = object.get("metadata").and_then(|m| m.get("labels")).cloned();
        let parsed = metadata.and_then(|l| serde_json::from_value(l).ok());
        Attrs { labels: labels(parsed), fields: fields.into() }
    }
}
