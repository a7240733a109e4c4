//! What the operator says of admission: plugins switched on and off, and the file with their configurations
//! (`apiserver.config.k8s.io/v1` `AdmissionConfiguration`).

use std::{
    collections::{BTreeMap, HashSet},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use yare_kinds::{names, podsecurity, podsecurity::Policy, view::View};
use yare_schema::field::{FieldError, Path};

use super::{
    Row, TABLE,
    event_rate_limit::LimitBy,
    image_policy::ImagePolicy,
    manifests,
    table::{IMAGE_POLICY, MUTATING_POLICIES, MUTATING_WEBHOOKS, VALIDATING_POLICIES, VALIDATING_WEBHOOKS},
    webhook::ByStep,
};
use crate::{codec, outbound::kubeconfig::Users};

/// Largest configuration file.
const MAX_BYTES: u64 = 1 << 20;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A flag names no plugin.
    #[error("{flag} plugin {name:?} is unknown")]
    UnknownPlugin {
        /// The flag.
        flag: &'static str,
        /// What it names.
        name: String,
    },
    /// Both flags name one.
    #[error("[{0}] in enable-admission-plugins and disable-admission-plugins overlapped")]
    Overlap(String),
    /// A file cannot be read.
    #[error("unable to read admission control configuration from {path:?}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file says what it cannot.
    #[error("admission configuration {what}: {why}")]
    Invalid {
        /// Plugin or file.
        what: String,
        /// What is wrong.
        why: String,
    },
}

/// Who is never held to a Pod Security level.
#[derive(Clone, Debug, Default)]
pub struct Exemptions {
    /// Users.
    pub usernames: Vec<String>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Runtime classes.
    pub runtime_classes: Vec<String>,
}

/// A resource of which nothing may be used without a quota that covers it.
#[derive(Clone, Debug, Default)]
pub struct LimitedResource {
    /// API group.
    pub group: String,
    /// Plural.
    pub resource: String,
    /// Parts of the names of limited amounts.
    pub match_contains: Vec<String>,
    /// Limited scopes, as in a quota's `scopeSelector`.
    pub match_scopes: Vec<Value>,
}

/// One limit of EventRateLimit.
#[derive(Clone, Debug)]
pub struct EventLimit {
    /// What is counted together.
    pub by: LimitBy,
    /// Events a second.
    pub qps: u32,
    /// Events at once.
    pub burst: u32,
    /// Buckets that are kept.
    pub cache_size: usize,
}

/// How admission is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Plugins that run beside those that do by default.
    pub enable: Vec<String>,
    /// Plugins that do not.
    pub disable: Vec<String>,
    /// Pod Security levels of namespaces that say nothing.
    pub pod_security: Policy,
    /// Who Pod Security does not look at.
    pub exemptions: Exemptions,
    /// What quotas must cover.
    pub limited_resources: Vec<LimitedResource>,
    /// Limits of events.
    pub event_limits: Vec<EventLimit>,
    /// Node selectors by namespace, and `clusterDefaultNodeSelector`.
    pub node_selectors: BTreeMap<String, String>,
    /// What pods tolerate where their namespace does not say.
    pub default_tolerations: Vec<Value>,
    /// What pods may tolerate where their namespace does not say.
    pub allowed_tolerations: Vec<Value>,
    /// Who this server is to webhooks of admission.
    pub webhook_users: ByStep,
    /// Directories with webhooks and policies, by plugin.
    pub manifests: Vec<(&'static str, PathBuf)>,
    /// Who says which images may run.
    pub image_policy: Option<Arc<ImagePolicy>>,
    /// How long pods stay on a node that is not ready.
    pub not_ready_toleration_s: i64,
    /// How long pods stay on a node that is not reachable.
    pub unreachable_toleration_s: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enable: Vec::new(),
            disable: Vec::new(),
            pod_security: Policy::default(),
            exemptions: Exemptions::default(),
            limited_resources: Vec::new(),
            event_limits: Vec::new(),
            node_selectors: BTreeMap::new(),
            default_tolerations: Vec::new(),
            allowed_tolerations: Vec::new(),
            webhook_users: ByStep::default(),
            manifests: Vec::new(),
            image_policy: None,
            not_ready_toleration_s: 300,
            unreachable_toleration_s: 300,
        }
    }
}

