//! Field management: who owns which field of an object, and server-side apply on top of that.
//!
//! [`update`] runs on every create, update and patch and notes what the request changed. [`apply`] merges a
//! configuration into an object, takes out what the configuration's manager no longer wants, and refuses to
//! change what others own. Both work on objects of one API version and on the entries in
//! `metadata.managedFields`; nothing else is read or written, and the time is an argument.

mod entries;
mod merge;
mod set;
mod typed;

use serde_json::{Map, Value};

pub use entries::{Entry, Operation};
pub use set::{Set, SetError};
pub(crate) use typed::same as same_value;

use self::{
    entries::{cap, decode, encode},
    set::Shown,
    typed::{Comparison, EMPTY, compare, extract},
};
use crate::model::TypeRef;

/// The annotation in which `kubectl apply` without `--server-side` keeps its last configuration.
pub const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager of what an object had before somebody first applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Most bytes of all annotations of an object.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// Who makes a request.
#[derive(Clone, Copy, Debug)]
pub struct ManagerInfo<'a> {
    /// The `fieldManager`, or what stands before the slash in the user agent.
    pub manager: &'a str,
    /// The API version of the request: `apps/v1`.
    pub api_version: &'a str,
    /// The subresource of the request, empty for the object itself.
    pub subresource: &'a str,
    /// Now, RFC 3339 with seconds in UTC.
    pub time: &'a str,
}

/// A kind in its API versions.
pub trait Kind {
    /// The type in this API version; `None` if it is not served, and then entries of it are dropped.
    fn type_in(&self, api_version: &str) -> Option<TypeRef<'_>>;

    /// The object in another API version. Only called for versions that differ from the object's.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;

    /// Whether types may have changed since entries were written, as those of custom resources do.
    fn evolves(&self) -> bool {
        false
    }
}

/// A kind with a single version, or whose versions differ in name only.
#[derive(Clone, Copy)]
pub struct OneType<'a> {
    /// The type.
    pub ty: TypeRef<'a>,
    /// The versions that have it.
    pub api_versions: &'a [&'a str],
    /// See [`Kind::evolves`].
    pub evolves: bool,
}

impl Kind for OneType<'_> {
    fn type_in(&self, api_version: &str) -> Option<TypeRef<'_>> {
        self.api_versions.contains(&api_version).then_some(self.ty)
    }

    fn convert(&self, object: &Value, api_version: &str) -> Option<Value> {
        let mut object = object.clone();
        object.as_object_mut()?.insert("apiVersion".to_owned(), Value::from(api_version));
        Some(object)
    }

    fn evolves(&self) -> bool {
        self.evolves
    }
}

