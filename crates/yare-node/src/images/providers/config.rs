//! `CredentialProviderConfig`: which providers there are, for which images, and what they want to know.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use yare_schema::decode::{Mode, Syntax, decode_untyped_as};

use super::lifetime;
use crate::config::ConfigError;

const GROUP: &str = "kubelet.config.k8s.io";
const KIND: &str = "CredentialProviderConfig";
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
/// The longest file that is read, and how many.
const BYTES_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 1000;
/// Versions of the protocol with providers; service accounts are of the last.
pub(super) const PROTOCOLS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1",
];
const CURRENT: &str = PROTOCOLS[2];
/// `cacheType`: logins are each token's.
pub(super) const PER_TOKEN: &str = "Token";
const CACHE_TYPES: [&str; 2] = ["ServiceAccount", PER_TOKEN];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    providers: Vec<Written>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Written {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    args: Vec<String>,
    env: Vec<Variable>,
    token_attributes: Option<TokenAttributes>,
}

/// A variable of a provider's environment.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) value: String,
}

/// What a provider wants to know of a pod's service account.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct TokenAttributes {
    pub(super) service_account_token_audience: String,
    pub(super) cache_type: String,
    pub(super) require_service_account: Option<bool>,
    pub(super) required_service_account_annotation_keys: Vec<String>,
    pub(super) optional_service_account_annotation_keys: Vec<String>,
}

/// A provider.
#[derive(Debug, Clone, Default)]
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) api_version: String,
    pub(super) match_images: Vec<String>,
    /// Zero: its logins are not kept unless it says so.
    pub(super) default_cache_duration: Duration,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<Variable>,
    pub(super) token_attributes: Option<TokenAttributes>,
}

fn refuse(message: String) -> ConfigError {
    ConfigError::new(message)
}

/// The files that make up a configuration: one, or those of a directory by their names.
fn files(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let found =
        std::fs::metadata(path).map_err(|e| refuse(format!("unable to access path {path:?}: {e}")))?;
    if !found.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        std::fs::read_dir(path).map_err(|e| refuse(format!("unable to read directory {path:?}: {e}")))?;
    let mut all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    all.retain(|file| {
        file.extension().is_some_and(|ext| EXTENSIONS.iter().any(|known| ext == *known)) && !file.is_dir()
    });
    all.sort();
    if all.is_empty() || all.len() > FILES_MAX {
        return Err(refuse(match all.len() {
            0 => format!("no configuration files found in directory {path:?}"),
            count => {
                format!("{count} configuration files in directory {path:?}, at most {FILES_MAX} are read")
            }
        }));
    }
    Ok(all)
}

/// Reads the providers, checked.
pub(super) fn load(path: &Path) -> Result<Vec<Provider>, ConfigError> {
    let mut all: Vec<Provider> = Vec::new();
    for file in files(path)? {
        let unreadable = |why: String| refuse(format!("unable to read file {file:?}: {why}"));
        let length = std::fs::metadata(&file).map_err(|e| unreadable(e.to_string()))?.len();
        if length > BYTES_MAX {
            return Err(unreadable(format!("it is longer than {BYTES_MAX} bytes")));
        }
        let text = std::fs::read(&file).map_err(|e| unreadable(e.to_string()))?;
        let wrong = |why: String| refuse(format!("error decoding config {file:?}: {why}"));
        let syntax = if text.trim_ascii_start().starts_with(b"{") { Syntax::Json } else { Syntax::Yaml };
        let value = decode_untyped_as(&text, syntax, Mode::Strict).map_err(|e| wrong(e.to_string()))?.value;
        let read: File = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        if read.kind != KIND {
            return Err(wrong(format!("failed to decode {:?} (wrong Kind)", read.kind)));
        }
        let known = ["v1", "v1beta1", "v1alpha1"];
        if read
            .api_version
            .split_once('/')
            .is_none_or(|(group, version)| group != GROUP || !known.contains(&version))
        {
            return Err(wrong(format!("unexpected apiVersion: {}", read.api_version)));
        }
        for written in read.providers {
            if all.iter().any(|p| p.name == written.name) {
                let name = &written.name;
                return Err(refuse(format!(
                    "duplicate provider name {name:?} found in configuration file(s)"
                )));
            }
            all.push(check(written)?);
        }
    }
    if all.is_empty() {
        return Err(invalid("providers: Required value: at least 1 item in plugins is required".to_owned()));
    }
    Ok(all)
}

