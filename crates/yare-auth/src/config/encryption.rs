//! `EncryptionConfiguration`: which resources are encrypted at rest, and with which keys
//! (<https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/>).

use std::{collections::HashSet, fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use yare_schema::{field::Path, gotime};

use super::{ConfigError, Errors, read_document};

/// What is encrypted how. Earlier entries go first.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EncryptionConfiguration {
    /// Resources and their providers.
    pub resources: Vec<Resources>,
}

/// Some resources and how they are encrypted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// `secrets`, `deployments.apps`, `*.` (the core group), `*.apps`, `*.*`.
    pub resources: Vec<String>,
    /// The first encrypts; any decrypts.
    pub providers: Vec<Provider>,
}

/// One way to encrypt: exactly one of these.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Provider {
    /// AES-GCM with random nonces.
    pub aesgcm: Option<Keys>,
    /// AES-CBC with PKCS#7 padding.
    pub aescbc: Option<Keys>,
    /// XSalsa20 and Poly1305.
    pub secretbox: Option<Keys>,
    /// No encryption.
    pub identity: Option<Identity>,
    /// Keys that a key management service keeps.
    pub kms: Option<Kms>,
}

/// No encryption.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Identity {}

/// Keys of a provider.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Keys {
    /// The first encrypts; any decrypts.
    pub keys: Vec<Key>,
}

/// A key. Its secret is not shown.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct Key {
    /// Stands before what it encrypted.
    pub name: String,
    /// Base64.
    pub secret: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name: {}, Secret: [REDACTED]", self.name)
    }
}

impl Key {
    /// The secret's bytes; nothing where it is not base64.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        STANDARD.decode(&self.secret).ok()
    }
}

/// A plugin of a key management service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kms {
    /// `v1` where it is absent, or `v2`.
    pub api_version: String,
    /// Its name, which stands before what its keys encrypted.
    pub name: String,
    /// Of v1 only.
    #[serde(rename = "cachesize")]
    pub cache_size: Option<i32>,
    /// `unix:///path/of/socket`, or `unix:///@name` in the abstract namespace.
    pub endpoint: String,
    /// How long a call may take, in nanoseconds; three seconds where it is absent.
    #[serde(deserialize_with = "nanoseconds")]
    timeout: Option<i64>,
}

impl Kms {
    /// How long a call may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.timeout.unwrap_or(DEFAULT_TIMEOUT_NS)).unwrap_or_default())
    }

    /// The socket that the endpoint names; a leading `@` means the abstract namespace.
    pub fn socket(&self) -> &str {
        let rest = self.endpoint.split_once(':').map_or("", |(_, rest)| rest);
        let path = rest.strip_prefix("//").map_or(rest, |r| &r[r.find('/').unwrap_or(r.len())..]);
        let path = path.split(['?', '#']).next().unwrap_or_default();
        path.strip_prefix('/').filter(|p| p.starts_with('@')).unwrap_or(path)
    }
}

const DEFAULT_TIMEOUT_NS: i64 = 3_000_000_000;
const DEFAULT_CACHE_SIZE: i32 = 1000;
const AES_KEY_BYTES: &[usize] = &[16, 24, 32];
const SECRETBOX_KEY_BYTES: &[usize] = &[32];

fn nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    use serde::de::Error as _;
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    gotime::parse_duration(&text).map(Some).map_err(D::Error::custom)
}

/// The fields that there are: what the strict decoder knows.
enum Shape {
    Leaf,
    List(&'static Shape),
    Fields(&'static [(&'static str, Shape)]),
}

const KEY: Shape = Shape::Fields(&[("name", Shape::Leaf), ("secret", Shape::Leaf)]);
const KEYS: Shape = Shape::Fields(&[("keys", Shape::List(&KEY))]);
const KMS: Shape = Shape::Fields(&[
    ("apiVersion", Shape::Leaf),
    ("name", Shape::Leaf),
    ("cachesize", Shape::Leaf),
    ("endpoint", Shape::Leaf),
    ("timeout", Shape::Leaf),
]);
const PROVIDER: Shape = Shape::Fields(&[
    ("aesgcm", KEYS),
    ("aescbc", KEYS),
    ("secretbox", KEYS),
    ("identity", Shape::Fields(&[])),
    ("kms", KMS),
]);
const ENTRY: Shape = Shape::Fields(&[("resources", Shape::Leaf), ("providers", Shape::List(&PROVIDER))]);
const CONFIGURATION: Shape = Shape::Fields(&[("resources", Shape::List(&ENTRY))]);