/// Fields that a request cannot set, and so must not own.
#[derive(Clone, Debug)]
pub enum ResetFields {
    /// These and all below them (`status` for the object itself).
    Exclude(Set),
    /// All but what lies at or below these patterns of field names; `*` stands for any step.
    Only(&'static [&'static [&'static str]]),
}

impl ResetFields {
    fn filter(&self, set: &mut Set) {
        match self {
            Self::Exclude(gone) => set.recursive_difference(gone),
            Self::Only(patterns) => {
                let patterns: Vec<&[&str]> = patterns.to_vec();
                let mut map = std::mem::take(set).into_value();
                if let Value::Object(map) = &mut map {
                    keep_matching(map, &patterns);
                    *set = Set::trusted(std::mem::take(map));
                }
            }
        }
    }

    fn filter_comparison(&self, comparison: &mut Comparison) {
        self.filter(&mut comparison.added);
        self.filter(&mut comparison.modified);
        self.filter(&mut comparison.removed);
    }
}

fn keep_matching(node: &mut Map<String, Value>, patterns: &[&[&str]]) {
    let mut empty = Vec::new();
    for (step, child) in node.iter_mut() {
        if step == "." {
            continue;
        }
        let below: Vec<&[&str]> = patterns
            .iter()
            .filter_map(|p| {
                let (first, rest) = p.split_first()?;
                (*first == "*" || step.strip_prefix("f:") == Some(first)).then_some(rest)
            })
            .collect();
        if below.is_empty() {
            empty.push(step.clone());
        } else if !below.iter().any(|p| p.is_empty())
            && let Value::Object(child) = child
            && !child.is_empty()
        {
            keep_matching(child, &below);
            if child.is_empty() {
                empty.push(step.clone());
            } else if child.len() == 1 && child.contains_key(".") {
                child.clear();
            }
        }
    }
    for step in empty {
        node.remove(&step);
    }
}

/// One field that somebody else owns.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The owner, as messages name it: `"kubectl" using apps/v1`.
    pub manager: String,
    /// The field: `.spec.replicas`.
    pub field: String,
}

impl Conflict {
    /// The message of the `StatusCause`, whose type is `FieldManagerConflict`.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// Why a configuration cannot be applied.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum ApplyError {
    /// Others own fields that the configuration changes (HTTP 409).
    #[error("{}", conflicts_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration must not be sent like this (HTTP 400).
    #[error("{0}")]
    BadRequest(String),
    /// The configuration does not fit the type (HTTP 500 upstream).
    #[error("failed to create typed patch object ({object}): {}", typed_message(.errors))]
    Typed {
        /// `namespace/name; apps/v1, Kind=Deployment`
        object: String,
        /// What does not fit.
        errors: Vec<String>,
    },
    /// The object's own `managedFields` cannot be read.
    #[error("failed to decode managed fields: {0}")]
    ManagedFields(&'static str),
}

fn typed_message(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

fn conflicts_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message(), one.field);
    }
    let mut managers: Vec<&str> = conflicts.iter().map(|c| c.manager.as_str()).collect();
    managers.sort_unstable();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(conflicts.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.field)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Metadata that belongs to the server, not to a manager.
const SERVER_OWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

fn strip(set: &mut Set) {
    static STRIPPED: std::sync::OnceLock<Set> = std::sync::OnceLock::new();
    set.difference(STRIPPED.get_or_init(|| Set::of_fields(&SERVER_OWNED)));
}

fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn put_managed_fields(object: &mut Value, entries: Option<Value>) {
    let Some(object) = object.as_object_mut() else { return };
    match entries {
        Some(entries) => {
            let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("managedFields".to_owned(), entries);
            }
        }
        None => drop(object.get_mut("metadata").and_then(Value::as_object_mut).map(|m| m.remove("managedFields"))),
    }
}

