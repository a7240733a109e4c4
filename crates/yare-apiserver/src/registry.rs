//! What is served: built-in resources and CustomResourceDefinitions side by side, looked up by path.
//!
//! A registry is immutable; a CRD coming or going makes a new one, swapped in whole. One [`Served`] is a
//! resource in one version; all versions of a resource share one [`Stored`], which says how its objects rest.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde_json::Value;
use yare_kinds::{
    gated, reset,
    strategy::Strategy,
    table::{RESOURCES, Resource, Scope},
};
use yare_schema::{
    builtin::builtin,
    coerce::{self, Misfits},
    features::Gates,
    model::TypeRef,
    prune,
};
use yare_store::Kind;

use crate::{
    convert::{self, Convert},
    crd::{Conversion, Custom, CustomType},
    hooks,
    runtime_config::RuntimeConfig,
    status::{ApiError, ApiResult, GroupResource},
};

/// A type that lives as long as it is held.
#[derive(Clone)]
pub enum TypeHandle {
    /// In the tables of the binary.
    Static(TypeRef<'static>),
    /// Of a CustomResourceDefinition.
    Owned(Arc<CustomType>),
}

impl TypeHandle {
    /// Whether both are one type, not just alike.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Static(a), Self::Static(b)) => std::ptr::eq(a.schema, b.schema) && a.id == b.id,
            (Self::Owned(a), Self::Owned(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The type, if it is one of the tables, which say what Go writes.
    pub fn of_tables(&self) -> Option<TypeRef<'static>> {
        match self {
            Self::Static(ty) => Some(*ty).filter(|ty| ty.schema.typed),
            Self::Owned(_) => None,
        }
    }

    /// The type, to walk.
    pub fn at(&self) -> TypeRef<'_> {
        match self {
            Self::Static(ty) => *ty,
            Self::Owned(custom) => custom.at(),
        }
    }
}

/// The behaviour of a kind.
#[derive(Clone)]
pub enum StrategyRef {
    /// A row of the table.
    Static(&'static dyn Strategy),
    /// A custom resource.
    Owned(Arc<dyn Strategy>),
}

impl std::ops::Deref for StrategyRef {
    type Target = dyn Strategy;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Static(s) => *s,
            Self::Owned(s) => &**s,
        }
    }
}

/// How the objects of a resource rest in the store, whatever version they are asked for in.
pub struct Stored {
    /// Kind in the store: `apps/deployments`, `pods`.
    pub kind_key: Kind,
    /// API group of the storage version.
    pub group: Box<str>,
    /// Storage version.
    pub version: Box<str>,
    /// `apps/v1`
    pub api_version: Box<str>,
    /// `Deployment`
    pub kind: Box<str>,
    /// `deployments`
    pub plural: Box<str>,
    /// In namespaces or beside them.
    pub namespaced: bool,
    /// Type of the storage version.
    pub ty: TypeHandle,
    /// Defaults, validation, update rules.
    pub strategy: StrategyRef,
    /// Fields that writes lose because their features are off.
    pub gated: gated::Rows,
    /// Fields that requests cannot set.
    pub resets: reset::Rows,
    /// What the server itself does around writes.
    pub hooks: &'static hooks::Row,
    /// The row, for built-in resources.
    pub builtin: Option<&'static Resource>,
    /// The definition, for custom resources.
    pub custom: Option<Arc<Custom>>,
}

impl Stored {
    /// Group and plural, for messages.
    pub fn group_resource(&self) -> GroupResource<'_> {
        GroupResource { group: &self.group, resource: &self.plural }
    }

    /// Group and kind, for messages of validation.
    pub fn group_kind(&self) -> GroupResource<'_> {
        GroupResource { group: &self.group, resource: &self.kind }
    }

    /// Brings a custom resource that was written before its definition became what it is into today's form.
    pub fn freshen(&self, object: &mut Value) -> ApiResult<()> {
        let Some(custom) = &self.custom else { return Ok(()) };
        if let Some(conversion) = &custom.conversion {
            conversion.convert(object, &self.api_version)?;
        }
        prune::prune(self.ty.at(), object);
        // What such an object has in the place of metadata may be anything.
        let _ = coerce::coerce(self.ty.at(), object, Misfits::Drop);
        self.strategy.default(object);
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".into(), Value::from(&*self.api_version));
        }
        Ok(())
    }

    /// Key of an object in the store.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }
}

