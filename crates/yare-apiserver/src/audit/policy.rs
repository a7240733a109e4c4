//! Audit policies (`audit.k8s.io/v1` `Policy`): which requests are written down, and how much of them.

use serde::Deserialize;
use serde_json::Value;
use yare_auth::{User, gotext};

use crate::path::RequestInfo;

/// How much is written down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what, when, and how it ended.
    Metadata,
    /// Also the object that was sent.
    Request,
    /// Also the object that was answered.
    RequestResponse,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Metadata, Self::Request, Self::RequestResponse];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A moment in a request's life at which an event is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// Headers are sent, the body is not (long-running requests only).
    ResponseStarted,
    /// The end.
    ResponseComplete,
    /// The server failed.
    Panic,
}

impl Stage {
    const ALL: [Self; 4] =
        [Self::RequestReceived, Self::ResponseStarted, Self::ResponseComplete, Self::Panic];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// What the policy says of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// How much.
    pub level: Level,
    /// Stages without an event, by their number.
    omit: [bool; 4],
    /// `metadata.managedFields` is left out of objects.
    pub omit_managed_fields: bool,
}

impl Verdict {
    /// Whether the stage has no event.
    pub fn omits(&self, stage: Stage) -> bool {
        self.omit[stage as usize]
    }
}

/// A policy that was read and found right.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<(Rule, Verdict)>,
    otherwise: Verdict,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Raw {
    api_version: Option<String>,
    kind: Option<String>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<String>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

impl Policy {
    /// Reads YAML or JSON. The error is one line.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let value: Value = crate::codec::from_yaml(text).map_err(|e| format!("failed decoding: {e}"))?;
        let raw: Raw = serde_json::from_value(value).map_err(|e| format!("failed decoding: {e}"))?;
        if raw.api_version.as_deref() != Some("audit.k8s.io/v1") || raw.kind.as_deref() != Some("Policy") {
            return Err(format!(
                "unknown group version field {}, Kind={} in policy",
                raw.api_version.unwrap_or_default(),
                raw.kind.unwrap_or_default()
            ));
        }
        let mut errors = Vec::new();
        check_stages(&raw.omit_stages, "omitStages", &mut errors);
        let general = stages(&raw.omit_stages);
        let mut rules = Vec::new();
        for (at, rule) in raw.rules.into_iter().enumerate() {
            let path = format!("rules[{at}]");
            rule.check(&path, &mut errors);
            let own = stages(&rule.omit_stages);
            let verdict = Verdict {
                level: Level::ALL.into_iter().find(|l| l.name() == rule.level).unwrap_or(Level::None),
                omit: std::array::from_fn(|stage| general[stage] || own[stage]),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(raw.omit_managed_fields),
            };
            rules.push((rule, verdict));
        }
        if !errors.is_empty() {
            return Err(gotext::aggregate(&errors));
        }
        if rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".into());
        }
        let otherwise =
            Verdict { level: Level::None, omit: general, omit_managed_fields: raw.omit_managed_fields };
        Ok(Self { rules, otherwise })
    }

    /// What it says of a request: the first rule that matches counts.
    pub fn verdict(&self, info: &RequestInfo, user: Option<&User>) -> Verdict {
        let found = self.rules.iter().find(|(rule, _)| rule.matches(info, user));
        found.map_or(self.otherwise, |(_, verdict)| *verdict)
    }
}

fn stages(names: &[String]) -> [bool; 4] {
    Stage::ALL.map(|stage| names.iter().any(|name| name == stage.name()))
}

fn check_stages(names: &[String], path: &str, errors: &mut Vec<String>) {
    for (at, name) in names.iter().enumerate() {
        if !Stage::ALL.iter().any(|stage| stage.name() == name) {
            let all = Stage::ALL.map(Stage::name).join(",");
            errors.push(format!("{path}[{at}]: Invalid value: {name:?}: allowed stages are {all}"));
        }
    }
}