fn array(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries an update starts from: the request's own, or the live ones where it has none.
fn starting_entries(old: Option<&Value>, sent: Option<Value>, subresource: &str) -> Vec<Entry> {
    let live = array(old.and_then(|o| o.pointer("/metadata/managedFields")));
    let from_live = || decode(live.to_vec(), true).unwrap_or_default();
    if !subresource.is_empty() {
        return from_live();
    }
    match sent {
        Some(Value::Array(sent)) => {
            let resets = match sent.as_slice() {
                [] => true,
                [Value::Object(one)] => one.values().all(Value::is_null),
                _ => false,
            };
            if resets {
                return Vec::new();
            }
            let trusted = sent == live;
            decode(sent, trusted).filter(|e| !e.is_empty()).unwrap_or_else(from_live)
        }
        _ => from_live(),
    }
}

/// Notes in `new.metadata.managedFields` what a create, update or (non-apply) patch changed.
///
/// `old` is the live object, absent on create; `new` is what is about to be stored, with the
/// `managedFields` that the client sent. Both are of `info.api_version`.
pub fn update(
    kind: &dyn Kind,
    old: Option<&Value>,
    new: &mut Value,
    info: &ManagerInfo<'_>,
    reset: Option<&ResetFields>,
) {
    let sent = take_managed_fields(new);
    let entries = starting_entries(old, sent, info.subresource);
    // An object that nobody's fields are known of stays so until somebody applies to it.
    let exists = old.and_then(|o| o.pointer("/metadata/uid")).is_some_and(|uid| uid.as_str() != Some(""));
    if entries.is_empty() && exists {
        return;
    }
    let entries = update_entries(kind, old, new, entries, info, reset);
    put_managed_fields(new, encode(entries));
}

fn update_entries(
    kind: &dyn Kind,
    old: Option<&Value>,
    new: &Value,
    entries: Vec<Entry>,
    info: &ManagerInfo<'_>,
    reset: Option<&ResetFields>,
) -> Vec<Entry> {
    let mut entries = known(kind, entries);
    let mut versions = Versions::new(kind, old, new, info.api_version, reset);
    disown(&mut entries, None, &mut versions);
    let Comparison { added, mut modified, .. } = versions.take_own();
    modified.union(&added);
    if let Some(reset) = reset {
        reset.filter(&mut modified);
    }
    strip(&mut modified);
    if !modified.is_empty() {
        let manager = if info.manager.is_empty() { "unknown" } else { info.manager };
        let mut entry = Entry {
            manager: manager.to_owned(),
            operation: Operation::Update,
            api_version: info.api_version.to_owned(),
            subresource: info.subresource.to_owned(),
            time: Some(info.time.to_owned()),
            fields: modified,
        };
        match entries.iter_mut().find(|e| e.same_manager(&entry)) {
            Some(mine) => {
                mine.fields.union(&entry.fields);
                mine.time = entry.time.take();
            }
            None => entries.push(entry),
        }
    }
    cap(&mut entries);
    entries
}

/// Drops entries of versions that are gone and fits the others to today's types.
fn known(kind: &dyn Kind, mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.retain_mut(|entry| {
        let Some(ty) = kind.type_in(&entry.api_version) else { return false };
        if kind.evolves() {
            let mut fields = std::mem::take(&mut entry.fields).into_value();
            if let Value::Object(map) = &mut fields {
                merge::reconcile(Some(ty), map);
                entry.fields = Set::trusted(std::mem::take(map));
            }
        }
        true
    });
    entries
}

/// The difference between two objects, in each version that is asked for.
struct Versions<'a> {
    kind: &'a dyn Kind,
    old: Option<&'a Value>,
    new: &'a Value,
    reset: Option<&'a ResetFields>,
    own: Comparison,
    own_version: &'a str,
    others: Vec<(String, Option<Comparison>)>,
}

impl<'a> Versions<'a> {
    fn new(
        kind: &'a dyn Kind,
        old: Option<&'a Value>,
        new: &'a Value,
        own_version: &'a str,
        reset: Option<&'a ResetFields>,
    ) -> Self {
        let mut own = compare_in(kind, own_version, old, new).unwrap_or_default();
        if let Some(reset) = reset {
            reset.filter_comparison(&mut own);
        }
        Self { kind, old, new, reset, own, own_version, others: Vec::new() }
    }

    /// The comparison in a version; `None` if the objects do not exist in it.
    fn get(&mut self, version: &str) -> Option<&Comparison> {
        if version == self.own_version {
            return Some(&self.own);
        }
        let at = match self.others.iter().position(|(v, _)| v == version) {
            Some(at) => at,
            None => {
                let comparison = self.compare_converted(version);
                self.others.push((version.to_owned(), comparison));
                self.others.len() - 1
            }
        };
        self.others[at].1.as_ref()
    }

    fn compare_converted(&self, version: &str) -> Option<Comparison> {
        let old = match self.old {
            Some(old) => Some(self.kind.convert(old, version)?),
            None => None,
        };
        let new = self.kind.convert(self.new, version)?;
        let mut comparison = compare_in(self.kind, version, old.as_ref(), &new)?;
        if let Some(reset) = self.reset {
            reset.filter_comparison(&mut comparison);
        }
        Some(comparison)
    }

    fn take_own(self) -> Comparison {
        self.own
    }
}

fn compare_in(kind: &dyn Kind, version: &str, old: Option<&Value>, new: &Value) -> Option<Comparison> {
    let ty = Some(kind.type_in(version)?);
    Some(match old {
        Some(old) => compare(ty, old, new),
        None => typed::compare_with_nothing(ty, new),
    })
}

