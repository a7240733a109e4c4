//! `KubeletConfiguration`: how a node is told what to do.
//!
//! In: a file, a directory of drop-ins, flags. Out: one [`Configuration`], checked, with defaults filled in;
//! `/configz` serves it and everything else reads its [`Settings`]. The fields are one [`table`]: what is not in
//! it is refused, and so is what it cannot do; what changes nothing is warned about by name.
//!
//! Sources in the order in which later ones win: what the program says of itself (addresses, DNS), the file,
//! the drop-ins in the order of their paths, texts given inline, flags.

mod form;
mod settings;
pub mod table;
mod validate;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};
use yare_schema::decode::{Mode, Syntax, decode_as, decode_untyped_as, normalize};
use yare_schema::features::Gates;
use yare_schema::model::{Schema, TypeId};

pub use settings::*;
use table::{ROWS, Role, Row};

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const KIND: &str = "KubeletConfiguration";
/// The longest file that is read.
const BYTES_MAX: u64 = 1 << 20;
/// Drop-ins end like this; other files in their directory are left alone.
const EXTENSION: &str = "conf";
/// Drop-ins that are read, and how deep their directory may nest.
const DROP_INS_MAX: usize = 1000;
const DEPTH_MAX: usize = 16;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl ConfigError {
    /// What is wrong, in one line.
    pub(crate) fn new(message: String) -> Self {
        Self(message)
    }
}

/// Where a configuration comes from.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// What the program itself says: rows' fields and values.
    pub base: Vec<(&'static str, Value)>,
    /// Gates that are set for the whole program, as `A=true,B=false`.
    pub gates: String,
    /// `--config`
    pub file: Option<PathBuf>,
    /// `--config-dir`
    pub directory: Option<PathBuf>,
    /// Fields as YAML, without apiVersion and kind.
    pub inline: Vec<String>,
    /// Flags by name, and their values.
    pub flags: Vec<(String, String)>,
}

/// A node's effective configuration. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Configuration {
    document: Arc<Value>,
    settings: Arc<Settings>,
    gates: Arc<Gates>,
    warnings: Arc<[String]>,
}

static SCHEMA: LazyLock<(Schema, TypeId)> = LazyLock::new(form::schema);

impl Default for Configuration {
    /// Upstream's defaults.
    fn default() -> Self {
        // Nothing was given that could be wrong; a test loads it.
        Sources::default().load().expect("the defaults are valid")
    }
}

impl Configuration {
    /// What holds.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Which features are on.
    pub fn gates(&self) -> &Gates {
        &self.gates
    }

    /// The document with its defaults, as `/configz` serves it.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// What was given and changes nothing, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Sources {
    /// Reads everything and checks it.
    pub fn load(&self) -> Result<Configuration, ConfigError> {
        let mut document = json!({});
        for (field, value) in &self.base {
            set(&mut document, field, value.clone());
        }
        if let Some(path) = &self.file {
            let given = load_file(path).map_err(|why| {
                ConfigError(format!(
                    "failed to load kubelet config file, path: {}, error: {why}",
                    path.display()
                ))
            })?;
            merge(&mut document, given);
        }
        if let Some(directory) = &self.directory {
            for path in drop_ins(directory)? {
                let given = load_document(&path).map_err(|why| {
                    let path = path.display();
                    ConfigError(format!("failed to load kubelet dropin file, path: {path}, error: {why}"))
                })?;
                merge(&mut document, given);
            }
        }
        for text in &self.inline {
            let given = parse(text.as_bytes()).map_err(|why| ConfigError(format!("{text:?}: {why}")))?;
            merge(&mut document, given);
        }
        self.apply_flags(&mut document)?;
        finish(document, &self.gates)
    }

    fn apply_flags(&self, document: &mut Value) -> Result<(), ConfigError> {
        let mut given: Vec<(&Row, Value)> = Vec::new();
        for (name, text) in &self.flags {
            let Some(row) = row_of_flag(name) else {
                return Err(ConfigError(format!("unknown flag: --{name}")));
            };
            let before = given.iter().position(|(other, _)| other.field == row.field);
            let value = row.form.flag(name, text, before.map(|at| &given[at].1)).map_err(|why| {
                ConfigError(format!("invalid argument {text:?} for \"--{name}\" flag: {why}"))
            })?;
            match before {
                Some(at) => given[at].1 = value,
                None => given.push((row, value)),
            }
        }
        for (row, value) in given {
            set(document, row.field, value);
        }
        Ok(())
    }
}

