//! What the store extracts from objects for selectors: labels, and the fields that the resource table names.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::Value;
use yare_kinds::{
    table::{RESOURCES, Selectable},
    view::View as _,
};
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
        let Some(selectable) = self.fields.get(kind) else {
            let parsed: Labelled = serde_json::from_slice(json).unwrap_or_default();
            let labels = parsed.metadata.labels.into_iter().flatten().collect();
            return Attrs { labels, fields: Box::default() };
        };
        attrs(selectable, &serde_json::from_slice(json).unwrap_or_default())
    }
}

/// The same, of an object of the storage version that has not become JSON yet.
pub fn attrs(selectable: &[Selectable], object: &Value) -> Attrs {
    let mut fields: Vec<(Box<str>, Box<str>)> =
        selectable.iter().map(|s| (s.name.into(), (s.read)(object).into())).collect();
    fields.sort_unstable();
    let labels = object.at("metadata.labels").as_object().into_iter().flatten();
    // Sorted, as the map is.
    let labels: Option<_> =
        labels.map(|(name, value)| Some((name.as_str().into(), value.as_str()?.into()))).collect();
    Attrs { labels: labels.unwrap_or_default(), fields: fields.into() }
}