/// One subresource as served.
#[derive(Clone, Debug)]
pub struct Sub {
    /// `status`
    pub name: Box<str>,
    /// Group, version and kind of its body where that is not the parent's.
    pub kind: Option<(Box<str>, Box<str>, Box<str>)>,
    /// Its verbs.
    pub verbs: Vec<Box<str>>,
}

/// One resource in one version.
pub struct Served {
    /// API group.
    pub group: Box<str>,
    /// This version.
    pub version: Box<str>,
    /// `apps/v1`
    pub api_version: Box<str>,
    /// `Deployment`
    pub kind: Box<str>,
    /// `DeploymentList`
    pub list_kind: Box<str>,
    /// `deployments`
    pub plural: Box<str>,
    /// `deployment`
    pub singular: Box<str>,
    /// In namespaces or beside them.
    pub namespaced: bool,
    /// `deploy`
    pub short_names: Vec<Box<str>>,
    /// `all`
    pub categories: Vec<Box<str>>,
    /// Verbs of the main resource; empty where only subresources exist.
    pub verbs: Vec<Box<str>>,
    /// Subresources.
    pub subresources: Vec<Sub>,
    /// Type in this version.
    pub ty: TypeHandle,
    /// Defaults and validation of this version: of a built-in kind those of the stored one, since there all
    /// versions are shapes of the same thing; a custom resource is judged in the version it is written in.
    pub strategy: StrategyRef,
    /// How its objects rest.
    pub stored: Arc<Stored>,
    /// From the storage version and back.
    pub convert: Convert,
    /// What whoever uses this version is told, where it is on its way out.
    pub deprecation: Option<Deprecation>,
}

/// What is known of a version that is on its way out.
pub struct Deprecation {
    /// What its users are told.
    pub warning: Box<str>,
    /// The release that will not have it (`1.40`); empty: not known.
    pub removed: Box<str>,
}

impl Served {
    /// Group and plural, for messages.
    pub fn group_resource(&self) -> GroupResource<'_> {
        GroupResource { group: &self.group, resource: &self.plural }
    }

    /// Whether the main resource has the verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| &**v == verb)
    }

    /// The subresource `name`.
    pub fn sub(&self, name: &str) -> Option<&Sub> {
        self.subresources.iter().find(|s| &*s.name == name)
    }

    /// Whether bytes at rest are this version's bytes.
    pub fn is_storage(&self) -> bool {
        matches!(self.convert, Convert::None)
    }

    /// Whether this is a version of a custom resource that knows other fields than the stored one.
    fn has_own_fields(&self) -> bool {
        self.stored.custom.is_some() && !self.ty.is(&self.stored.ty)
    }

    /// Turns an object of the storage version into this version, in place.
    pub fn from_storage(&self, object: &mut Value) -> ApiResult<()> {
        self.convert.from_storage(&self.api_version, object)?;
        if self.has_own_fields() {
            fit(&self.ty, object)?;
        }
        Ok(())
    }

    /// [`Served::from_storage`] for an object that may have been written in another version.
    pub fn from_rest(&self, object: &mut Value) -> ApiResult<()> {
        let Some(conversion) = self.conversion() else { return self.from_storage(object) };
        conversion.convert(object, &self.api_version)?;
        fit(&self.ty, object)
    }

    /// The webhook that converts between versions.
    pub fn conversion(&self) -> Option<&Arc<Conversion>> {
        self.stored.custom.as_ref()?.conversion.as_ref()
    }

    /// Turns an object of this version into the storage version, in place.
    pub fn to_storage(&self, object: &mut Value) -> ApiResult<()> {
        self.convert.to_storage(&self.stored.api_version, object)?;
        if self.has_own_fields() {
            fit(&self.stored.ty, object)?;
        }
        Ok(())
    }

    /// Defaults of this version, where they are others than those of the stored one.
    pub fn default_own(&self, object: &mut Value) {
        if self.has_own_fields() {
            self.strategy.default(object);
        }
    }

    /// An object of the storage version as this version's strategy looks at it.
    pub fn judged<'a>(&self, object: &'a Value) -> ApiResult<Cow<'a, Value>> {
        if self.is_storage() || self.stored.custom.is_none() {
            return Ok(Cow::Borrowed(object));
        }
        let mut shown = object.clone();
        self.from_storage(&mut shown)?;
        Ok(Cow::Owned(shown))
    }

    /// Whether two versions rest as the same objects.
    pub fn same_storage(&self, other: &Served) -> bool {
        Arc::ptr_eq(&self.stored, &other.stored)
    }
}

