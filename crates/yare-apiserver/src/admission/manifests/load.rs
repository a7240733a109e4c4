//! From files to objects: each document is read as strictly as it can be, gets the defaults of its kind, and is held
//! against the kind's rules and those that are for files alone.

use std::{collections::HashMap, path::Path};

use ring::digest::{Context as Digest, SHA256};
use serde_json::Value;
use yare_auth::gotext::aggregate;
use yare_kinds::{
    meta,
    strategy::Context,
    table,
    view::{View, ViewMut},
};
use yare_schema::{
    decode::{self, Mode, Syntax},
    features::Gates,
};

use super::{GROUP, Plugin, api_version, kind_of};
use crate::codec;

/// What names of objects in files end in.
const SUFFIX: &str = ".static.k8s.io";

/// Largest file, and most bytes of one directory.
const MAX_BYTES: u64 = 16 << 20;
/// Most objects of one directory.
const MAX_OBJECTS: usize = 10_000;

/// What a directory holds.
pub struct Loaded {
    /// Webhook configurations or policies, by name.
    pub objects: Vec<Value>,
    /// Bindings, by name.
    pub bindings: Vec<Value>,
    /// Of all files that were read; empty where there is none.
    pub hash: String,
}

/// A document, and the file it is in.
struct Document {
    file: String,
    text: Vec<u8>,
}

/// Reads a directory.
pub fn load(plugin: &Plugin, directory: &Path, gates: &Gates) -> Result<Loaded, String> {
    let (documents, hash) = documents(directory)?;
    let mut run = Run { plugin, gates, names: HashMap::new(), objects: Vec::new(), bindings: Vec::new() };
    for document in &documents {
        run.document(document).map_err(|why| format!("error loading {}: {why}", document.file))?;
    }
    let Run { mut objects, mut bindings, .. } = run;
    for list in [&mut objects, &mut bindings] {
        list.sort_by(|a, b| a.str_at("metadata.name").cmp(b.str_at("metadata.name")));
    }
    for binding in &bindings {
        let policy = binding.str_at("spec.policyName");
        if !objects.iter().any(|object| object.str_at("metadata.name") == policy) {
            let name = binding.str_at("metadata.name");
            return Err(format!(
                "binding {name:?} references policy {policy:?} which does not exist in the manifest directory"
            ));
        }
    }
    Ok(Loaded { objects, bindings, hash })
}

fn documents(directory: &Path) -> Result<(Vec<Document>, String), String> {
    let unreadable = |e: std::io::Error| format!("failed to read manifest directory {directory:?}: {e}");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        if matches!(extension.as_str(), "yaml" | "yml" | "json") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    let (mut out, mut digest, mut total) = (Vec::new(), Digest::new(&SHA256), 0_u64);
    for path in files {
        let failed = |e: std::io::Error| format!("failed to read file {path:?}: {e}");
        total += std::fs::metadata(&path).map_err(failed)?.len();
        if total > MAX_BYTES {
            return Err(format!("the files in {directory:?} have more than {MAX_BYTES} bytes"));
        }
        let text = std::fs::read(&path).map_err(failed)?;
        if text.is_empty() {
            continue;
        }
        digest.update(&text);
        digest.update(&[0]);
        let file = path.display().to_string();
        out.extend(split(&text).into_iter().map(|text| Document { file: file.clone(), text }));
    }
    if out.is_empty() && total == 0 {
        return Ok((out, String::new()));
    }
    let hex: String = digest.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    Ok((out, format!("sha256:{hex}")))
}

/// The documents of a file, without the empty ones.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new()];
    for line in text.split_inclusive(|b| *b == b'\n') {
        let ends = line.strip_prefix(b"---").is_some_and(|rest| rest.trim_ascii().is_empty());
        match out.last_mut() {
            Some(document) if !ends => document.extend_from_slice(line),
            _ => out.push(Vec::new()),
        }
    }
    out.retain(|document| !document.trim_ascii().is_empty());
    out
}

struct Run<'a> {
    plugin: &'a Plugin,
    gates: &'a Gates,
    /// By kind and name, the file they are in.
    names: HashMap<(String, String), String>,
    objects: Vec<Value>,
    bindings: Vec<Value>,
}

