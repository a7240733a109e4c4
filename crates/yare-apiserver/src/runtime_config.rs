//! Which built-in group versions are served: `--runtime-config`.
//!
//! In: `api/all=true,apps/v1=false,batch/v1/jobs=false`. Out: [`RuntimeConfig`], which the registry asks about
//! each resource in each version. Alpha and beta versions are off unless asked for, as upstream has it. A server that
//! emulates a release leaves out what came later (KEP-4330).

use std::collections::{BTreeMap, BTreeSet};

use yare_kinds::table::{RESOURCES, Resource, Version};
use yare_schema::{features::parse_bool, release::Emulation};

/// What is wrong with a wish.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuntimeConfigError {
    /// Nothing would be served.
    #[error("invalid runtime-config with only api/all=false")]
    NothingLeft,
    /// A key that is neither a keyword nor `group/version[/resource]`.
    #[error("runtime-config invalid key {0}")]
    Key(String),
    /// A keyword that is neither true nor false.
    #[error("invalid value {0}={1}")]
    KeywordValue(String, String),
    /// A value that is neither true nor false.
    #[error("invalid value of {key}: {value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    Value {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Groups that nobody knows.
    #[error("unknown api groups {0}")]
    UnknownGroups(String),
    /// A version that its group has not.
    #[error("group version {0} that has not been registered")]
    UnknownVersion(String),
    /// A resource that is not in lower case.
    #[error(
        "invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"
    )]
    Resource {
        /// The key.
        key: String,
        /// What stands for the resource.
        resource: String,
    },
    /// A resource that the emulated release does not have.
    #[error(
        "cannot enable resource {group}/{version}, Resource={resource} in runtime-config because it is introduced at 1.{since} after the current version 1.{emulated}. {ADVICE}"
    )]
    LaterResource {
        /// Its group.
        group: String,
        /// Its version.
        version: String,
        /// Its plural name.
        resource: String,
        /// The minor version that brought it.
        since: u16,
        /// The minor version that is emulated.
        emulated: u16,
    },
    /// A version of which the emulated release has nothing.
    #[error(
        "cannot enable version {group}/{version} in runtime-config because all the resources have been introduced after the current version 1.{emulated}. {ADVICE}"
    )]
    LaterVersion {
        /// Its group.
        group: String,
        /// The version.
        version: String,
        /// The minor version that is emulated.
        emulated: u16,
    },
}

const ADVICE: &str = "Consider setting --runtime-config-emulation-forward-compatible=true";

/// What is served of releases after the one that is emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forward {
    /// Later versions of what is served in an earlier one that is not alpha.
    pub better: bool,
    /// What `--runtime-config` asks for by version or resource.
    pub asked: bool,
}

/// How settled a version is.
type Matcher = fn(&str) -> bool;

/// Keywords in the order in which they are applied: each goes before the ones above it.
const KEYWORDS: &[(&str, Matcher)] = &[
    ("api/all", |_| true),
    ("api/ga", |v| !v.contains("alpha") && !v.contains("beta")),
    ("api/beta", |v| v.contains("beta")),
    ("api/alpha", |v| v.contains("alpha")),
];

/// Which resources are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Keyword → on or off.
    keywords: BTreeMap<&'static str, bool>,
    /// Group and version → on or off.
    versions: BTreeMap<(String, String), bool>,
    /// Group, version and plural → on or off.
    resources: BTreeMap<(String, String, String), bool>,
    forward: Forward,
}

impl RuntimeConfig {
    /// Reads `KEY[=BOOL],…`. A key is a keyword (`api/all`, `api/ga`, `api/beta`, `api/alpha`), `group/version`
    /// (`/v1` is core's) or `group/version/resource`.
    pub fn parse(text: &str) -> Result<Self, RuntimeConfigError> {
        let wishes: BTreeMap<&str, &str> = text
            .split(',')
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .map(|w| w.split_once('=').map_or((w, ""), |(key, value)| (key.trim(), value.trim())))
            .collect();
        if wishes.len() == 1 && wishes.get("api/all") == Some(&"false") {
            return Err(RuntimeConfigError::NothingLeft);
        }
        let mut out = Self::default();
        let mut unknown: BTreeSet<String> = BTreeSet::new();
        for (key, value) in wishes {
            if let Some((keyword, _)) = KEYWORDS.iter().find(|(k, _)| *k == key) {
                let on = match value {
                    "true" => true,
                    "false" => false,
                    _ => return Err(RuntimeConfigError::KeywordValue(key.into(), value.into())),
                };
                out.keywords.insert(keyword, on);
                continue;
            }
            let parts: Vec<&str> = key.split('/').collect();
            let (group, version, resource) = match parts[..] {
                [group, version] => (group, version, None),
                [group, version, resource] => (group, version, Some(resource)),
                _ => return Err(RuntimeConfigError::Key(key.into())),
            };
            if !RESOURCES.iter().any(|r| r.group == group) {
                unknown.insert(format!("{group}/{version}"));
                continue;
            }
            if !is_known(group, version) {
                return Err(RuntimeConfigError::UnknownVersion(format!("{group}/{version}")));
            }
            let on = match value {
                "" => true,
                _ => parse_bool(value)
                    .ok_or_else(|| RuntimeConfigError::Value { key: key.into(), value: value.into() })?,
            };
            let (group, version) = (group.to_owned(), version.to_owned());
            match resource {
                None => drop(out.versions.insert((group, version), on)),
                Some(resource) if resource.chars().any(char::is_uppercase) => {
                    return Err(RuntimeConfigError::Resource { key: key.into(), resource: resource.into() });
                }
                Some(resource) => drop(out.resources.insert((group, version, resource.to_owned()), on)),
            }
        }
        if unknown.is_empty() {
            Ok(out)
        } else {
            Err(RuntimeConfigError::UnknownGroups(unknown.into_iter().collect::<Vec<_>>().join(",")))
        }
    }

