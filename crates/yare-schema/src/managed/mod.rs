//! Field management: who owns which field of an object, and server-side apply on top of that.
//!
//! [`update`] runs on every create, update and patch and notes what the request changed. [`apply`] merges a
//! configuration into an object, takes out what the configuration's manager no longer wants, and refuses to
//! change what others own. Both work on objects of one API version and on the entries in
//! `metadata.managedFields`; nothing else is read or written, and the time is an argument.

mod apply;
mod check;
mod entries;
mod merge;
mod overlay;
pub mod scale;
mod set;
mod typed;

use serde_json::{Map, Value};

pub use apply::{Applied, ApplyError, Conflict, apply};
pub use entries::{Entry, Operation};
pub use overlay::overlay;
pub use set::{Set, SetError};
pub(crate) use typed::same as same_value;

use self::{
    entries::{cap, decode, encode},
    typed::{Comparison, EMPTY, Structs, compare},
};
use crate::model::TypeRef;

/// The annotation in which `kubectl apply` without `--server-side` keeps its last configuration.
pub const LAST_APPLIED_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

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

    /// The object in another API version; `None` if that is not served. Only called for versions that differ
    /// from the object's.
    ///
    /// # Errors
    /// Why the object cannot be converted.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<Value>, String>;

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

    fn convert(&self, object: &Value, api_version: &str) -> Result<Option<Value>, String> {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.insert("apiVersion".to_owned(), Value::from(api_version));
        }
        Ok(Some(object))
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
        None => {
            drop(object.get_mut("metadata").and_then(Value::as_object_mut).map(|m| m.remove("managedFields")))
        }
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
            decode(sent, trusted).ok().filter(|e| !e.is_empty()).unwrap_or_else(from_live)
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
    let mut entries = known(kind, entries, kind.evolves());
    let mut versions = Versions::new(kind, old, new, info.api_version, reset, Structs::BOTH);
    // Whoever updates an object is not told that another version of it cannot be had: who owned what there goes on.
    let _ = disown(&mut entries, None, &mut versions);
    let mut modified = versions.take_own().changed();
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

/// Drops entries of versions that are gone and, if asked to, fits the others to today's types.
fn known(kind: &dyn Kind, mut entries: Vec<Entry>, fit: bool) -> Vec<Entry> {
    entries.retain_mut(|entry| {
        let Some(ty) = kind.type_in(&entry.api_version) else { return false };
        if fit {
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

/// A difference; `None` if the objects do not exist in the version, an error if they cannot be converted to it.
type Compared = Result<Option<Comparison>, String>;

/// The difference between two objects, in each version that is asked for.
struct Versions<'a> {
    kind: &'a dyn Kind,
    old: Option<&'a Value>,
    new: &'a Value,
    reset: Option<&'a ResetFields>,
    own: Comparison,
    own_version: &'a str,
    others: Vec<(String, Compared)>,
}

impl<'a> Versions<'a> {
    fn new(
        kind: &'a dyn Kind,
        old: Option<&'a Value>,
        new: &'a Value,
        own_version: &'a str,
        reset: Option<&'a ResetFields>,
        structs: Structs,
    ) -> Self {
        let mut own = compare_in(kind, own_version, old, new, structs).unwrap_or_default();
        if let Some(reset) = reset {
            reset.filter_comparison(&mut own);
        }
        Self { kind, old, new, reset, own, own_version, others: Vec::new() }
    }

    /// The comparison in a version.
    fn get(&mut self, version: &str) -> Result<Option<&Comparison>, &str> {
        if version == self.own_version {
            return Ok(Some(&self.own));
        }
        let at = match self.others.iter().position(|(v, _)| v == version) {
            Some(at) => at,
            None => {
                let comparison = self.compare_converted(version);
                self.others.push((version.to_owned(), comparison));
                self.others.len() - 1
            }
        };
        self.others[at].1.as_ref().map(Option::as_ref).map_err(String::as_str)
    }

    fn compare_converted(&self, version: &str) -> Compared {
        let old = self.old.map(|old| self.kind.convert(old, version)).transpose()?;
        let new = self.kind.convert(self.new, version);
        let new = new.map_err(|why| format!("failed to convert new object: {why}"))?;
        let (None | Some(Some(_)), Some(new)) = (&old, new) else { return Ok(None) };
        let old = old.flatten();
        let Some(mut comparison) = compare_in(self.kind, version, old.as_ref(), &new, Structs::BOTH) else {
            return Ok(None);
        };
        // Of custom resources upstream resets the version of the request only.
        if let Some(reset) = self.reset.filter(|_| !self.kind.evolves()) {
            reset.filter_comparison(&mut comparison);
        }
        Ok(Some(comparison))
    }

    /// What of the version of the request was modified besides.
    fn also_modified(&mut self, mut fields: Set) {
        if let Some(reset) = self.reset {
            reset.filter(&mut fields);
        }
        self.own.modified.union(&fields);
    }

    fn take_own(self) -> Comparison {
        self.own
    }
}

fn compare_in(
    kind: &dyn Kind,
    version: &str,
    old: Option<&Value>,
    new: &Value,
    structs: Structs,
) -> Option<Comparison> {
    Some(compare(Some(kind.type_in(version)?), old.unwrap_or(&EMPTY), new, structs))
}

/// Takes from everybody but `myself` what changed. Returns what they owned of what was added or modified, or why
/// that cannot be said of a version; its entries then stay as they are.
fn disown(
    entries: &mut Vec<Entry>,
    myself: Option<usize>,
    versions: &mut Versions<'_>,
) -> Result<Vec<(Entry, Set)>, String> {
    let mut lost = Vec::new();
    let mut failed = None;
    let mut at = 0;
    entries.retain_mut(|entry| {
        at += 1;
        if myself == Some(at - 1) {
            return true;
        }
        let comparison = match versions.get(&entry.api_version) {
            Ok(Some(comparison)) => comparison,
            Ok(None) => return false,
            Err(why) => {
                failed.get_or_insert_with(|| why.to_owned());
                return true;
            }
        };
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
    failed.map_or(Ok(lost), Err)
}

/// What is wrong with the `managedFields` of an object, in upstream's words.
///
/// # Errors
/// The first thing that is.
pub fn check_entries(object: &Value) -> Result<(), String> {
    decode(array(object.pointer("/metadata/managedFields")).to_vec(), false).map(drop)
}

/// Takes the old `managedFields` where nothing but their times would change, so that a request that changes
/// nothing is not written.
pub fn ignore_timestamps(old: &Value, new: &mut Value) {
    let old_entries = array(old.pointer("/metadata/managedFields"));
    let new_entries = array(new.pointer("/metadata/managedFields"));
    if new_entries.is_empty() || old_entries.len() != new_entries.len() || old_entries == new_entries {
        return;
    }
    let same_but_time =
        old_entries.iter().zip(new_entries).all(|(a, b)| match (a.as_object(), b.as_object()) {
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
