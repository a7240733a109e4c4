//! Which objects of a kind a list, watch or collection deletion is about: namespace, label selector, field
//! selector. Matching looks at what the store extracted, never at the object's bytes, except for selectable
//! fields of custom resources.

use std::sync::Arc;

use serde_json::Value;
use yare_schema::selector::{FieldSelector, LabelSelector, ShardField, ShardSelector};
use yare_store::Object;

use crate::{
    options::ListOptions,
    path::RequestInfo,
    registry::Served,
    span,
    status::{ApiError, ApiResult, quote},
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
    /// The part of all objects that is asked for.
    pub shard: Option<ShardSelector>,
}

impl Selection {
    /// What a request asks for. Where its path (of a watch) names an object, that is a selector too.
    pub fn new(served: &Arc<Served>, info: &RequestInfo, options: &ListOptions) -> ApiResult<Self> {
        let labels = LabelSelector::parse(&options.label_selector)
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let parsed = FieldSelector::parse(&options.field_selector)
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let mut custom = Vec::new();
        let mut fields = FieldSelector::everything();
        for requirement in parsed.requirements() {
            let mut requirement = requirement.clone();
            // As the field was called before version 1.
            if served.stored.builtin.is_some() && &*served.kind == "Pod" && &*requirement.field == "spec.host"
            {
                requirement.field = "spec.nodeName".into();
            }
            let name = &*requirement.field;
            let path = served.stored.custom.as_ref().and_then(|c| c.selectable_path(&served.version, name));
            match path {
                Some(path) => custom.push((name.to_owned(), path.to_owned())),
                None if selectable(served, name) => {}
                None => return Err(ApiError::bad_request(not_selectable(served, name))),
            }
            fields.add(requirement);
        }
        if !info.name.is_empty() {
            if fields.is_empty() {
                fields = FieldSelector::equals("metadata.name", &info.name);
            } else if fields.exact_match("metadata.name") != Some(&info.name) {
                return Err(ApiError::bad_request(
                    "fieldSelector metadata.name doesn't match requested name",
                ));
            }
        }
        let shard = match options.shard_selector.as_str() {
            "" => None,
            text => Some(
                ShardSelector::parse(text)
                    .map_err(|why| ApiError::new(500, "", format!("invalid shard selector: {why}")))?,
            ),
        };
        let namespace = info.namespace.as_str();
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
        Ok(Self { prefix, labels, fields, only, custom, shown, shard })
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
            shard: None,
        }
    }

    /// Whether nothing restricts anything.
    pub fn is_open(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.shard.is_none()
    }

    /// Whether matching means converting.
    pub fn converts(&self) -> bool {
        self.shown.is_some()
    }

    /// Whether the key is in the selection's namespace.
    pub fn has_key(&self, key: &str) -> bool {
        key.starts_with(&self.prefix)
    }

    /// Whether the object is in the shard that is selected; there may be none.
    pub fn is_in_shard(&self, object: &Object) -> bool {
        self.shard.as_ref().is_none_or(|shard| in_shard(shard, object))
    }

    /// Whether the object (whose key is in the namespace) matches the selectors.
    pub fn matches(&self, object: &Object) -> bool {
        if !self.labels.is_empty() && !self.labels.matches(&object.attrs.labels) {
            return false;
        }
        if !self.is_in_shard(object) {
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

fn in_shard(shard: &ShardSelector, object: &Object) -> bool {
    match shard.field {
        ShardField::Namespace => {
            shard.matches(object.key.split_once('/').map_or("", |(namespace, _)| namespace))
        }
        ShardField::Uid => {
            let raw = &object.bytes;
            let uid = span::member(raw, "metadata")
                .and_then(|at| span::member(&raw[at.clone()], "uid").map(|uid| &raw[at][uid]))
                .and_then(|uid| std::str::from_utf8(uid).ok());
            shard.matches(uid.unwrap_or_default().trim_matches('"'))
        }
    }
}

/// Whether the field can be selected by in the version served.
fn selectable(served: &Served, field: &str) -> bool {
    let Some(row) = served.stored.builtin else {
        return field == "metadata.name" || (field == "metadata.namespace" && served.namespaced);
    };
    match field {
        "metadata.name" => true,
        // Kinds without selectable fields of their own know this one even where they have no namespace.
        "metadata.namespace" => served.namespaced || row.selectable.is_empty(),
        _ => {
            // Events are the same objects in two groups, which call their fields differently.
            let of_group = match (&*served.kind, &*served.group) {
                ("Event", "") => !field.starts_with("regarding.") && field != "reportingController",
                ("Event", _) => {
                    !field.starts_with("involvedObject.") && !matches!(field, "reportingComponent" | "source")
                }
                _ => true,
            };
            of_group && row.selectable.iter().any(|s| s.name == field)
        }
    }
}

fn not_selectable(served: &Served, field: &str) -> String {
    match (&*served.kind, served.stored.builtin) {
        ("Job", Some(_)) => format!("field label {} not supported for Job", quote(field)),
        ("ResourceSlice", Some(_)) => {
            format!("field label not supported for {}, Kind=ResourceSlice: {field}", served.api_version)
        }
        (_, Some(row)) if row.selectable.is_empty() => format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            quote(field)
        ),
        _ => format!("field label not supported: {field}"),
    }
}