impl Run<'_> {
    fn document(&mut self, document: &Document) -> Result<(), String> {
        let decoded = decode::decode_untyped_as(&document.text, Syntax::Yaml, Mode::Strict)
            .map_err(|error| error.to_string())?;
        self.take(decoded.value, &document.file, "")
    }

    /// `within`: what errors of reading begin with.
    fn take(&mut self, value: Value, file: &str, within: &str) -> Result<(), String> {
        let (version, kind) = kind_of(&value);
        if kind.is_empty() {
            return Err(format!("{within}Object 'Kind' is missing in '{value}'"));
        }
        let of_list = kind.strip_suffix("List");
        let items = || value.items("items").to_vec();
        if (version, kind) == ("v1", "List") {
            for item in items() {
                self.take(item, file, "failed to decode list item: ")?;
            }
            return Ok(());
        }
        if version == api_version()
            && let Some(kind) = of_list.filter(|kind| self.place(kind).is_some())
        {
            for mut item in items() {
                item.set("apiVersion", version);
                item.set("kind", kind);
                self.object(item, file, within)?;
            }
            return Ok(());
        }
        self.object(value, file, within)
    }

    /// Whether a kind is one of the plugin's, and if so, whether it is that of bindings.
    fn place(&self, kind: &str) -> Option<bool> {
        if kind == self.plugin.kind {
            return Some(false);
        }
        (Some(kind) == self.plugin.binding).then_some(true)
    }

    fn object(&mut self, value: Value, file: &str, within: &str) -> Result<(), String> {
        let (version, kind) = kind_of(&value);
        let (group, short) = version.split_once('/').unwrap_or(("", version));
        let Some(is_binding) = self.place(kind).filter(|_| version == api_version()) else {
            if group == GROUP && codec::builtin_type(group, short, kind).is_some() {
                return Err(format!("unsupported resource type *{short}.{kind}"));
            }
            return Err(format!("{within}no kind {kind:?} is registered for version {version:?}"));
        };
        let kind = kind.to_owned();
        let object = self.checked(value, &kind, within)?;
        let name = object.str_at("metadata.name");
        if name.is_empty() {
            return Err(format!("resource in file {file:?} must have a name"));
        }
        if !name.ends_with(SUFFIX) {
            return Err(format!("{name:?} in file {file:?} must have a name ending with {SUFFIX:?}"));
        }
        if let Some(before) = self.names.insert((kind.clone(), name.to_owned()), file.to_owned()) {
            return Err(format!(
                "duplicate name {name:?} found in file {file:?} (previously seen in {before:?})"
            ));
        }
        match self.plugin.binding {
            None => check_hooks(&object, name, file)?,
            Some(_) if is_binding => check_binding(&object, name)?,
            Some(_) => {
                if object.has("spec.paramKind") {
                    return Err(format!(
                        "{kind} {name:?}: spec.paramKind is not supported for static manifests"
                    ));
                }
            }
        }
        if self.names.len() > MAX_OBJECTS {
            return Err(format!("there are more than {MAX_OBJECTS} objects"));
        }
        let list = if is_binding { &mut self.bindings } else { &mut self.objects };
        list.push(object);
        Ok(())
    }

    /// An object in its type's form, with defaults, as its kind's rules would let it be written.
    fn checked(&self, value: Value, kind: &str, within: &str) -> Result<Value, String> {
        let (Some(ty), Some(row)) = (codec::builtin_type(GROUP, "v1", kind), table::find_kind(GROUP, kind))
        else {
            return Err(format!("no kind {kind:?} is registered for version {:?}", api_version()));
        };
        let decoded =
            decode::normalize(ty, value, Mode::Strict).map_err(|error| format!("{within}{error}"))?;
        let mut object = decoded.value;
        object.set("apiVersion", api_version());
        object.set("kind", kind);
        row.strategy.default(&mut object);
        let ctx = Context { now: "", namespace: "", user: "", gates: self.gates };
        let mut errors = meta::validate_create(&object, false, row.strategy);
        errors.extend(row.strategy.validate(&object, &ctx));
        // Of these names everybody else is told that they are for files.
        let name = object.str_at("metadata.name");
        errors
            .retain(|error| error.field != "metadata.name" || !error.detail.starts_with("names ending with"));
        if errors.is_empty() {
            return Ok(object);
        }
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Err(format!("{kind} {name:?}: {}", aggregate(&texts)))
    }
}

/// Services may not be there yet when the server starts.
fn check_hooks(configuration: &Value, name: &str, file: &str) -> Result<(), String> {
    for hook in configuration.items("webhooks") {
        let what = format!("webhook {:?} in {name:?} (file {file:?})", hook.str_at("name"));
        if hook.has("clientConfig.service") {
            return Err(format!(
                "{what}: clientConfig.service is not supported for static manifests; use clientConfig.url instead"
            ));
        }
        if hook.str_at("clientConfig.url").is_empty() {
            return Err(format!("{what}: clientConfig.url is required for static manifests"));
        }
    }
    Ok(())
}

fn check_binding(binding: &Value, name: &str) -> Result<(), String> {
    let policy = binding.str_at("spec.policyName");
    if policy.is_empty() {
        return Err(format!("binding {name:?} must reference a policy (spec.policyName)"));
    }
    if !policy.ends_with(SUFFIX) {
        return Err(format!("binding {name:?}: spec.policyName {policy:?} must end with {SUFFIX:?}"));
    }
    if binding.has("spec.paramRef") {
        return Err(format!("binding {name:?}: spec.paramRef is not supported for static manifests"));
    }
    Ok(())
}