impl Rule {
    fn check(&self, path: &str, errors: &mut Vec<String>) {
        if self.level.is_empty() {
            errors.push(format!("{path}.level: Required value"));
        } else if !Level::ALL.iter().any(|level| level.name() == self.level) {
            let all = Level::ALL.map(|level| format!("{:?}", level.name())).join(", ");
            errors
                .push(format!("{path}.level: Unsupported value: {:?}: supported values: {all}", self.level));
        }
        for (at, url) in self.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            let mut wrong = |why: &str| {
                errors.push(format!("{path}.nonResourceURLs[{at}]: Invalid value: {url:?}: {why}"));
            };
            if !url.starts_with('/') {
                wrong("non-resource URL rules must begin with a '/' character");
            }
            if url.find('*').is_some_and(|star| star + 1 < url.len()) {
                wrong("non-resource URL wildcards '*' must be the final character of the rule");
            }
        }
        for of in &self.resources {
            let group = of.group.as_str();
            let wrong = yare_kinds::names::dns1123_subdomain(group);
            if !matches!(group, "" | "*") && !wrong.is_empty() {
                let why = wrong.join(",");
                errors.push(format!("{path}.resources.group: Invalid value: {group:?}: {why}"));
            }
            if !of.resource_names.is_empty() && of.resources.is_empty() {
                errors.push(format!(
                    "{path}.resources.resourceNames: Invalid value: {}: using resourceNames requires at least one resource",
                    serde_json::json!(of.resource_names)
                ));
            }
        }
        check_stages(&self.omit_stages, &format!("{path}.omitStages"), errors);
        let of_resources = !self.resources.is_empty() || !self.namespaces.is_empty();
        if !self.non_resource_urls.is_empty() && of_resources {
            errors.push(format!(
                "{path}.nonResourceURLs: Invalid value: {}: rules cannot apply to both regular resources and non-resource URLs",
                serde_json::json!(self.non_resource_urls)
            ));
        }
    }

    fn matches(&self, info: &RequestInfo, user: Option<&User>) -> bool {
        let any = |names: &[String], name: &str| names.iter().any(|n| n == name);
        let by_user = self.users.is_empty() || user.is_some_and(|u| any(&self.users, &u.name));
        let by_group = self.user_groups.is_empty()
            || user.is_some_and(|u| u.groups.iter().any(|group| any(&self.user_groups, group)));
        if !by_user || !by_group || !(self.verbs.is_empty() || any(&self.verbs, info.verb)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || any(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|of| of.matches(info)));
        }
        if self.non_resource_urls.is_empty() {
            return true;
        }
        let path = info.path.as_str();
        !info.is_resource
            && self.non_resource_urls.iter().any(|url| {
                url == "*"
                    || url == path
                    || url
                        .strip_suffix('*')
                        .is_some_and(|prefix| path.starts_with(prefix.trim_end_matches('*')))
            })
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !self.resource_names.contains(&info.name) {
            return false;
        }
        let (resource, sub) = (info.resource.as_str(), info.subresource.as_str());
        self.resources.iter().any(|pattern| match pattern.split_once('/') {
            _ if pattern == "*" => true,
            None => sub.is_empty() && pattern == resource,
            // `pods/*` stands for pods themselves, too.
            Some((of, "*")) if of == resource => true,
            Some(("*", of)) => !sub.is_empty() && of == sub,
            Some((of, wanted)) => of == resource && wanted == sub && !sub.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(verb: &'static str, group: &str, resource: &str, namespace: &str, name: &str) -> RequestInfo {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb,
            group: group.into(),
            resource: resource.into(),
            subresource: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let policy = Policy::parse(
            br#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- {level: None, users: ["system:kube-proxy"], verbs: [watch]}
- {level: None, userGroups: ["system:nodes"], verbs: [get], resources: [{group: "", resources: [nodes, nodes/status]}]}
- {level: None, nonResourceURLs: ["/healthz*", "/version"]}
- {level: Metadata, resources: [{group: "", resources: [secrets, "serviceaccounts/token"]}], omitStages: [Panic]}
- {level: Request, namespaces: [kube-system], resources: [{group: apps}], omitManagedFields: false}
- {level: RequestResponse, resources: [{group: "", resources: ["pods/*"], resourceNames: [a, b]}]}
- {level: Request, resources: [{group: "*", resources: ["*/scale"]}]}
"#,
        )
        .unwrap();
        let proxy = User::new("system:kube-proxy", &[]);
        let node = User::new("system:node:n", &["system:nodes"]);
        for (user, request, want) in [
            (&proxy, info("watch", "", "services", "", ""), Level::None),
            (&node, info("get", "", "nodes/status", "", "n"), Level::None),
            (&node, info("get", "", "secrets", "x", "s"), Level::Metadata),
            (&node, info("create", "", "serviceaccounts/token", "x", "s"), Level::Metadata),
            (&node, info("create", "", "serviceaccounts", "x", "s"), Level::None),
            (&node, info("list", "apps", "deployments", "kube-system", ""), Level::Request),
            (&node, info("list", "apps", "deployments", "x", ""), Level::None),
            (&node, info("get", "", "pods", "x", "a"), Level::RequestResponse),
            (&node, info("get", "", "pods/log", "x", "b"), Level::RequestResponse),
            (&node, info("get", "", "pods/log", "x", "c"), Level::None),
            (&node, info("update", "apps", "deployments/scale", "x", "c"), Level::Request),
        ] {
            assert_eq!(policy.verdict(&request, Some(user)).level, want, "{request:?}");
        }
        let secret = policy.verdict(&info("get", "", "secrets", "x", "s"), None);
        assert!(secret.omits(Stage::RequestReceived) && secret.omits(Stage::Panic));
        assert!(!secret.omits(Stage::ResponseComplete) && secret.omit_managed_fields);
        let apps = policy.verdict(&info("list", "apps", "deployments", "kube-system", ""), None);
        assert!(!apps.omit_managed_fields);
    }

    #[test]
    fn paths() {
        let policy = Policy::parse(
            b"{apiVersion: audit.k8s.io/v1, kind: Policy, rules: [{level: Metadata, nonResourceURLs: [/healthz*, /version]}]}",
        )
        .unwrap();
        for (path, want) in [
            ("/healthz", Level::Metadata),
            ("/healthz/ping", Level::Metadata),
            ("/version", Level::Metadata),
            ("/versions", Level::None),
        ] {
            let info = RequestInfo { verb: "get", path: path.into(), ..RequestInfo::default() };
            assert_eq!(policy.verdict(&info, None).level, want, "{path}");
        }
    }

    #[test]
    fn wrong_policies_say_what_is_wrong() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, why) in [
            ("kind: Policy".to_owned(), "unknown group version field"),
            (head.to_owned(), "loaded illegal policy with 0 rules"),
            (format!("{head}rules: [{{}}]"), "rules[0].level: Required value"),
            (format!("{head}rules: [{{level: All}}]"), "Unsupported value: \"All\""),
            (format!("{head}rules: [{{level: None, nonResourceURLs: [x]}}]"), "must begin with a '/'"),
            (
                format!("{head}rules: [{{level: None, nonResourceURLs: ['/a*b']}}]"),
                "must be the final character",
            ),
            (
                format!("{head}rules: [{{level: None, nonResourceURLs: [/a], namespaces: [b]}}]"),
                "both regular resources and non-resource URLs",
            ),
            (
                format!("{head}rules: [{{level: None, resources: [{{group: apps/v1}}]}}]"),
                "rules[0].resources.group: Invalid value: \"apps/v1\"",
            ),
            (
                format!("{head}rules: [{{level: None, resources: [{{resourceNames: [a]}}]}}]"),
                "requires at least one resource",
            ),
            (format!("{head}omitStages: [Never]\nrules: [{{level: None}}]"), "allowed stages are"),
            ("[".to_owned(), "failed decoding"),
        ] {
            let error = Policy::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