/// Takes from everybody but `myself` what changed. Returns what they owned of what was added or modified.
fn disown(
    entries: &mut Vec<Entry>,
    myself: Option<usize>,
    versions: &mut Versions<'_>,
) -> Vec<(Entry, Set)> {
    let mut lost = Vec::new();
    let mut at = 0;
    entries.retain_mut(|entry| {
        at += 1;
        if myself == Some(at - 1) {
            return true;
        }
        let Some(comparison) = versions.get(&entry.api_version) else { return false };
        let mut conflict = entry.fields.intersection(&comparison.modified);
        conflict.union(&entry.fields.intersection(&comparison.added));
        if !conflict.is_empty() {
            entry.fields.difference(&conflict);
            let whose = Entry { fields: Set::new(), ..entry.clone() };
            lost.push((whose, conflict));
        }
        if !comparison.removed.is_empty() {
            entry.fields.difference(&comparison.removed);
        }
        !entry.fields.is_empty()
    });
    lost
}

/// The outcome of [`apply`].
#[derive(Clone, PartialEq, Debug)]
pub struct Applied {
    /// The merged object with its `managedFields`. Not yet defaulted.
    pub object: Value,
    /// Whether anything but `managedFields` differs from the live object.
    pub changed: bool,
}

/// Applies `config` to `live` (absent: the object is created) for `info.manager`.
///
/// `config` must be of `info.api_version`, and so must `live`. With `force`, fields that others own change
/// hands.
pub fn apply(
    kind: &dyn Kind,
    live: Option<&Value>,
    config: &Value,
    info: &ManagerInfo<'_>,
    force: bool,
    reset: Option<&ResetFields>,
) -> Result<Applied, ApplyError> {
    let entries = match live {
        None => Vec::new(),
        Some(live) => decode(array(live.pointer("/metadata/managedFields")).to_vec(), true)
            .ok_or(ApplyError::ManagedFields("malformed entry"))?,
    };
    let sent_version = config.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if sent_version != info.api_version {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {sent_version}, expected: {}",
            info.api_version
        )));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let ty = kind
        .type_in(info.api_version)
        .ok_or_else(|| ApplyError::BadRequest(format!("no type for {}", info.api_version)))?;
    let errors = merge::check(Some(ty), config);
    if !errors.is_empty() {
        return Err(ApplyError::Typed { object: describe(config), errors });
    }

    // Until somebody applies, nobody's fields need be known; what is there then has an owner too.
    let entries = match live {
        Some(live) if entries.is_empty() => {
            let before = ManagerInfo { manager: BEFORE_FIRST_APPLY, ..*info };
            let mut bare = live.clone();
            take_managed_fields(&mut bare);
            update_entries(kind, None, &bare, entries, &before, reset)
        }
        _ => entries,
    };
    let run = Run { kind, ty, live, config, info, reset };
    let outcome = match run.apply(entries.clone(), force) {
        Err(lost) if info.manager == "kubectl" => match run.allowed_by_last_applied() {
            None => Err(lost),
            Some(allowed) => {
                let rest: Vec<(Entry, Set)> = lost
                    .into_iter()
                    .filter_map(|(entry, mut set)| {
                        set.difference(&allowed);
                        (!set.is_empty()).then_some((entry, set))
                    })
                    .collect();
                if rest.is_empty() { run.apply(entries, true) } else { Err(rest) }
            }
        },
        other => other,
    };
    let mut applied = outcome.map_err(|lost| ApplyError::Conflicts(conflicts(lost)))?;
    if info.manager == "kubectl" {
        refresh_last_applied(&mut applied.object, config);
    }
    Ok(applied)
}

fn describe(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name, kind) = (text("/metadata/namespace"), text("/metadata/name"), text("/kind"));
    let version = text("/apiVersion");
    match version.split_once('/') {
        Some(_) => format!("{namespace}/{name}; {version}, Kind={kind}"),
        None => format!("{namespace}/{name}; /{version}, Kind={kind}"),
    }
}