fn invalid(what: impl Into<String>, why: impl std::fmt::Display) -> SettingsError {
    SettingsError::Invalid { what: what.into(), why: why.to_string() }
}

fn read(path: &FilePath) -> Result<Value, SettingsError> {
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_BYTES {
        return Err(invalid(
            path.display().to_string(),
            format!("{size} bytes, at most {MAX_BYTES} are read"),
        ));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    codec::from_yaml(&bytes).map_err(|e| invalid(path.display().to_string(), e))
}

impl Settings {
    /// Reads flags and the file that `--admission-control-config-file` names.
    pub fn load(
        enable: &[String],
        disable: &[String],
        file: Option<&FilePath>,
    ) -> Result<Self, SettingsError> {
        let mut settings = Self { enable: enable.to_vec(), disable: disable.to_vec(), ..Self::default() };
        for (flag, names) in [("enable-admission-plugins", enable), ("disable-admission-plugins", disable)] {
            if let Some(name) = names.iter().find(|n| !TABLE.iter().any(|row| row.name == *n)) {
                return Err(SettingsError::UnknownPlugin { flag, name: name.clone() });
            }
        }
        let both: Vec<&str> = enable.iter().filter(|n| disable.contains(n)).map(String::as_str).collect();
        if !both.is_empty() {
            return Err(SettingsError::Overlap(both.join(" ")));
        }
        if let Some(path) = file {
            settings.read_file(path)?;
        }
        if settings.enable.iter().any(|n| n == "EventRateLimit") && settings.event_limits.is_empty() {
            return Err(invalid("EventRateLimit", "limits: Invalid value: null: must not be empty"));
        }
        if settings.enable.iter().any(|n| n == IMAGE_POLICY) && settings.image_policy.is_none() {
            return Err(invalid(IMAGE_POLICY, "no config specified"));
        }
        Ok(settings)
    }

    fn read_file(&mut self, path: &FilePath) -> Result<(), SettingsError> {
        let document = read(path)?;
        let what = path.display().to_string();
        if document.str_at("kind") != "AdmissionConfiguration" {
            // PodNodeSelector's own format, from before there was one for all.
            if document.has("podNodeSelectorPluginConfig") {
                return self.read_plugin("PodNodeSelector", &document);
            }
            return Err(invalid(
                what,
                format!("no kind AdmissionConfiguration: {:?}", document.str_at("kind")),
            ));
        }
        if !matches!(
            document.str_at("apiVersion"),
            "apiserver.config.k8s.io/v1" | "apiserver.k8s.io/v1alpha1"
        ) {
            return Err(invalid(what, format!("unknown apiVersion {:?}", document.str_at("apiVersion"))));
        }
        unknown_fields(&document, &["apiVersion", "kind", "plugins"]).map_err(|e| invalid(what, e))?;
        for plugin in document.items("plugins") {
            let name = plugin.str_at("name");
            unknown_fields(plugin, &["name", "path", "configuration"]).map_err(|e| invalid(name, e))?;
            if plugin.has("configuration") {
                self.read_plugin(name, plugin.at("configuration"))?;
            } else if plugin.is_set("path") {
                let base = path.parent().unwrap_or(FilePath::new("."));
                self.read_plugin(name, &read(&base.join(plugin.str_at("path")))?)?;
            }
        }
        Ok(())
    }

    fn read_plugin(&mut self, name: &str, configuration: &Value) -> Result<(), SettingsError> {
        let kind = |expected: &str, groups: &[&str]| {
            let (group, _) = configuration.str_at("apiVersion").split_once('/').unwrap_or_default();
            if configuration.str_at("kind") == expected && groups.contains(&group) {
                return Ok(());
            }
            Err(invalid(
                name,
                format!(
                    "no kind {:?} in {:?}: {expected} is expected",
                    configuration.str_at("kind"),
                    configuration.str_at("apiVersion")
                ),
            ))
        };
        match name {
            "PodSecurity" => {
                kind("PodSecurityConfiguration", &["pod-security.admission.config.k8s.io"])?;
                self.read_pod_security(configuration).map_err(|e| invalid(name, e))
            }
            "ResourceQuota" => {
                kind(
                    if configuration.str_at("kind") == "Configuration" {
                        "Configuration"
                    } else {
                        "ResourceQuotaConfiguration"
                    },
                    &["apiserver.config.k8s.io", "resourcequota.admission.k8s.io"],
                )?;
                self.limited_resources = configuration
                    .items("limitedResources")
                    .iter()
                    .map(|l| LimitedResource {
                        group: l.str_at("apiGroup").to_owned(),
                        resource: l.str_at("resource").to_owned(),
                        match_contains: l.strings("matchContains").iter().map(|s| (*s).to_owned()).collect(),
                        match_scopes: l.items("matchScopes").to_vec(),
                    })
                    .collect();
                match self.limited_resources.iter().position(|l| l.resource.is_empty()) {
                    Some(i) => Err(invalid(name, format!("limitedResources[{i}].resource: Required value"))),
                    None => Ok(()),
                }
            }
            "EventRateLimit" => {
                kind("Configuration", &["eventratelimit.admission.k8s.io"])?;
                self.read_event_limits(configuration).map_err(|e| invalid(name, e))
            }
            "PodNodeSelector" => {
                let entries = configuration.entries("podNodeSelectorPluginConfig");
                for (namespace, selector) in entries {
                    let selector = selector.as_str().unwrap_or_default();
                    super::pod_node_selector::labels(selector).map_err(|e| invalid(name, e))?;
                    self.node_selectors.insert(namespace.to_owned(), selector.to_owned());
                }
                Ok(())
            }
            "PodTolerationRestriction" => {
                kind("Configuration", &["podtolerationrestriction.admission.k8s.io"])?;
                self.default_tolerations = configuration.items("default").to_vec();
                self.allowed_tolerations = configuration.items("whitelist").to_vec();
                Ok(())
            }
            MUTATING_WEBHOOKS | VALIDATING_WEBHOOKS => {
                let shown = configuration.str_at("kind");
                // What the kind was called before version 1.
                let expected =
                    if shown == "WebhookAdmission" { shown } else { "WebhookAdmissionConfiguration" };
                kind(expected, &["apiserver.config.k8s.io"])?;
                self.read_webhook_users(name, configuration).map_err(|e| invalid(name, e))
            }
            MUTATING_POLICIES | VALIDATING_POLICIES => {
                kind(&format!("{name}Configuration"), &["apiserver.config.k8s.io"])?;
                unknown_fields(configuration, &["apiVersion", "kind", "staticManifestsDir"])
                    .and_then(|()| self.read_manifests(name, configuration))
                    .map_err(|e| invalid(name, e))
            }
            IMAGE_POLICY => {
                let policy = ImagePolicy::of(configuration).map_err(|e| invalid(name, e))?;
                self.image_policy = Some(Arc::new(policy));
                Ok(())
            }
            other if TABLE.iter().any(|row| row.name == other) => Ok(()),
            other => Err(invalid(other, "there is no such plugin")),
        }
    }

    /// A kubeconfig with credentials for webhooks; a server without one calls them without any.
    fn read_webhook_users(&mut self, name: &str, configuration: &Value) -> Result<(), String> {
        unknown_fields(configuration, &["apiVersion", "kind", "kubeConfigFile", "staticManifestsDir"])?;
        self.read_manifests(name, configuration)?;
        let file = configuration.str_at("kubeConfigFile");
        if file.is_empty() {
            return Ok(());
        }
        if !FilePath::new(file).is_absolute() {
            let field = Path::new("kubeConfigFile");
            return Err(FieldError::invalid(&field, file, "must be an absolute file path").to_string());
        }
        let users = Some(Users::open(FilePath::new(file))?);
        if name == MUTATING_WEBHOOKS {
            self.webhook_users.mutating = users;
        } else {
            self.webhook_users.validating = users;
        }
        Ok(())
    }

    /// Where objects of a plugin are in files.
    fn read_manifests(&mut self, name: &str, configuration: &Value) -> Result<(), String> {
        let directory = configuration.str_at("staticManifestsDir");
        if directory.is_empty() {
            return Ok(());
        }
        manifests::check_directory(directory)?;
        let plugin = manifests::PLUGINS.iter().find(|plugin| plugin.name == name);
        self.manifests.extend(plugin.map(|plugin| (plugin.name, directory.into())));
        Ok(())
    }

    fn read_pod_security(&mut self, configuration: &Value) -> Result<(), String> {
        unknown_fields(configuration, &["apiVersion", "kind", "defaults", "exemptions"])?;
        let mut errors: Vec<FieldError> = Vec::new();
        let defaults = Path::new("defaults");
        for (mode, place) in [
            ("enforce", &mut self.pod_security.enforce),
            ("warn", &mut self.pod_security.warn),
            ("audit", &mut self.pod_security.audit),
        ] {
            let version = format!("{mode}-version");
            let (level_text, version_text) =
                (configuration.at("defaults").str_at(mode), configuration.at("defaults").str_at(&version));
            if !level_text.is_empty() {
                match podsecurity::parse_level(level_text) {
                    Ok(level) => place.level = level,
                    Err(why) => errors.push(FieldError::invalid(&defaults.child(mode), level_text, why)),
                }
            }
            if !version_text.is_empty() {
                match podsecurity::parse_version(version_text) {
                    Ok(version) => place.version = version,
                    Err(why) => {
                        errors.push(FieldError::invalid(&defaults.child(&version), version_text, why));
                    }
                }
            }
        }
        let exemptions = Path::new("exemptions");
        for (field, place, rule) in [
            ("namespaces", &mut self.exemptions.namespaces, names::dns1123_label as fn(&str) -> Vec<String>),
            ("runtimeClasses", &mut self.exemptions.runtime_classes, names::dns1123_subdomain),
            ("usernames", &mut self.exemptions.usernames, |name| {
                if name.is_empty() { vec!["username must not be empty".into()] } else { Vec::new() }
            }),
        ] {
            let path = exemptions.child(field);
            let mut seen = HashSet::new();
            for (i, value) in configuration.at("exemptions").strings(field).into_iter().enumerate() {
                let wrong = rule(value);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&path.index(i), value, wrong.join(", ")));
                } else if !seen.insert(value) {
                    errors.push(FieldError::duplicate(&path.index(i), value));
                } else {
                    place.push(value.to_owned());
                }
            }
        }
        joined(&errors)
    }

    fn read_event_limits(&mut self, configuration: &Value) -> Result<(), String> {
        let mut errors: Vec<FieldError> = Vec::new();
        let limits = Path::new("limits");
        if configuration.items("limits").is_empty() {
            errors.push(FieldError::invalid(&limits, Value::Null, "must not be empty"));
        }
        for (i, limit) in configuration.items("limits").iter().enumerate() {
            let path = limits.index(i);
            let name = limit.str_at("type");
            let by = LimitBy::NAMES.iter().find(|(n, _)| *n == name).map(|(_, by)| *by);
            if by.is_none() {
                let names = LimitBy::NAMES.map(|(n, _)| n);
                errors.push(FieldError::not_supported(&path.child("type"), name, &names));
            }
            let number = |field: &str| u32::try_from(limit.int_at(field)).unwrap_or(0);
            for field in ["burst", "qps"] {
                if number(field) == 0 {
                    let value = limit.int_at(field);
                    errors.push(FieldError::invalid(&path.child(field), value, "must be positive"));
                }
            }
            if limit.int_at("cacheSize") < 0 {
                let value = limit.int_at("cacheSize");
                errors.push(FieldError::invalid(&path.child("cacheSize"), value, "must not be negative"));
            }
            let cache_size = match number("cacheSize") {
                0 => 4096,
                size => usize::try_from(size).unwrap_or(4096),
            };
            if let Some(by) = by {
                self.event_limits.push(EventLimit {
                    by,
                    qps: number("qps"),
                    burst: number("burst"),
                    cache_size,
                });
            }
        }
        joined(&errors)
    }

    /// Whether a plugin runs.
    pub fn is_on(&self, row: &Row) -> bool {
        let named = |list: &[String]| list.iter().any(|n| n == row.name);
        named(&self.enable) || (row.on && !named(&self.disable))
    }
}