/// Brings a custom resource of another version into the form of `ty`.
fn fit(ty: &TypeHandle, object: &mut Value) -> ApiResult<()> {
    prune::prune(ty.at(), object);
    match coerce::coerce(ty.at(), object, Misfits::Refuse) {
        Ok(_) => Ok(()),
        Err(misfit) => Err(ApiError::new(500, "", misfit.to_string())),
    }
}

/// Everything that is served at one moment.
#[derive(Default)]
pub struct Registry {
    versions: BTreeMap<String, BTreeMap<String, Vec<Arc<Served>>>>,
    by_store: HashMap<Kind, Arc<Served>>,
    all_of: HashMap<Kind, Vec<Arc<Served>>>,
}

impl Registry {
    /// The built-in resources that gates and configuration let be served.
    pub fn builtin(gates: &Gates, config: &RuntimeConfig) -> Self {
        let mut registry = Self::default();
        let mut stored_of: HashMap<(&str, &str), Arc<Stored>> = HashMap::new();
        // Aliases look their storage up, so what they point at comes first.
        let (aliases, plain): (Vec<&'static Resource>, Vec<&'static Resource>) =
            RESOURCES.iter().partition(|r| r.stored_as.is_some());
        for row in plain.into_iter().chain(aliases) {
            let stored = match row.stored_as {
                Some(target) => stored_of.get(&target).cloned(),
                None => builtin_stored(row, gates).map(Arc::new),
            };
            let Some(stored) = stored else {
                tracing::error!(
                    group = row.group,
                    resource = row.plural,
                    "no type in the schema tables; not served"
                );
                continue;
            };
            stored_of.insert((row.group, row.plural), stored.clone());
            if row.gate.is_some_and(|gate| !gates.is_on(gate)) {
                continue;
            }
            for version in config.served(row, gates.emulation()) {
                if let Some(served) = builtin_served(row, version.name, &stored) {
                    registry.insert(Arc::new(served));
                }
            }
        }
        registry
    }

    /// A copy without some custom resources and with others. What it costs is a copy of the index and what
    /// changes, not a look at everything that stays.
    pub fn patched(&self, builtin: &Self, gone: &[Arc<Served>], come: &[Arc<Served>]) -> Self {
        let mut out = Self {
            versions: self.versions.clone(),
            by_store: self.by_store.clone(),
            all_of: self.all_of.clone(),
        };
        for served in gone {
            out.remove(served);
        }
        for served in come {
            // A definition never hides a built-in resource, nor is anything served whose objects would be those of one.
            if builtin.find(&served.group, &served.version, &served.plural).is_none()
                && builtin.stored(&served.stored.kind_key).is_none()
            {
                out.insert(served.clone());
            }
        }
        out
    }

    fn remove(&mut self, served: &Arc<Served>) {
        let other = |s: &Arc<Served>| !Arc::ptr_eq(s, served);
        if let Some(versions) = self.versions.get_mut(&*served.group) {
            if let Some(list) = versions.get_mut(&*served.version) {
                list.retain(other);
                if list.is_empty() {
                    versions.remove(&*served.version);
                }
            }
            if versions.is_empty() {
                self.versions.remove(&*served.group);
            }
        }
        let kind = &served.stored.kind_key;
        let rest = self.all_of.get_mut(kind).map(|all| {
            all.retain(other);
            all.iter().find(|s| s.is_storage()).or(all.first()).cloned()
        });
        match rest.flatten() {
            Some(rest) => self.by_store.insert(kind.clone(), rest),
            None => {
                self.all_of.remove(kind);
                self.by_store.remove(kind)
            }
        };
    }

    fn insert(&mut self, served: Arc<Served>) {
        self.versions
            .entry(served.group.to_string())
            .or_default()
            .entry(served.version.to_string())
            .or_default()
            .push(served.clone());
        self.all_of.entry(served.stored.kind_key.clone()).or_default().push(served.clone());
        if served.is_storage() || !self.by_store.contains_key(&served.stored.kind_key) {
            self.by_store.insert(served.stored.kind_key.clone(), served);
        }
    }