/// Names fields that are not in the shape.
fn unknown(value: &Value, shape: &Shape, path: &str, out: &mut Vec<String>) {
    match (value, shape) {
        (Value::Array(items), Shape::List(item)) => {
            for (i, value) in items.iter().enumerate() {
                unknown(value, item, &format!("{path}[{i}]"), out);
            }
        }
        (Value::Object(map), Shape::Fields(fields)) => {
            for (name, value) in map {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match fields.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => unknown(value, shape, &path, out),
                    None => out.push(format!("unknown field {path:?}")),
                }
            }
        }
        _ => {}
    }
}

impl EncryptionConfiguration {
    /// Reads and checks a file's text. `reload`: it may be replaced while the server runs.
    pub fn parse(text: &[u8], reload: bool) -> Result<Self, ConfigError> {
        let kinds = [("apiserver.config.k8s.io/v1", "EncryptionConfiguration"), ("v1", "EncryptionConfig")];
        let document = read_document(text, &kinds)?;
        let mut strange = Vec::new();
        unknown(&document, &CONFIGURATION, "", &mut strange);
        if !strange.is_empty() {
            return Err(ConfigError::Form(format!("strict decoding error: {}", strange.join(", "))));
        }
        let mut configuration: Self =
            serde_json::from_value(document).map_err(|e| ConfigError::Form(e.to_string()))?;
        for kms in configuration.plugins() {
            if kms.api_version.is_empty() {
                kms.api_version = "v1".into();
            }
            if kms.api_version == "v1" {
                kms.cache_size.get_or_insert(DEFAULT_CACHE_SIZE);
            }
            kms.timeout.get_or_insert(DEFAULT_TIMEOUT_NS);
        }
        configuration.checked(reload)
    }

    fn plugins(&mut self) -> impl Iterator<Item = &mut Kms> {
        self.resources.iter_mut().flat_map(|r| &mut r.providers).filter_map(|p| p.kms.as_mut())
    }

    fn checked(self, reload: bool) -> Result<Self, ConfigError> {
        let mut errors = Errors::default();
        let root = Path::new("resources");
        if self.resources.is_empty() {
            errors.required(&root, "at least one resources is required");
        }
        let mut names = HashSet::new();
        for (i, entry) in self.resources.iter().enumerate() {
            let at = root.index(i);
            let (resources, providers) = (at.child("resources"), at.child("providers"));
            if entry.resources.is_empty() {
                errors.required(&resources, &format!("at least one {resources} is required"));
            }
            check_overlap(&entry.resources, &resources, &mut errors);
            for (j, resource) in entry.resources.iter().enumerate() {
                if let Some(why) = wrong_name(resource) {
                    errors.invalid(&resources.index(j), resource.as_str(), why);
                }
            }
            if entry.providers.is_empty() {
                errors.required(&providers, &format!("at least one {providers} is required"));
            }
            for (j, provider) in entry.providers.iter().enumerate() {
                provider.check(&providers.index(j), &mut names, reload, &mut errors);
            }
        }
        errors.finish(self)
    }
}

/// Group and plural of `plural.group`.
pub fn group_resource(text: &str) -> (&str, &str) {
    text.split_once('.').map_or(("", text), |(resource, group)| (group, resource))
}

fn check_overlap(resources: &[String], path: &Path<'_>, errors: &mut Errors) {
    let all: Vec<_> = resources.iter().map(|r| group_resource(r)).collect();
    let pairs = || {
        let others = |i: usize| all.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, b)| b);
        all.iter().enumerate().flat_map(move |(i, a)| others(i).map(move |b| (a, b)))
    };
    let list = || Value::from(resources.to_vec());
    // Of a pair that is the same twice, only the first is not taken for an overlap as well.
    let duplicate = pairs().position(|(a, b)| a == b);
    if duplicate.is_some() {
        errors.invalid(path, list(), "the same resource cannot be specified multiple times");
    }
    let overlaps = pairs()
        .enumerate()
        .filter(|(n, _)| Some(*n) != duplicate)
        .any(|(_, (a, b))| *a == ("*", "*") || (a.0 == b.0 && (a.1 == "*" || b.1 == "*")));
    if overlaps {
        errors.invalid(path, list(), "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked");
    }
}

