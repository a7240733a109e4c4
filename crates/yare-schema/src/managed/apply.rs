//! Server-side apply: a configuration becomes part of an object, and its manager the owner of what it says.

use serde_json::Value;

use super::{
    Kind, LAST_APPLIED_ANNOTATION, ManagerInfo, ResetFields, Versions, array,
    check::{check, joined},
    disown,
    entries::{Entry, Operation, decode, encode},
    known, merge, put_managed_fields,
    set::{Set, Shown},
    strip, take_managed_fields,
    typed::{EMPTY, Structs, compare, extract, same, shorter},
    update_entries,
};
use crate::model::TypeRef;

/// The manager of what an object had before somebody first applied to it.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Most bytes of all annotations of an object.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

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
    #[error("failed to create typed {which} object ({object}): {}", joined(.errors))]
    Typed {
        /// `patch`, or `live` where the types have changed since the object was written.
        which: &'static str,
        /// `namespace/name; apps/v1, Kind=Deployment`
        object: String,
        /// What does not fit.
        errors: Vec<String>,
    },
    /// A version that others wrote the object in cannot be had (HTTP 500).
    #[error("{0}")]
    Conversion(String),
    /// The object's own `managedFields` cannot be read.
    #[error("failed to decode managed fields: {0}")]
    ManagedFields(String),
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
            .map_err(ApplyError::ManagedFields)?,
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
    let errors = check(Some(ty), config, false);
    if !errors.is_empty() {
        return Err(ApplyError::Typed { which: "patch", object: describe(config), errors });
    }
    if let Some(live) = live {
        let errors = check(Some(ty), live, true);
        if !errors.is_empty() {
            return Err(ApplyError::Typed { which: "live", object: describe(live), errors });
        }
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
        Err(Refused::Conflicts(lost)) if info.manager == "kubectl" => match run.allowed_by_last_applied() {
            None => Err(Refused::Conflicts(lost)),
            Some(allowed) => {
                let rest: Vec<(Entry, Set)> = lost
                    .into_iter()
                    .filter_map(|(entry, mut set)| {
                        set.difference(&allowed);
                        (!set.is_empty()).then_some((entry, set))
                    })
                    .collect();
                if rest.is_empty() { run.apply(entries, true) } else { Err(Refused::Conflicts(rest)) }
            }
        },
        other => other,
    };
    let mut applied = outcome.map_err(|refused| match refused {
        Refused::Conflicts(lost) => ApplyError::Conflicts(conflicts(lost)),
        Refused::Conversion(why) => ApplyError::Conversion(why),
    })?;
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

/// Why a run ends early.
enum Refused {
    /// What others own of what the configuration changes.
    Conflicts(Vec<(Entry, Set)>),
    Conversion(String),
}

impl Run<'_> {
    fn apply(&self, entries: Vec<Entry>, force: bool) -> Result<Applied, Refused> {
        // Whoever wrote the entries may have known other types: an older version of us, for built-in kinds.
        let mut entries = known(self.kind, entries, true);
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
            merged = self
                .prune(merged, &entries, &last)
                .map_err(|why| Refused::Conversion(format!("failed to prune fields: {why}")))?;
        }
        let mut my_name = entries[at].clone();
        my_name.fields = Set::new();
        let own = self.info.api_version;
        let mut versions = Versions::new(self.kind, self.live, &merged, own, self.reset, Structs::OLD);
        let shorter = shorter(self.ty, live, self.config);
        let mut changed = !shorter.is_empty();
        versions.also_modified(shorter);
        let lost = disown(&mut entries, Some(at), &mut versions).map_err(Refused::Conversion)?;
        if !force && !lost.is_empty() {
            return Err(Refused::Conflicts(lost));
        }
        changed |= self.live.is_none_or(|live| !same(live, &merged));
        if let Some(at) = entries.iter().position(|e| e.same_manager(&my_name)) {
            strip(&mut entries[at].fields);
            if changed {
                entries[at].time = Some(self.info.time.to_owned());
            }
            if entries[at].fields.is_empty() {
                entries.remove(at);
            }
        }
        put_managed_fields(&mut merged, encode(entries));
        Ok(Applied { object: merged, changed })
    }

    /// Takes out what the manager applied last time and does not now, unless others own it too.
    fn prune(&self, merged: Value, entries: &[Entry], last: &Entry) -> Result<Value, String> {
        let own = self.info.api_version;
        let to = |object: &Value, version: &str, from: &str| {
            if version == from { Ok(Some(object.clone())) } else { self.kind.convert(object, version) }
        };
        // The same, where a failure has to say which object would not go.
        let named = |object: &Value, version: &str, from: &str, what: &str, whereto: &str| {
            to(object, version, from).map_err(|why| format!("{what} object {whereto}: {why}"))
        };
        let attempt = || {
            let Some(ty) = self.kind.type_in(&last.api_version) else { return Ok(None) };
            let ty = Some(ty);
            let what = "failed to convert merged";
            let Some(merged) = named(&merged, &last.api_version, own, what, "to last applied version")?
            else {
                return Ok(None);
            };
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
                let whereto = format!("at version {version}");
                let convert = |object: &Value, which: &str| {
                    let what = format!("failed add back owned items: failed to convert {which}");
                    named(object, version, &last.api_version, &what, &whereto)
                };
                let Some(ty) = self.kind.type_in(version) else { continue };
                let (Some(merged), Some(at_version)) =
                    (convert(&merged, "merged")?, convert(&pruned, "pruned")?)
                else {
                    continue;
                };
                let ty = Some(ty);
                let mut gone = merge::with_named_fields(ty, &extract(ty, &merged));
                gone.difference(&merge::with_named_fields(ty, &extract(ty, &at_version)));
                gone.difference(&merge::with_named_fields(ty, &managed));
                let kept = merge::remove(ty, &merged, gone.as_map()).unwrap_or_else(|| EMPTY.clone());
                match to(&kept, &last.api_version, version)? {
                    Some(converted) => pruned = converted,
                    None => return Ok(None),
                }
            }
            // And nothing goes that the manager did not own.
            let mut gone = merge::with_named_fields(ty, &extract(ty, &merged));
            gone.difference(&merge::with_named_fields(ty, &extract(ty, &pruned)));
            let gone = gone.intersection(&last_fields);
            let pruned = merge::remove(ty, &merged, gone.as_map()).unwrap_or_else(|| EMPTY.clone());
            to(&pruned, own, &last.api_version)
        };
        Ok(attempt()?.unwrap_or(merged))
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
        if !check(ty, &last, false).is_empty() {
            return None;
        }
        let comparison = compare(ty, &last, live, Structs::NEW);
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
    let present =
        annotations.get(LAST_APPLIED_ANNOTATION).and_then(Value::as_str).is_some_and(|a| !a.is_empty());
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