/// The row with this flag.
pub fn row_of_flag(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| !row.flag.is_empty() && row.flag == name)
}

/// The main file; its relative paths are seen from its directory.
fn load_file(path: &Path) -> Result<Value, String> {
    let mut document = load_document(path)?;
    let root = path.parent().unwrap_or(Path::new("/"));
    for field in [
        "staticPodPath",
        "authentication.x509.clientCAFile",
        "tlsCertFile",
        "tlsPrivateKeyFile",
        "resolvConf",
        "volumePluginDir",
        "podLogsDir",
    ] {
        let relative =
            get(&document, field).and_then(Value::as_str).filter(|p| !p.is_empty() && !p.starts_with('/'));
        if let Some(relative) = relative {
            let absolute = std::path::absolute(root.join(relative)).map_err(|e| e.to_string())?;
            set(&mut document, field, json!(absolute));
        }
    }
    Ok(document)
}

fn load_document(path: &Path) -> Result<Value, String> {
    let failed = |e: std::io::Error| format!("failed to read kubelet config file {path:?}, error: {e}");
    if std::fs::metadata(path).map_err(failed)?.len() > BYTES_MAX {
        return Err(format!("kubelet config file {path:?} is longer than {BYTES_MAX} bytes"));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    if bytes.is_empty() {
        return Err(format!("kubelet config file {path:?} was empty"));
    }
    let document = parse(&bytes)?;
    let word = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    match (word("apiVersion"), word("kind")) {
        (API_VERSION, KIND) => Ok(document),
        (_, "") => Err("failed to decode: Object 'Kind' is missing".to_owned()),
        ("", _) => Err("failed to decode: Object 'apiVersion' is missing".to_owned()),
        (version, kind) => {
            Err(format!("failed to decode: no kind {kind:?} is registered for version {version:?}"))
        }
    }
}

/// YAML or JSON as it is written, once it is known to hold nothing unknown, nothing twice and nothing of a
/// wrong type.
fn parse(bytes: &[u8]) -> Result<Value, String> {
    let (schema, root) = &*SCHEMA;
    let syntax = if bytes.trim_ascii_start().starts_with(b"{") { Syntax::Json } else { Syntax::Yaml };
    decode_as(schema.at(*root), bytes, syntax, Mode::Strict).map_err(|e| format!("failed to decode: {e}"))?;
    // The merge wants what is null to stay null.
    decode_untyped_as(bytes, syntax, Mode::Ignore)
        .map(|d| d.value)
        .map_err(|e| format!("failed to decode: {e}"))
}

fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut found = Vec::new();
    walk(directory, 0, &mut found).map_err(|e| {
        ConfigError(format!("failed to walk through kubelet dropin directory {directory:?}: {e}"))
    })?;
    Ok(found)
}

/// Names in order, a directory's files where its name stands.
fn walk(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.symlink_metadata()?.is_dir() {
            if depth < DEPTH_MAX {
                walk(&path, depth + 1, found)?;
            }
        } else if path.extension().is_some_and(|e| e == EXTENSION) {
            found.push(path);
        }
        if found.len() > DROP_INS_MAX {
            return Err(std::io::Error::other(format!("there are more than {DROP_INS_MAX} files")));
        }
    }
    Ok(())
}

/// Types, defaults, checks.
fn finish(document: Value, program_gates: &str) -> Result<Configuration, ConfigError> {
    let (schema, root) = &*SCHEMA;
    let decoded = normalize(schema.at(*root), document, Mode::Strict)
        .map_err(|e| ConfigError(format!("failed to decode: {e}")))?;
    let mut document = decoded.value;
    let gates = gates(&document, program_gates)?;
    let (warnings, mut errors) = defaults(&mut document, &gates);
    for meta in ["apiVersion", "kind"] {
        unset(&mut document, meta);
    }
    let settings: Settings = serde_json::from_value(document.clone())
        .map_err(|e| ConfigError(format!("failed to decode: {e}")))?;
    errors.extend(validate::check(&settings, &gates));
    set(&mut document, "apiVersion", json!(API_VERSION));
    set(&mut document, "kind", json!(KIND));
    match errors.as_slice() {
        [] => Ok(Configuration {
            document: Arc::new(document),
            settings: Arc::new(settings),
            gates: Arc::new(gates),
            warnings: warnings.into(),
        }),
        [one] => Err(ConfigError(format!("failed to validate kubelet configuration, error: {one}"))),
        many => Err(ConfigError(format!(
            "failed to validate kubelet configuration, error: [{}]",
            many.join(", ")
        ))),
    }
}