fn joined(errors: &[FieldError]) -> Result<(), String> {
    match errors {
        [] => Ok(()),
        [one] => Err(one.to_string()),
        many => Err(format!("[{}]", many.iter().map(FieldError::to_string).collect::<Vec<_>>().join(", "))),
    }
}

fn unknown_fields(object: &Value, known: &[&str]) -> Result<(), String> {
    match object.entries("").find(|(k, _)| !known.contains(k)) {
        Some((field, _)) => Err(format!("strict decoding error: unknown field {field:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        std::fs::write(
            dir.path().join("pod-security.yaml"),
            "{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, defaults: {warn: baseline}}",
        )
        .unwrap();
        Settings::load(&[], &[], Some(&path)).map_err(|e| e.to_string())
    }

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";

    #[test]
    fn files() {
        let settings = load(&format!("{HEAD}- {{name: PodSecurity, path: pod-security.yaml}}\n")).unwrap();
        assert_eq!(settings.pod_security.warn.to_string(), "baseline:latest");
        let pod_security = |rest: &str| {
            format!(
                "{HEAD}- name: PodSecurity\n  configuration: {{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, {rest}}}\n"
            )
        };
        let webhooks = |rest: &str| {
            format!(
                "{HEAD}- name: MutatingAdmissionWebhook\n  configuration: {{apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, {rest}}}\n"
            )
        };
        let settings = load(&pod_security(
            "defaults: {enforce: restricted, enforce-version: v1.30}, exemptions: {usernames: [u], namespaces: [kube-system], runtimeClasses: [r]}",
        ))
        .unwrap();
        assert_eq!(settings.pod_security.enforce.to_string(), "restricted:v1.30");
        assert_eq!(settings.exemptions.namespaces, ["kube-system"]);
        for (text, part) in [
            (pod_security("defaults: {enforce: strong}"), "defaults.enforce: Invalid value: \"strong\""),
            (
                pod_security("exemptions: {namespaces: [a, a, B]}"),
                "exemptions.namespaces[1]: Duplicate value: \"a\"",
            ),
            (
                webhooks("kubeConfigFile: relative"),
                "kubeConfigFile: Invalid value: \"relative\": must be an absolute file path",
            ),
            (webhooks("kubeConfigFile: /no/such"), "MutatingAdmissionWebhook: /no/such: "),
            (webhooks("other: x"), "unknown field \"other\""),
            (pod_security("levels: {}"), "unknown field \"levels\""),
            (format!("{HEAD}- {{name: Nobody, configuration: {{}}}}\n"), "there is no such plugin"),
            ("kind: Pod".into(), "AdmissionConfiguration"),
            ("a: [".into(), "admission configuration"),
        ] {
            let error = load(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = Settings::load(&[], &[], Some(FilePath::new("/no/such"))).unwrap_err();
        assert!(error.to_string().contains("/no/such"));
    }

    #[test]
    fn flags() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let settings = Settings::load(&names(&["AlwaysPullImages"]), &names(&["PodSecurity"]), None).unwrap();
        let on: Vec<&str> = TABLE.iter().filter(|r| settings.is_on(r)).map(|r| r.name).collect();
        assert!(on.contains(&"AlwaysPullImages") && !on.contains(&"PodSecurity") && on.contains(&"Priority"));
        for (enable, disable, part) in [
            (&["Nobody"][..], &[][..], "enable-admission-plugins plugin \"Nobody\" is unknown"),
            (&["Priority"], &["Priority"], "[Priority] in enable-admission-plugins"),
            (&["EventRateLimit"], &[], "must not be empty"),
            (&["ImagePolicyWebhook"], &[], "ImagePolicyWebhook: no config specified"),
        ] {
            let error = Settings::load(&names(enable), &names(disable), None).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