    /// The same for a server that emulates a release.
    ///
    /// # Errors
    /// Something is asked for that came later, and not let in.
    pub fn emulating(mut self, emulation: Emulation, forward: Forward) -> Result<Self, RuntimeConfigError> {
        self.forward = forward;
        let emulated = emulation.minor;
        let asked = self.resources.iter().filter(|(_, on)| **on && !forward.asked);
        for ((group, version, resource), _) in asked {
            let row = RESOURCES.iter().find(|r| (r.group, r.plural) == (group, resource));
            let of = row.and_then(|r| r.versions.iter().find(|v| v.name == version));
            if let Some(of) = of.filter(|of| of.since_minor > emulated) {
                return Err(RuntimeConfigError::LaterResource {
                    group: group.clone(),
                    version: version.clone(),
                    resource: resource.clone(),
                    since: of.since_minor,
                    emulated,
                });
            }
        }
        for ((group, version), _) in self.versions.iter().filter(|(_, on)| **on) {
            let rows = RESOURCES.iter().filter(|r| r.group == *group);
            let mut of = rows.filter(|r| r.versions.iter().any(|v| v.name == version)).peekable();
            let is_left = |r: &Resource| self.served(r, emulation).iter().any(|v| v.name == version);
            if of.peek().is_some() && !of.any(is_left) {
                return Err(RuntimeConfigError::LaterVersion {
                    group: group.clone(),
                    version: version.clone(),
                    emulated,
                });
            }
        }
        Ok(self)
    }

    /// The versions of a resource that are served, preferred first.
    pub fn served(&self, resource: &Resource, emulation: Emulation) -> Vec<&'static Version> {
        let mut served = Vec::new();
        let mut has_lesser = false;
        for version in resource.versions.iter().rev() {
            let is_there = version.since_minor <= emulation.minor
                || (self.forward.better && has_lesser)
                || (self.forward.asked && self.asks_for(resource, version.name));
            if is_there && self.serves(resource, version.name, version.served) {
                has_lesser |= !version.name.contains("alpha");
                served.push(version);
            }
        }
        served.reverse();
        served
    }

    /// Whether somebody asked for it by its name, or for its version.
    fn asks_for(&self, resource: &Resource, version: &str) -> bool {
        let (group, version) = (resource.group.to_owned(), version.to_owned());
        self.resources.get(&(group.clone(), version.clone(), resource.plural.to_owned())) == Some(&true)
            || self.versions.get(&(group, version)) == Some(&true)
    }

    /// Whether a version of a resource is served. `by_default`: what holds where nobody asks for anything.
    fn serves(&self, resource: &Resource, version: &str, by_default: bool) -> bool {
        let (group, plural) = (resource.group, resource.plural);
        let by = |key: (&str, &str, &str)| {
            self.resources.get(&(key.0.to_owned(), key.1.to_owned(), key.2.to_owned())).copied()
        };
        if let Some(on) = by((group, version, plural)) {
            return on;
        }
        if let Some(on) = self.versions.get(&(group.to_owned(), version.to_owned())) {
            return *on;
        }
        let keyword = KEYWORDS.iter().rev().filter(|(_, matches)| matches(version));
        keyword.filter_map(|(name, _)| self.keywords.get(name)).next().copied().unwrap_or(by_default)
    }
}

/// Whether a group has the version, served or not: also versions whose last resource has been removed may
/// still be named.
fn is_known(group: &str, version: &str) -> bool {
    RESOURCES.iter().any(|r| r.group == group && r.versions.iter().any(|v| v.name == version))
        || yare_schema::builtin::builtin().kinds().iter().any(|k| k.group == group && k.version == version)
}

#[cfg(test)]
mod tests {
    use yare_kinds::table::find;

    use super::*;

