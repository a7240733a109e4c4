//! Which objects of a kind a list, watch or collection deletion is about: namespace, label selector, field
//! selector. Matching looks at what the store extracted, never at the object's bytes, except for selectable
//! fields of custom resources.

use std::sync::Arc;

use serde_json::Value;
use yare_schema::selector::{FieldSelector, LabelSelector};
use yare_store::Object;

use crate::{
    registry::Served,
    status::{ApiError, ApiResult},
};

/// Which objects.
pub struct Selection {
    /// Keys start with this: `namespace/`, or empty for all.
    pub prefix: String,
    labels: LabelSelector,
    fields: FieldSelector,
    /// The one key that can match, where a selector names it.
    pub only: Option<String>,
    custom: Vec<(String, String)>,
    /// The version in which custom resources are looked at, where that takes converting them.
    shown: Option<Arc<Served>>,
}

impl Selection {
    /// Parses and checks selectors for the resource. `name`: restricts to one object (deprecated watch paths).
    pub fn new(served: &Arc<Served>, namespace: &str, labels: &str, fields: &str) -> ApiResult<Self> {
        let labels = LabelSelector::parse(labels).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(fields).map_err(|e| ApiError::bad_request(e.to_string()))?;
        let mut custom = Vec::new();
        for requirement in fields.requirements() {
            let name = &*requirement.field;
            if name == "metadata.name" || (name == "metadata.namespace" && served.namespaced) {
                continue;
            }
            let built_in =
                served.stored.builtin.is_some_and(|row| row.selectable.iter().any(|s| s.name == name));
            let path = served.stored.custom.as_ref().and_then(|c| c.selectable_path(&served.version, name));
            match path {
                Some(path) => custom.push((name.to_owned(), path.to_owned())),
                None if built_in => {}
                None => {
                    return Err(ApiError::bad_request(format!("field label not supported: {name}")));
                }
            }
        }
        let prefix =
            if served.namespaced && !namespace.is_empty() { format!("{namespace}/") } else { String::new() };
        let only = fields.exact_match("metadata.name").and_then(|name| {
            if served.namespaced {
                let namespace =
                    if namespace.is_empty() { fields.exact_match("metadata.namespace")? } else { namespace };
                Some(format!("{namespace}/{name}"))
            } else {
                Some(name.to_owned())
            }
        });
        let shown = (served.conversion().is_some() && !custom.is_empty()).then(|| served.clone());
        Ok(Self { prefix, labels, fields, only, custom, shown })
    }

    /// Everything of a kind.
    pub fn everything() -> Self {
        Self {
            prefix: String::new(),
            labels: LabelSelector::everything(),
            fields: FieldSelector::everything(),
            only: None,
            custom: Vec::new(),
            shown: None,
        }
    }

    /// Whether neither labels nor fields restrict anything.
    pub fn is_open(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether matching means converting.
    pub fn converts(&self) -> bool {
        self.shown.is_some()
    }

    /// Whether the key is in the selection's namespace.
    pub fn has_key(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
    }

    /// Whether the object (whose key is in the namespace) matches the selectors.
    pub fn matches(&self, object: &Object) -> bool {
        if !self.labels.is_empty() && !self.labels.matches(&object.attrs.labels) {
            return false;
        }
        if self.fields.is_empty() {
            return true;
        }
        let (namespace, name) = object.key.split_once('/').unwrap_or(("", &object.key));
        let custom: Vec<(&str, String)> = if self.custom.is_empty() {
            Vec::new()
        } else {
            let mut value: Value = serde_json::from_slice(&object.bytes).unwrap_or_default();
            if let Some(served) = &self.shown
                && let Err(error) = served.from_rest(&mut value)
            {
                tracing::warn!(%error, key = &*object.key, "cannot see whether a custom resource is selected");
                return false;
            }
            self.custom
                .iter()
                .map(|(field, path)| (field.as_str(), crate::jsonpath::scalar(&value, path)))
                .collect()
        };
        self.fields.matches_with(|field| match field {
            "metadata.name" => name,
            "metadata.namespace" => namespace,
            _ => custom
                .iter()
                .find(|(f, _)| *f == field)
                .map(|(_, v)| v.as_str())
                .or_else(|| object.attrs.fields.iter().find(|(f, _)| &**f == field).map(|(_, v)| &**v))
                .unwrap_or_default(),
        })
    }
}