fn conflicts(mut lost: Vec<(Entry, Set)>) -> Vec<Conflict> {
    lost.sort_by(|(a, _), (b, _)| {
        (&a.manager, a.operation, &a.api_version, &a.subresource).cmp(&(
            &b.manager,
            b.operation,
            &b.api_version,
            &b.subresource,
        ))
    });
    let mut out = Vec::new();
    for (entry, set) in lost {
        let manager = entry.shown();
        set.for_each(|path| {
            out.push(Conflict { manager: manager.clone(), field: Shown(path).to_string() });
        });
    }
    out
}

struct Run<'a> {
    kind: &'a dyn Kind,
    ty: TypeRef<'a>,
    live: Option<&'a Value>,
    config: &'a Value,
    info: &'a ManagerInfo<'a>,
    reset: Option<&'a ResetFields>,
}

impl Run<'_> {
    /// `Err`: what others own of what the configuration changes.
    fn apply(&self, entries: Vec<Entry>, force: bool) -> Result<Applied, Vec<(Entry, Set)>> {
        let mut entries = known(self.kind, entries);
        let live = self.live.unwrap_or(&EMPTY);
        let mut merged = merge::merge(Some(self.ty), Some(live), Some(self.config)).unwrap_or(Value::Null);
        let mut fields = extract(Some(self.ty), self.config);
        if let Some(reset) = self.reset {
            reset.filter(&mut fields);
        }
        let manager = if self.info.manager.is_empty() { "unknown" } else { self.info.manager };
        let mine = Entry {
            manager: manager.to_owned(),
            operation: Operation::Apply,
            api_version: self.info.api_version.to_owned(),
            subresource: self.info.subresource.to_owned(),
            time: None,
            fields,
        };
        let (at, last) = match entries.iter().position(|e| e.same_manager(&mine)) {
            Some(at) => {
                let last = std::mem::replace(&mut entries[at], mine);
                entries[at].time.clone_from(&last.time);
                (at, Some(last))
            }
            None => {
                entries.push(mine);
                (entries.len() - 1, None)
            }
        };
        if let Some(last) = last.filter(|l| !l.fields.is_empty()) {
            merged = self.prune(merged, &entries, &last);
        }
        let mut my_name = entries[at].clone();
        my_name.fields = Set::new();
        let mut versions =
            Versions::new(self.kind, self.live, &merged, self.info.api_version, self.reset);
        let lost = disown(&mut entries, Some(at), &mut versions);
        if !force && !lost.is_empty() {
            return Err(lost);
        }
        let changed = self.live.is_none_or(|live| *live != merged);
        if let Some(at) = entries.iter().position(|e| e.same_manager(&my_name)) {
            strip(&mut entries[at].fields);
            if changed {
                entries[at].time = Some(self.info.time.to_owned());
            }
            if entries[at].fields.is_empty() {
                entries.remove(at);
            }
        }
        if changed {
            merge::drop_nulls(Some(self.ty), &mut merged);
        }
        put_managed_fields(&mut merged, encode(entries));
        Ok(Applied { object: merged, changed })
    }

    /// Takes out what the manager applied last time and does not now, unless others own it too.
    fn prune(&self, merged: Value, entries: &[Entry], last: &Entry) -> Value {
        let own = self.info.api_version;
        let to = |object: &Value, version: &str, from: &str| {
            if version == from { Some(object.clone()) } else { self.kind.convert(object, version) }
        };
        let attempt = || {
            let ty = Some(self.kind.type_in(&last.api_version)?);
            let merged = to(&merged, &last.api_version, own)?;
            let last_fields = merge::with_named_fields(ty, &last.fields);
            let mut pruned =
                merge::remove(ty, &merged, last_fields.as_map()).unwrap_or_else(|| EMPTY.clone());

            // Others may own what is gone now: add that back, starting with the version at hand.
            let mut versions: Vec<&str> = vec![&last.api_version];
            for entry in entries {
                if !versions.contains(&entry.api_version.as_str()) {
                    versions.push(&entry.api_version);
                }
            }
            for version in versions {
                let mut managed = Set::new();
                for entry in entries.iter().filter(|e| e.api_version == version) {
                    managed.union(&entry.fields);
                }
                let (Some(ty), Some(merged), Some(at_version)) = (
                    self.kind.type_in(version),
                    to(&merged, version, &last.api_version),
                    to(&pruned, version, &last.api_version),
                ) else {
                    continue;
                };
                let ty = Some(ty);
                let mut gone = merge::with_named_fields(ty, &extract(ty, &merged));
                gone.difference(&merge::with_named_fields(ty, &extract(ty, &at_version)));
                gone.difference(&merge::with_named_fields(ty, &managed));
                let kept = merge::remove(ty, &merged, gone.as_map()).unwrap_or_else(|| EMPTY.clone());
                pruned = to(&kept, &last.api_version, version)?;
            }
            // And nothing goes that the manager did not own.
            let mut gone = merge::with_named_fields(ty, &extract(ty, &merged));
            gone.difference(&merge::with_named_fields(ty, &extract(ty, &pruned)));
            let gone = gone.intersection(&last_fields);
            let pruned = merge::remove(ty, &merged, gone.as_map()).unwrap_or_else(|| EMPTY.clone());
            to(&pruned, own, &last.api_version)
        };
        attempt().unwrap_or(merged)
    }

    /// What `kubectl apply` without `--server-side` applied last and is still so: `kubectl apply
    /// --server-side` may take that over from the manager of the former.
    fn allowed_by_last_applied(&self) -> Option<Set> {
        let live = self.live?;
        let annotation = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED_ANNOTATION)?.as_str()?;
        let last: Value = serde_json::from_str(annotation).ok()?;
        if last.get("apiVersion").and_then(Value::as_str) != Some(self.info.api_version) {
            return None;
        }
        let ty = Some(self.ty);
        if !merge::check(ty, &last).is_empty() {
            return None;
        }
        let comparison = compare(ty, &last, live);
        let mut fields = extract(ty, &last);
        fields.difference(&comparison.modified);
        fields.difference(&comparison.added);
        fields.difference(&comparison.removed);
        Some(fields)
    }
}

