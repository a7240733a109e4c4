//! Parameters of policies: objects of any kind, which bindings name or select.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::Value;
use yare_kinds::view::View;
use yare_schema::{encode, selector::LabelSelector};
use yare_store::Object;

use super::Attributes;
use crate::{core::Core, registry::Served};

/// So many parameter objects are kept decoded.
const MAX_CACHED: usize = 256;

/// API version, kind in the store, and key.
type Place = (Box<str>, Box<str>, Box<str>);

/// Decoded parameters, with their revision.
#[derive(Default)]
pub struct Cache(Mutex<HashMap<Place, (u64, Arc<Value>)>>);

impl Cache {
    fn get(&self, served: &Served, object: &Object) -> Result<Arc<Value>, String> {
        let key = (served.api_version.clone(), Box::from(&*object.kind), object.key.clone());
        if let Some((revision, value)) = self.0.lock().get(&key)
            && *revision == object.revision
        {
            return Ok(value.clone());
        }
        let mut value: Value = serde_json::from_slice(&object.bytes).map_err(|e| e.to_string())?;
        served.from_rest(&mut value).map_err(|e| e.message)?;
        if served.ty.at().schema.typed {
            encode::fill(served.ty.at(), &mut value);
        }
        let value = Arc::new(value);
        let mut cache = self.0.lock();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(key, (object.revision, value.clone()));
        Ok(value)
    }
}

/// Group and version of an `apiVersion`.
pub fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// `paramKind` of a policy.
pub struct ParamKind {
    group: String,
    version: String,
    kind: String,
}

impl ParamKind {
    pub fn new(param_kind: &Value) -> Self {
        let (group, version) = split(param_kind.str_at("apiVersion"));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: param_kind.str_at("kind").to_owned(),
        }
    }

    /// The resource.
    ///
    /// # Errors
    /// There is none of this kind.
    pub fn find(&self, core: &Core) -> Result<Arc<Served>, String> {
        let registry = core.registry.load();
        let version = registry.groups().get(&self.group).and_then(|versions| versions.get(&self.version));
        let found = version.and_then(|all| all.iter().find(|s| *s.kind == *self.kind && s.has_verb("get")));
        found.cloned().ok_or_else(|| {
            let Self { group, version, kind } = self;
            format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={kind}'")
        })
    }
}

/// `paramRef` of a binding.
pub struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<Result<LabelSelector, String>>,
    /// What none is there means that the request is refused.
    denies: bool,
}

impl ParamRef {
    pub fn new(reference: &Value) -> Self {
        let selector = reference.at("selector");
        Self {
            name: reference.str_at("name").to_owned(),
            namespace: reference.str_at("namespace").to_owned(),
            selector: (!selector.is_null())
                .then(|| LabelSelector::from_object(selector).map_err(|e| e.to_string())),
            denies: reference.str_at("parameterNotFoundAction") == "Deny",
        }
    }

    /// The objects of the kind that are meant for a request; none where none is fine.
    ///
    /// # Errors
    /// The reference makes no sense, or nothing is there that must be.
    pub fn collect(
        &self,
        served: &Served,
        attributes: &Attributes<'_>,
    ) -> Result<Vec<Option<Arc<Value>>>, String> {
        let core = &attributes.call.core;
        let namespace = match (served.namespaced, self.namespace.as_str()) {
            (false, "") => "",
            (false, _) => {
                return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
            }
            // A namespace is in itself.
            (true, "") if attributes.is("", "namespaces") => attributes.name,
            (true, "") => attributes.namespace,
            (true, namespace) => namespace,
        };
        if served.namespaced && namespace.is_empty() {
            let why =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.into());
        }
        let kind = &served.stored.kind_key;
        let found: Vec<Arc<Object>> = if !self.name.is_empty() {
            if self.selector.is_some() {
                return Err("paramRef.name and paramRef.selector are mutually exclusive".into());
            }
            core.store().get(kind, &served.stored.key(namespace, &self.name)).into_iter().collect()
        } else {
            let Some(selector) = &self.selector else {
                return Err("one of name or selector must be provided".into());
            };
            let selector = selector.as_ref().map_err(Clone::clone)?;
            let prefix = if served.namespaced { format!("{namespace}/") } else { String::new() };
            let snapshot = core.store().snapshot(kind);
            let all = snapshot.range(std::ops::Bound::Unbounded, &prefix);
            all.filter(|object| selector.matches(&object.attrs.labels)).cloned().collect()
        };
        if found.is_empty() && self.denies {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
        }
        let cache = &core.admission.policies.params;
        found.iter().map(|object| cache.get(served, object).map(Some)).collect()
    }
}