    #[test]
    fn wishes() {
        let taints = ("resource.k8s.io", "devicetaintrules");
        let cases = [
            ("", ("apps", "deployments"), "v1", true),
            ("", taints, "v1beta2", false),
            ("api/beta=true", taints, "v1beta2", true),
            ("api/beta=true", taints, "v1alpha3", false),
            ("api/all=true", taints, "v1alpha3", true),
            ("api/all=true,api/alpha=false", taints, "v1alpha3", false),
            ("api/all=false,api/ga=true", ("apps", "deployments"), "v1", true),
            ("api/all=false,apps/v1=true", ("apps", "deployments"), "v1", true),
            ("api/all=false,apps/v1=true", ("batch", "jobs"), "v1", false),
            ("resource.k8s.io/v1alpha3", taints, "v1alpha3", true),
            ("resource.k8s.io/v1alpha3/devicetaintrules=true", taints, "v1alpha3", true),
            ("api/alpha=true,resource.k8s.io/v1alpha3/devicetaintrules=false", taints, "v1alpha3", false),
            ("/v1=false", ("", "pods"), "v1", false),
            ("apps/v1/deployments=0", ("apps", "deployments"), "v1", false),
            ("apps/v1/deployments=0", ("apps", "replicasets"), "v1", true),
        ];
        for (text, (group, plural), version, expect) in cases {
            let config = RuntimeConfig::parse(text).expect(text);
            let row = find(group, plural).expect("in the table");
            let by_default = row.versions.iter().any(|v| v.name == version && v.served);
            assert_eq!(config.serves(row, version, by_default), expect, "{text:?} {plural} {version}");
        }
    }

    #[test]
    fn what_came_later_is_left_out() {
        let at = |minor: u16| Emulation { minor, compatible_minor: 33 };
        let plain = Forward::default();
        let (better, asked) =
            (Forward { better: true, asked: false }, Forward { better: false, asked: true });
        let policies = ("admissionregistration.k8s.io", "mutatingadmissionpolicies");
        let claims = ("resource.k8s.io", "resourceclaims");
        let beta = "admissionregistration.k8s.io/v1beta1";
        let stable = "admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
        for (text, minor, forward, (group, plural), expect) in [
            ("", 36, plain, policies, &["v1"][..]),
            ("", 35, plain, policies, &[]),
            (beta, 35, plain, policies, &["v1beta1"]),
            (beta, 35, better, policies, &["v1", "v1beta1"]),
            (stable, 35, asked, policies, &["v1"]),
            ("", 35, asked, policies, &[]),
            ("api/alpha=true", 35, better, policies, &["v1alpha1"]),
            ("", 34, plain, claims, &["v1"]),
            ("", 33, plain, claims, &[]),
            ("api/all=true", 33, plain, claims, &["v1beta2", "v1beta1"]),
            ("", 33, plain, ("apps", "deployments"), &["v1"]),
        ] {
            let config = RuntimeConfig::parse(text).unwrap().emulating(at(minor), forward).unwrap();
            let row = find(group, plural).expect("in the table");
            let served: Vec<&str> = config.served(row, at(minor)).iter().map(|v| v.name).collect();
            assert_eq!(served, expect, "{text:?} 1.{minor} {forward:?} {plural}");
        }
        for (text, minor, expect) in [
            (
                stable,
                35,
                "cannot enable resource admissionregistration.k8s.io/v1, Resource=mutatingadmissionpolicies in runtime-config because it is introduced at 1.36 after the current version 1.35. Consider setting --runtime-config-emulation-forward-compatible=true",
            ),
            (
                "storagemigration.k8s.io/v1beta1",
                34,
                "cannot enable version storagemigration.k8s.io/v1beta1 in runtime-config because all the resources have been introduced after the current version 1.34. Consider setting --runtime-config-emulation-forward-compatible=true",
            ),
        ] {
            let config = RuntimeConfig::parse(text).unwrap();
            assert_eq!(config.emulating(at(minor), plain).unwrap_err().to_string(), expect);
            RuntimeConfig::parse(text).unwrap().emulating(at(minor), asked).unwrap();
        }
    }

    #[test]
    fn wrong_wishes() {
        for (text, expect) in [
            ("api/all=false", "invalid runtime-config with only api/all=false"),
            ("api/all", "invalid value api/all="),
            ("api/beta=yes", "invalid value api/beta=yes"),
            ("v1=true", "runtime-config invalid key v1"),
            ("a/b/c/d", "runtime-config invalid key a/b/c/d"),
            ("foo.io/v1,bar.io/v1=true", "unknown api groups bar.io/v1,foo.io/v1"),
            ("apps/v7=true", "group version apps/v7 that has not been registered"),
            (
                "apps/v1=maybe",
                "invalid value of apps/v1: maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax",
            ),
            (
                "apps/v1/Deployments",
                "invalid key apps/v1/Deployments: group/version/resource and resource is always lowercase plural, not \"Deployments\"",
            ),
        ] {
            assert_eq!(RuntimeConfig::parse(text).unwrap_err().to_string(), expect, "{text}");
        }
    }
}