fn invalid(why: String) -> ConfigError {
    refuse(format!("failed to validate credential provider config: {why}"))
}

fn check(written: Written) -> Result<Provider, ConfigError> {
    let name = &written.name;
    for (is_wrong, why) in [
        (name.is_empty(), "provider name cannot be empty"),
        (name.contains('/'), "provider name cannot contain '/'"),
        (name.contains(' '), "provider name cannot contain spaces"),
        (name == ".", "provider name cannot be '.'"),
        (name == "..", "provider name cannot be '..'"),
    ] {
        if is_wrong {
            return Err(invalid(format!("providers.name: Invalid value: {name:?}: {why}")));
        }
    }
    if written.api_version.is_empty() {
        return Err(invalid("providers.apiVersion: Required value".to_owned()));
    }
    if !PROTOCOLS.contains(&written.api_version.as_str()) {
        let mut known = PROTOCOLS;
        known.sort_unstable();
        let known: Vec<String> = known.iter().map(|p| format!("{p:?}")).collect();
        let found = &written.api_version;
        let why = format!(
            "providers.apiVersion: Unsupported value: {found:?}: supported values: {}",
            known.join(", ")
        );
        return Err(invalid(why));
    }
    if written.match_images.is_empty() {
        let why = "providers.matchImages: Required value: at least 1 item in matchImages is required";
        return Err(invalid(why.to_owned()));
    }
    let Some(duration) = &written.default_cache_duration else {
        return Err(invalid("providers.defaultCacheDuration: Required value".to_owned()));
    };
    let default_cache_duration = lifetime(duration)
        .ok_or_else(|| invalid(format!("providers.defaultCacheDuration: Invalid value: {duration:?}")))?;
    if let Some(attributes) = &written.token_attributes {
        check_attributes(attributes, &written.api_version)?;
    }
    Ok(Provider {
        name: written.name,
        api_version: written.api_version,
        match_images: written.match_images,
        default_cache_duration,
        args: written.args,
        env: written.env,
        token_attributes: written.token_attributes,
    })
}

fn check_attributes(attributes: &TokenAttributes, protocol: &str) -> Result<(), ConfigError> {
    let at = "providers.tokenAttributes";
    let (required, optional) = (
        &attributes.required_service_account_annotation_keys,
        &attributes.optional_service_account_annotation_keys,
    );
    let duplicate = |keys: &[String]| keys.iter().enumerate().any(|(i, key)| keys[..i].contains(key));
    let cache_type = attributes.cache_type.as_str();
    for (is_wrong, why) in [
        (
            attributes.service_account_token_audience.is_empty(),
            format!("{at}.serviceAccountTokenAudience: Required value"),
        ),
        (attributes.require_service_account.is_none(), format!("{at}.requireServiceAccount: Required value")),
        (
            protocol != CURRENT,
            format!("{at}: Forbidden: tokenAttributes is only supported for {CURRENT} API version"),
        ),
        (
            attributes.require_service_account == Some(false) && !required.is_empty(),
            format!(
                "{at}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set"
            ),
        ),
        (duplicate(required), format!("{at}.requiredServiceAccountAnnotationKeys: Duplicate value")),
        (duplicate(optional), format!("{at}.optionalServiceAccountAnnotationKeys: Duplicate value")),
        (
            required.iter().any(|key| optional.contains(key)),
            format!("{at}: Invalid value: annotation keys cannot be both required and optional"),
        ),
        (
            cache_type.is_empty(),
            format!(
                "{at}.cacheType: Required value: cacheType is required to be set when tokenAttributes is specified. Supported values are: {}",
                CACHE_TYPES.join(", ")
            ),
        ),
        (
            !CACHE_TYPES.contains(&cache_type),
            format!("{at}.cacheType: Unsupported value: {cache_type:?}: supported values: {CACHE_TYPES:?}"),
        ),
    ] {
        if is_wrong {
            return Err(invalid(why));
        }
    }
    Ok(())
}