/// The program's gates with the document's on top.
fn gates(document: &Value, program: &str) -> Result<Gates, ConfigError> {
    let own = document.get("featureGates").and_then(Value::as_object);
    let own = own.into_iter().flatten().map(|(name, on)| format!("{name}={on}"));
    let all: Vec<String> = std::iter::once(program.to_owned()).chain(own).collect();
    Gates::parse(&all.join(","))
        .map_err(|e| ConfigError(format!("failed to set feature gates from initial flags-based config: {e}")))
}

/// Fills in what is absent. Warnings and refusals about what is not.
fn defaults(document: &mut Value, gates: &Gates) -> (Vec<String>, Vec<String>) {
    let (mut warnings, mut errors) = (Vec::new(), Vec::new());
    let update = get(document, "nodeStatusUpdateFrequency").cloned();
    let parallel = get(document, "maxParallelImagePulls").and_then(Value::as_i64).is_some_and(|n| n >= 2);
    for row in ROWS {
        let mut default = default_of(row);
        match row.field {
            "nodeStatusReportFrequency" => default = update.clone().or(default),
            "serializeImagePulls" if parallel => default = Some(json!(false)),
            "crashLoopBackOff.maxContainerRestartPeriod" if !gates.is_on("KubeletCrashLoopBackOffMax") => {
                default = None
            }
            "imagePullCredentialsVerificationPolicy" if !gates.is_on("KubeletEnsureSecretPulledImages") => {
                default = None;
            }
            _ => {}
        }
        let given = get(document, row.field).filter(|value| !row.form.is_zero(value)).cloned();
        // Upstream: any negative limit is no limit of the pod's own.
        let given = match (row.field, given) {
            ("podPidsLimit", Some(limit)) if limit.as_i64().is_some_and(|n| n < 0) => Some(json!(-1)),
            (_, given) => given,
        };
        let same = given.is_none() || given == default || (default.is_none() && is_nothing(given.as_ref()));
        match (row.role, same) {
            (Role::Moot(why), false) => warnings.push(format!("{} changes nothing: {why}", row.field)),
            (Role::Refused(why), false) => {
                let value = given.as_ref().map(Value::to_string).unwrap_or_default();
                errors.push(format!("{} {value} is not supported: {why}", row.field));
            }
            _ => {}
        }
        match given.or(default) {
            Some(value) => set(document, row.field, value),
            None => unset(document, row.field),
        }
    }
    (warnings, errors)
}

fn is_nothing(value: Option<&Value>) -> bool {
    value.is_none_or(|value| match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    })
}

/// The default of a row as documents write it.
fn default_of(row: &Row) -> Option<Value> {
    if row.default.is_empty() {
        return None;
    }
    // As a flag reads it, but for lists, whose brackets YAML knows.
    match row.default.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(items) => Some(items.split(", ").map(|item| json!(item)).collect()),
        None => row.form.flag(row.flag, row.default, None).ok(),
    }
}

fn get<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |at, word| at.get(word)).filter(|value| !value.is_null())
}

fn set(document: &mut Value, path: &str, value: Value) {
    let mut at = document;
    for word in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[word];
    }
    *at = value;
}

fn unset(document: &mut Value, path: &str) {
    let (parent, name) = match path.rsplit_once('.') {
        Some((parent, name)) => (parent.split('.').try_fold(document, |at, word| at.get_mut(word)), name),
        None => (Some(document), path),
    };
    if let Some(map) = parent.and_then(Value::as_object_mut) {
        map.remove(name);
    }
}

/// JSON merge patch (RFC 7386).
fn merge(document: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *document = patch;
        return;
    };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Some(map) = document.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            map.remove(&name);
        } else {
            merge(map.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests;