fn wrong_name(resource: &str) -> Option<&'static str> {
    if resource.to_lowercase() != resource {
        return Some("resource name should not contain capital letters");
    }
    match (resource, group_resource(resource)) {
        ("*", _) => {
            Some("use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources")
        }
        ("apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations", _) => {
            Some("resources which do not have REST API/s cannot be encrypted")
        }
        (_, ("events.k8s.io", _)) => Some(
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file",
        ),
        (_, ("extensions", _)) => {
            Some("'extensions' group has been removed and cannot be used for encryption")
        }
        (_, ("*", plural)) if plural != "*" => {
            Some("encrypting the same resource across groups is not supported")
        }
        _ => None,
    }
}

impl Provider {
    fn check(&self, path: &Path<'_>, names: &mut HashSet<String>, reload: bool, errors: &mut Errors) {
        let Self { aesgcm, aescbc, secretbox, identity, kms } = self;
        let found =
            [aesgcm.is_some(), aescbc.is_some(), secretbox.is_some(), identity.is_some(), kms.is_some()];
        match found.iter().filter(|set| **set).count() {
            0 => errors.invalid(path, self.shown(), "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"),
            1 => {}
            _ => errors.invalid(path, self.shown(), "more than one provider specified in a single element, should split into different list elements"),
        }
        if let Some(kms) = kms {
            kms.check(&path.child("kms"), names, reload, errors);
            names.insert(kms.name.clone());
        } else if let Some(keys) = aesgcm {
            keys.check(&path.child("aesgcm").child("keys"), AES_KEY_BYTES, errors);
        } else if let Some(keys) = aescbc {
            keys.check(&path.child("aescbc").child("keys"), AES_KEY_BYTES, errors);
        } else if let Some(keys) = secretbox {
            keys.check(&path.child("secretbox").child("keys"), SECRETBOX_KEY_BYTES, errors);
        }
    }

    /// As upstream shows it, but for the secrets and the order of fields.
    fn shown(&self) -> Value {
        let keys = |keys: &Option<Keys>| match keys {
            None => Value::Null,
            Some(keys) => {
                let all = keys.keys.iter().map(|k| json!({ "Name": k.name, "Secret": "REDACTED" }));
                json!({ "Keys": all.collect::<Vec<_>>() })
            }
        };
        let kms = self.kms.as_ref().map(|kms| {
            json!({
                "APIVersion": kms.api_version, "Name": kms.name, "CacheSize": kms.cache_size,
                "Endpoint": kms.endpoint, "Timeout": gotime::format_duration(kms.timeout.unwrap_or_default()),
            })
        });
        json!({
            "AESGCM": keys(&self.aesgcm), "AESCBC": keys(&self.aescbc), "Secretbox": keys(&self.secretbox),
            "Identity": self.identity.map(|_| json!({})), "KMS": kms,
        })
    }
}

impl Keys {
    fn check(&self, path: &Path<'_>, lengths: &[usize], errors: &mut Errors) {
        if self.keys.is_empty() {
            errors.required(path, "at least one keys is required");
        }
        for (i, key) in self.keys.iter().enumerate() {
            let at = path.index(i);
            if key.name.is_empty() {
                errors.required(&at.child("name"), "name is a mandatory field for a key");
            }
            let secret = at.child("secret");
            if key.secret.is_empty() {
                errors.required(&secret, "secret is a mandatory field for a key");
                continue;
            }
            match key.bytes() {
                None => errors.invalid(&secret, "REDACTED", "secrets must be base64 encoded"),
                Some(bytes) if !lengths.contains(&bytes.len()) => {
                    let expected: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                    let (got, expected) = (bytes.len(), expected.join(" "));
                    errors.invalid(
                        &secret,
                        "REDACTED",
                        format!(
                            "secret is not of the expected length, got {got}, expected one of [{expected}]"
                        ),
                    );
                }
                Some(_) => {}
            }
        }
    }
}