/// A provider's program: in the one directory for them, and executable.
pub(super) fn program(bin_dir: &Path, name: &str) -> Result<PathBuf, ConfigError> {
    if !bin_dir.is_dir() {
        return Err(refuse(format!("plugin binary directory {} did not exist", bin_dir.display())));
    }
    let path = bin_dir.join(name);
    let found = std::fs::metadata(&path)
        .map_err(|_| refuse(format!("plugin binary executable {} did not exist", path.display())))?;
    if found.is_dir() || found.permissions().mode() & 0o111 == 0 {
        return Err(refuse(format!(
            "error inspecting binary executable {}: permission denied",
            path.display()
        )));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
        - name: p\n  matchImages: ['*.example.com']\n  defaultCacheDuration: 1h30m\n  \
        apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get]\n  env: [{name: A, value: b}]\n";

    #[test]
    fn files_and_directories_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), GOOD).unwrap();
        std::fs::write(dir.path().join("b.yml"), GOOD.replace("name: p", "name: q")).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "no").unwrap();
        let all = load(dir.path()).unwrap();
        let names: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["p", "q"]);
        assert_eq!(all[0].default_cache_duration, Duration::from_secs(5400));
        assert_eq!((all[0].args[0].as_str(), all[0].env[0].value.as_str()), ("get", "b"));
        assert_eq!(load(&dir.path().join("a.yaml")).unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let attributes = |more: &str| {
            format!(
                "{GOOD}  tokenAttributes: {{serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true{more}}}\n"
            )
        };
        for (text, part) in [
            (GOOD.replace("name: p", "name: a/b"), "provider name cannot contain '/'"),
            (GOOD.replace("name: p", "name: .."), "provider name cannot be '..'"),
            (
                GOOD.replace("k8s.io/v1\n  args", "k8s.io/v7\n  args"),
                "providers.apiVersion: Unsupported value",
            ),
            (GOOD.replace("['*.example.com']", "[]"), "at least 1 item in matchImages"),
            (GOOD.replace("  defaultCacheDuration: 1h30m\n", ""), "defaultCacheDuration: Required value"),
            (GOOD.replace("1h30m", "long"), "defaultCacheDuration: Invalid value: \"long\""),
            (GOOD.replace("kind: CredentialProviderConfig", "kind: Other"), "wrong Kind"),
            (GOOD.replace("args:", "arguments:"), "unknown field"),
            (format!("{GOOD}{}", &GOOD[GOOD.find("- name").unwrap()..]), "duplicate provider name \"p\""),
            (
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n".to_owned(),
                "at least 1 item in plugins",
            ),
            (
                attributes("").replace("Audience: a", "Audience: ''"),
                "serviceAccountTokenAudience: Required value",
            ),
            (attributes("").replace("cacheType: Token", "cacheType: Other"), "cacheType: Unsupported value"),
            (
                attributes(
                    ", requiredServiceAccountAnnotationKeys: [a], optionalServiceAccountAnnotationKeys: [a]",
                ),
                "both required and optional",
            ),
            (attributes("").replace("k8s.io/v1\n  args", "k8s.io/v1beta1\n  args"), "only supported for"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let error = load(&path).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}\n{text}");
        }
        std::fs::write(&path, attributes("")).unwrap();
        assert_eq!(load(&path).unwrap()[0].token_attributes.as_ref().unwrap().cache_type, PER_TOKEN);
        assert!(load(&dir.path().join("none")).unwrap_err().to_string().contains("unable to access path"));
    }

    #[test]
    fn programs_have_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("p"), "").unwrap();
        for (bin_dir, name, part) in [
            (dir.path().join("none"), "p", "did not exist"),
            (dir.path().to_owned(), "q", "did not exist"),
            (dir.path().to_owned(), "p", "permission denied"),
        ] {
            let error = program(&bin_dir, name).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