/// Keeps the annotation of client-side apply, where there is one, in step.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    let Some(annotations) =
        object.get_mut("metadata").and_then(|m| m.get_mut("annotations")).and_then(Value::as_object_mut)
    else {
        return;
    };
    let present = annotations.get(LAST_APPLIED_ANNOTATION).and_then(Value::as_str).is_some_and(|a| !a.is_empty());
    if !present {
        return;
    }
    let mut config = config.clone();
    if let Some(sent) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        sent.remove(LAST_APPLIED_ANNOTATION);
    }
    // Upstream's encoder ends with a newline.
    annotations.insert(LAST_APPLIED_ANNOTATION.to_owned(), Value::String(format!("{config}\n")));
    let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if bytes > MAX_ANNOTATIONS_BYTES {
        annotations.remove(LAST_APPLIED_ANNOTATION);
    }
}

/// Takes the old `managedFields` where nothing but their times would change, so that a request that changes
/// nothing is not written.
pub fn ignore_timestamps(old: &Value, new: &mut Value) {
    let old_entries = array(old.pointer("/metadata/managedFields"));
    let new_entries = array(new.pointer("/metadata/managedFields"));
    if new_entries.is_empty() || old_entries.len() != new_entries.len() || old_entries == new_entries {
        return;
    }
    let same_but_time = old_entries.iter().zip(new_entries).all(|(a, b)| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            let rest = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("time"));
            rest(a) == rest(b) && a.iter().all(|(k, v)| k == "time" || b.get(k) == Some(v))
        }
        _ => false,
    });
    if !same_but_time {
        return;
    }
    let sent = take_managed_fields(new);
    put_managed_fields(new, Some(Value::from(old_entries.to_vec())));
    if *new != *old {
        put_managed_fields(new, sent);
    }
}

#[cfg(test)]
mod tests;