impl Kms {
    fn check(&self, path: &Path<'_>, names: &HashSet<String>, reload: bool, errors: &mut Errors) {
        let v1 = self.api_version == "v1";
        let name = path.child("name");
        let shown = || self.name.as_str();
        if self.name.is_empty() {
            errors.required(&name, "name is a mandatory field for a provider");
        }
        if !v1 && self.name.contains(':') {
            let why = format!("invalid KMS provider name {}, must not contain ':'", self.name);
            errors.invalid(&name, shown(), why);
        }
        if (reload || !v1) && names.contains(&self.name) {
            let why = format!("duplicate KMS provider name {}, names must be unique", self.name);
            errors.invalid(&name, shown(), why);
        }
        let timeout_ns = self.timeout.unwrap_or_default();
        if timeout_ns <= 0 {
            let shown = gotime::format_duration(timeout_ns);
            errors.invalid(&path.child("timeout"), shown, "timeout should be a positive value");
        }
        self.check_endpoint(&path.child("endpoint"), errors);
        let cache_size = path.child("cachesize");
        match self.cache_size {
            Some(size) if !v1 => errors.invalid(&cache_size, size, "cachesize is not supported in v2"),
            Some(0) => {
                errors.invalid(&cache_size, 0, "cachesize should be a positive value, or negative to disable")
            }
            _ => {}
        }
        if !v1 && self.api_version != "v2" {
            // Upstream's message names the field where it means the value.
            let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
            errors.invalid(&path.child("apiVersion"), self.api_version.as_str(), why);
        }
    }

    fn check_endpoint(&self, path: &Path<'_>, errors: &mut Errors) {
        let endpoint = self.endpoint.as_str();
        if endpoint.is_empty() {
            errors.invalid(path, "", "endpoint is a mandatory field for a kms");
            return;
        }
        match scheme(endpoint) {
            Err(why) => {
                let why = format!("invalid endpoint for kms provider, error: parse {endpoint:?}: {why}");
                errors.invalid(path, endpoint, why);
            }
            Ok(scheme) if scheme != "unix" => {
                let why = format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported");
                errors.invalid(path, endpoint, why);
            }
            Ok(_) => {}
        }
    }
}