    /// The resource at `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.versions.get(group)?.get(version)?.iter().find(|s| &*s.plural == plural)
    }

    /// The resource whose objects rest under this kind of the store.
    pub fn stored(&self, kind: &str) -> Option<&Arc<Served>> {
        self.by_store.get(kind)
    }

    /// All versions (of all groups) in which the objects of this kind of the store are served.
    pub fn versions_of(&self, kind: &str) -> &[Arc<Served>] {
        self.all_of.get(kind).map_or(&[], Vec::as_slice)
    }

    /// The resource of a group with this kind, in its most preferred version.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Arc<Served>> {
        let versions = self.versions.get(group)?;
        let mut names: Vec<&String> = versions.keys().collect();
        names.sort_by(|a, b| crate::discovery::compare_versions(a, b));
        names.into_iter().find_map(|v| versions[v].iter().find(|s| &*s.kind == kind && !s.verbs.is_empty()))
    }

    /// The resource of a group and plural, in any version.
    pub fn by_resource(&self, group: &str, plural: &str) -> Option<&Arc<Served>> {
        self.versions.get(group)?.values().flatten().find(|s| &*s.plural == plural)
    }

    /// Group → version → resources.
    pub fn groups(&self) -> &BTreeMap<String, BTreeMap<String, Vec<Arc<Served>>>> {
        &self.versions
    }

    /// Whether a group has built-in resources.
    pub fn is_built_in(&self, group: &str) -> bool {
        let versions = self.versions.get(group).into_iter().flat_map(|versions| versions.values());
        versions.flatten().any(|served| served.stored.builtin.is_some())
    }

    /// Every stored resource once.
    pub fn all_stored(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.by_store.values()
    }
}

/// Kind in the store of a resource.
pub fn store_kind(group: &str, plural: &str) -> Kind {
    if group.is_empty() { Kind::from(plural) } else { Kind::from(format!("{group}/{plural}")) }
}

/// `apps/v1`, or `v1` for core.
pub fn api_version(group: &str, version: &str) -> Box<str> {
    if group.is_empty() { version.into() } else { format!("{group}/{version}").into() }
}

fn builtin_stored(row: &'static Resource, gates: &Gates) -> Option<Stored> {
    let version = row.versions.iter().find(|v| v.storage)?;
    Some(Stored {
        kind_key: store_kind(row.group, row.plural),
        group: row.group.into(),
        version: version.name.into(),
        api_version: api_version(row.group, version.name),
        kind: row.kind.into(),
        plural: row.plural.into(),
        namespaced: row.scope == Scope::Namespaced,
        ty: TypeHandle::Static(crate::codec::builtin_type(row.group, version.name, row.kind)?),
        strategy: StrategyRef::Static(row.strategy),
        gated: gated::of(row, gates),
        resets: reset::of(row.group, row.plural),
        hooks: hooks::row(row.group, row.plural),
        builtin: Some(row),
        custom: None,
    })
}

fn builtin_served(row: &'static Resource, version: &'static str, stored: &Arc<Stored>) -> Option<Served> {
    let boxed = |list: &[&str]| list.iter().map(|s| Box::from(*s)).collect::<Vec<Box<str>>>();
    Some(Served {
        group: row.group.into(),
        version: version.into(),
        api_version: api_version(row.group, version),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind).into(),
        plural: row.plural.into(),
        singular: row.singular.into(),
        namespaced: row.scope == Scope::Namespaced,
        short_names: boxed(row.short_names),
        categories: boxed(row.categories),
        verbs: boxed(row.verbs),
        subresources: row
            .subresources
            .iter()
            .map(|s| Sub {
                name: s.name.into(),
                kind: s.kind.map(|(g, v, k)| (g.into(), v.into(), k.into())),
                verbs: boxed(s.verbs),
            })
            .collect(),
        ty: TypeHandle::Static(crate::codec::builtin_type(row.group, version, row.kind)?),
        // Not that of the storage, which may be another group's.
        strategy: StrategyRef::Static(row.strategy),
        stored: stored.clone(),
        convert: convert::of(row, version, stored),
        deprecation: deprecation(row.group, version, row.kind),
    })
}

/// `v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice`
fn deprecation(group: &str, version: &str, kind: &str) -> Option<Deprecation> {
    let known = builtin().kind(group, version, kind).filter(|k| k.is_deprecated())?;
    let since = known.deprecated?;
    let mut text =
        format!("{} {kind} is deprecated in v{}.{}+", api_version(group, version), since.0, since.1);
    let removed = known.removed.map_or_else(String::new, |until| format!("{}.{}", until.0, until.1));
    if let Some(until) = known.removed {
        text.push_str(&format!(", unavailable in v{}.{}+", until.0, until.1));
    }
    if let Some((group, version, kind)) = known.replacement {
        text.push_str(&format!("; use {} {kind}", api_version(group, version)));
    }
    Some(Deprecation { warning: text.into(), removed: removed.into() })
}