/// The scheme of a URL in small letters, as Go's `net/url` finds it.
fn scheme(url: &str) -> Result<String, &'static str> {
    if url.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("net/url: invalid control character in URL");
    }
    let end = url.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    match end.map(|at| url.split_at(at)) {
        Some(("", rest)) if rest.starts_with(':') => Err("missing protocol scheme"),
        Some((scheme, rest)) if rest.starts_with(':') && scheme.as_bytes()[0].is_ascii_alphabetic() => {
            Ok(scheme.to_ascii_lowercase())
        }
        _ if url.split('/').next().is_some_and(|first| first.contains(':')) => {
            Err("first path segment in URL cannot contain colon")
        }
        _ => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(text: &str) -> Result<EncryptionConfiguration, String> {
        let head = "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\n";
        EncryptionConfiguration::parse(format!("{head}{text}").as_bytes(), false).map_err(|e| e.to_string())
    }

    fn with_providers(providers: &str) -> Result<EncryptionConfiguration, String> {
        parse(&format!("resources: [{{resources: [secrets], providers: {providers}}}]"))
    }

    #[test]
    fn what_is_wrong_is_said_as_upstream_does() {
        let key32 = STANDARD.encode([7; 32]);
        for (providers, expected) in [
            (
                "[{}]",
                r#"resources[0].providers[0]: Invalid value: {"AESCBC":null,"AESGCM":null,"Identity":null,"KMS":null,"Secretbox":null}: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"#,
            ),
            ("[]", "resources[0].providers: Required value: at least one resources[0].providers is required"),
            (
                "[{aescbc: {keys: []}}]",
                "resources[0].providers[0].aescbc.keys: Required value: at least one keys is required",
            ),
            (
                "[{aesgcm: {keys: [{secret: YQ==}]}}]",
                r#"[resources[0].providers[0].aesgcm.keys[0].name: Required value: name is a mandatory field for a key, resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: "REDACTED": secret is not of the expected length, got 1, expected one of [16 24 32]]"#,
            ),
            (
                "[{secretbox: {keys: [{name: a, secret: '%'}, {name: b}]}}]",
                r#"[resources[0].providers[0].secretbox.keys[0].secret: Invalid value: "REDACTED": secrets must be base64 encoded, resources[0].providers[0].secretbox.keys[1].secret: Required value: secret is a mandatory field for a key]"#,
            ),
            (
                "[{kms: {apiVersion: v3, name: a, endpoint: 'unix:///x'}}]",
                r#"resources[0].providers[0].kms.apiVersion: Invalid value: "v3": unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported"#,
            ),
            (
                "[{kms: {apiVersion: v2, name: 'a:b', endpoint: 'tcp://x', timeout: -1s, cachesize: 5}}]",
                r#"[resources[0].providers[0].kms.name: Invalid value: "a:b": invalid KMS provider name a:b, must not contain ':', resources[0].providers[0].kms.timeout: Invalid value: "-1s": timeout should be a positive value, resources[0].providers[0].kms.endpoint: Invalid value: "tcp://x": unsupported scheme "tcp" for KMS provider, only unix is supported, resources[0].providers[0].kms.cachesize: Invalid value: 5: cachesize is not supported in v2]"#,
            ),
            (
                "[{kms: {apiVersion: v2, name: a, endpoint: 'unix:///x'}}, {kms: {apiVersion: v2, name: a, endpoint: ':x'}}]",
                r#"[resources[0].providers[1].kms.name: Invalid value: "a": duplicate KMS provider name a, names must be unique, resources[0].providers[1].kms.endpoint: Invalid value: ":x": invalid endpoint for kms provider, error: parse ":x": missing protocol scheme]"#,
            ),
            (
                "[{kms: {cachesize: 0, name: a, endpoint: 'unix:///x'}}]",
                "resources[0].providers[0].kms.cachesize: Invalid value: 0: cachesize should be a positive value, or negative to disable",
            ),
            (
                "[{identity: {}, more: 1}]",
                r#"strict decoding error: unknown field "resources[0].providers[0].more""#,
            ),
        ] {
            assert_eq!(with_providers(providers).unwrap_err(), expected, "{providers}");
        }
        let two = format!("[{{aesgcm: {{keys: [{{name: k, secret: {key32}}}]}}, identity: {{}}}}]");
        let error = with_providers(&two).unwrap_err();
        assert!(error.contains("more than one provider specified in a single element"), "{error}");
        assert!(!error.contains(&key32), "{error}");
        assert_eq!(parse("").unwrap_err(), "resources: Required value: at least one resources is required");
        let other = EncryptionConfiguration::parse(
            b"kind: EncryptionConfigurations\napiVersion: apiserver.config.k8s.io/v1",
            false,
        );
        assert_eq!(
            other.unwrap_err().to_string(),
            r#"no kind "EncryptionConfigurations" is registered for version "apiserver.config.k8s.io/v1""#
        );
    }

    #[test]
    fn resources_are_checked() {
        for (resources, expected) in [
            ("[Secrets]", "resource name should not contain capital letters"),
            ("['*']", "use '*.' to encrypt all the resources"),
            ("[serviceipallocations]", "resources which do not have REST API/s"),
            ("['*.events.k8s.io']", "'*.events.k8s.io' objects are stored"),
            ("[x.extensions]", "'extensions' group has been removed"),
            ("['pods.*']", "across groups is not supported"),
            ("[secrets, secrets]", "cannot be specified multiple times"),
            ("[secrets, '*.']", "using overlapping resources"),
            ("['*.*', pods]", "using overlapping resources"),
            ("[]", "at least one resources[0].resources is required"),
        ] {
            let error =
                parse(&format!("resources: [{{resources: {resources}, providers: [{{identity: {{}}}}]}}]"));
            let error = error.unwrap_err();
            assert!(error.contains(expected), "{resources}: {error}");
        }
        assert!(parse("resources: [{resources: [a, '*.apps', b.c.d], providers: [{identity: {}}]}]").is_ok());
    }

    #[test]
    fn defaults_and_sockets() {
        let text = "resources: [{resources: [secrets], providers: [{kms: {name: a, endpoint: 'unix:///run/kms.sock'}}]}]";
        let configuration = parse(text).unwrap();
        let kms = configuration.resources[0].providers[0].kms.as_ref().unwrap();
        assert_eq!((kms.api_version.as_str(), kms.cache_size), ("v1", Some(1000)));
        assert_eq!(kms.timeout(), Duration::from_secs(3));
        for (endpoint, socket) in [
            ("unix:///run/kms.sock", "/run/kms.sock"),
            ("unix:///@kms", "@kms"),
            ("unix://host/x", "/x"),
            ("unix:/x", "/x"),
        ] {
            assert_eq!(Kms { endpoint: endpoint.into(), ..Kms::default() }.socket(), socket);
        }
        let legacy = "kind: EncryptionConfig\napiVersion: v1\nresources: [{resources: [secrets], providers: [{identity: {}}]}]";
        assert!(EncryptionConfiguration::parse(legacy.as_bytes(), true).is_ok());
    }
}
