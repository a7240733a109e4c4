//! Attribute-based access control (`--authorization-mode=ABAC`): policies from a file, one JSON object a line
//! (`abac.authorization.kubernetes.io/v1beta1`, or the form from before versions). A request is allowed if one
//! policy matches it; there is nothing that denies. The file is read once, when the server starts.

use serde::Deserialize;
use yare_schema::decode::yaml_to_json;

use crate::{
    rbac::{Action, Decision, Rule},
    user::{AUTHENTICATED, User},
};

const GROUP: &str = "abac.authorization.kubernetes.io/";
const NEWEST: &str = "v1beta1";
/// The version of what says none.
const OLDEST: &str = "v0";
/// Longest line, which is upstream's by the way it reads.
const MAX_LINE: usize = 64 * 1024;

/// Why a file holds no policies. Shown after the name of the file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// A line is no policy.
    #[error(", line {line}: {text}: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// The line.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A line is longer than lines may be.
    #[error(": line {0} is longer than {MAX_LINE} bytes")]
    TooLong(usize),
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    api_group: String,
    resource: String,
    namespace: String,
    non_resource_path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Typed {
    api_version: String,
    kind: String,
    spec: Policy,
}

/// The policies of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Abac {
    policies: Vec<Policy>,
    /// How many of them are of the form from before versions.
    pub unversioned: usize,
}

impl Abac {
    /// Reads a file's text. Empty lines and those that start with `#` are skipped.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let mut abac = Self::default();
        for (line, text) in text.lines().enumerate().map(|(i, text)| (i + 1, text)) {
            if text.len() > MAX_LINE {
                return Err(PolicyError::TooLong(line));
            }
            let trimmed = text.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let (policy, version) =
                parse(text).map_err(|why| PolicyError::Line { line, text: text.to_owned(), why })?;
            abac.unversioned += usize::from(version == OLDEST);
            abac.policies.push(policy);
        }
        Ok(abac)
    }

    /// Whether a policy allows it.
    pub fn authorize(&self, user: &User, action: &Action<'_>) -> Decision {
        if self.policies.iter().any(|policy| policy.is_for(user) && policy.allows(action)) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion("No policy matched.".into())
        }
    }

    /// The rules that hold for a user in a namespace.
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        let here = |policy: &&Policy| policy.is_for(user) && fits(&policy.namespace, namespace);
        for policy in self.policies.iter().filter(here) {
            let verbs: &[&str] = if policy.readonly { &READS } else { &["*"] };
            let rule =
                Rule { verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(), ..Rule::default() };
            if !policy.resource.is_empty() {
                rules.push(Rule {
                    api_groups: vec![policy.api_group.clone()],
                    resources: vec![policy.resource.clone()],
                    ..rule.clone()
                });
            }
            if !policy.non_resource_path.is_empty() {
                rules.push(Rule { non_resource_urls: vec![policy.non_resource_path.clone()], ..rule });
            }
        }
        rules
    }
}

/// What changes nothing.
const READS: [&str; 3] = ["get", "list", "watch"];

/// A policy, and the version it was written in.
fn parse(text: &str) -> Result<(Policy, &'static str), String> {
    let (json, _) = yaml_to_json(text.as_bytes()).map_err(|e| e.to_string())?;
    let typed: Typed = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
    let version = match (typed.api_version.as_str(), typed.kind.as_str()) {
        ("", "" | "Policy") => OLDEST,
        (version, "Policy") => match version.strip_prefix(GROUP) {
            Some(NEWEST) => NEWEST,
            Some(OLDEST) => OLDEST,
            _ => return Err(format!("no kind \"Policy\" is registered for version {version:?}")),
        },
        (_, "") => return Err("Object 'Kind' is missing".to_owned()),
        (version, kind) => {
            return Err(format!("no kind {kind:?} is registered for version {version:?}"));
        }
    };
    let policy = if version == NEWEST {
        typed.spec
    } else {
        let flat: Policy = serde_json::from_slice(&json).map_err(|e| e.to_string())?;
        flat.of_old()
    };
    Ok((policy.of_everybody(), version))
}

/// Whether a pattern is `value`, or stands for all.
fn fits(pattern: &str, value: &str) -> bool {
    pattern == "*" || pattern == value
}

impl Policy {
    /// The old form says by what it leaves out what the new one says with a star, and knows no groups of the API.
    fn of_old(self) -> Self {
        let or_all = |text: &str| if text.is_empty() { "*" } else { text }.to_owned();
        let all = self.namespace.is_empty() && self.resource.is_empty();
        let nobody = self.user.is_empty() && self.group.is_empty();
        Self {
            group: if nobody { AUTHENTICATED.to_owned() } else { self.group },
            namespace: or_all(&self.namespace),
            resource: or_all(&self.resource),
            api_group: "*".to_owned(),
            non_resource_path: if all { "*" } else { "" }.to_owned(),
            ..self
        }
    }

    /// Everybody is everybody who has shown who they are.
    fn of_everybody(self) -> Self {
        if self.user == "*" || self.group == "*" {
            return Self { user: String::new(), group: AUTHENTICATED.to_owned(), ..self };
        }
        self
    }

    fn is_for(&self, user: &User) -> bool {
        let nobody = self.user.is_empty() && self.group.is_empty();
        !nobody
            && (self.user.is_empty() || self.user == user.name)
            && (self.group.is_empty() || user.in_group(&self.group))
    }

    fn allows(&self, action: &Action<'_>) -> bool {
        if self.readonly && !READS.contains(&action.verb) {
            return false;
        }
        if action.resource.is_empty() {
            let pattern = self.non_resource_path.as_str();
            return fits(pattern, action.path)
                || pattern.ends_with('*') && action.path.starts_with(pattern.trim_end_matches('*'));
        }
        fits(&self.namespace, action.namespace)
            && fits(&self.resource, action.resource)
            && fits(&self.api_group, action.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(spec: &str) -> String {
        format!(
            r#"{{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {spec}}}"#
        )
    }

    fn user(name: &str, groups: &[&str]) -> User {
        User { name: name.into(), groups: groups.iter().map(|g| (*g).into()).collect(), ..User::default() }
    }

    #[test]
    fn policies_allow_what_they_match() {
        let text = [
            "# comments and empty lines".to_owned(),
            String::new(),
            line(r#"{"group": "*", "nonResourcePath": "/healthz/*", "readonly": true}"#),
            line(r#"{"user": "alice", "namespace": "*", "resource": "*", "apiGroup": "*"}"#),
            line(r#"{"user": "bob", "namespace": "a", "resource": "pods", "readonly": true}"#),
            line(r#"{"user": "carl", "group": "g", "namespace": "a", "resource": "deployments", "apiGroup": "apps"}"#),
            line(r#"{"namespace": "*", "resource": "*", "apiGroup": "*"}"#),
            r#"{"user": "old", "resource": "pods"}"#.to_owned(),
            r#"{"group": "everything"}"#.to_owned(),
        ]
        .join("\n");
        let abac = Abac::parse(&text).unwrap();
        let check = |user: &User, verb: &str, group: &str, resource: &str, namespace: &str, path: &str| {
            let action = Action { verb, group, resource, namespace, path, ..Action::default() };
            matches!(abac.authorize(user, &action), Decision::Allow(_))
        };
        let known = &["system:authenticated"];
        let (alice, bob) = (user("alice", known), user("bob", known));
        for (who, verb, group, resource, namespace, path, allowed) in [
            (&alice, "delete", "apps", "deployments", "x", "", true),
            (&alice, "get", "", "", "", "/metrics", false),
            (&alice, "get", "", "", "", "/healthz/ping", true),
            (&alice, "post", "", "", "", "/healthz/ping", false),
            (&user("alice", &[]), "get", "", "", "", "/healthz/ping", false),
            (&bob, "list", "", "pods", "a", "", true),
            (&bob, "create", "", "pods", "a", "", false),
            (&bob, "list", "", "pods", "b", "", false),
            (&bob, "list", "apps", "pods", "a", "", false),
            (&user("carl", &["g"]), "create", "apps", "deployments", "a", "", true),
            (&user("carl", &[]), "create", "apps", "deployments", "a", "", false),
            (&user("dora", &["g"]), "create", "apps", "deployments", "a", "", false),
            // The old form.
            (&user("old", &[]), "create", "any", "pods", "x", "", true),
            (&user("old", &[]), "create", "", "secrets", "x", "", false),
            (&user("old", &[]), "get", "", "", "", "/metrics", false),
            (&user("x", &["everything"]), "create", "any", "secrets", "x", "", true),
            (&user("x", &["everything"]), "get", "", "", "", "/metrics", true),
        ] {
            let found = check(who, verb, group, resource, namespace, path);
            assert_eq!(found, allowed, "{} {verb} {group} {resource} {namespace} {path}", who.name);
        }
        let nothing = abac.authorize(&bob, &Action { verb: "get", resource: "secrets", ..Action::default() });
        assert_eq!(nothing, Decision::NoOpinion("No policy matched.".into()));
    }

    #[test]
    fn rules_are_listed() {
        let text = [
            line(
                r#"{"user": "bob", "namespace": "a", "resource": "pods", "apiGroup": "x", "readonly": true}"#,
            ),
            line(r#"{"user": "bob", "namespace": "*", "nonResourcePath": "/a"}"#),
            line(r#"{"user": "bob", "namespace": "b", "resource": "pods"}"#),
        ];
        let rules = Abac::parse(&text.join("\n")).unwrap().rules_for(&user("bob", &[]), "a");
        let list = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            rules,
            [
                Rule {
                    verbs: list(&READS),
                    api_groups: list(&["x"]),
                    resources: list(&["pods"]),
                    ..Rule::default()
                },
                Rule { verbs: list(&["*"]), non_resource_urls: list(&["/a"]), ..Rule::default() },
            ]
        );
    }

    #[test]
    fn what_is_no_policy_is_named() {
        for (text, part) in [
            ("\n{", ", line 2: {: "),
            (
                r#"{"kind": "Policy", "apiVersion": "v1"}"#,
                r#"no kind "Policy" is registered for version "v1""#,
            ),
            (r#"{"kind": "Other", "apiVersion": "v1"}"#, r#"no kind "Other""#),
            (r#"{"apiVersion": "abac.authorization.kubernetes.io/v1beta1"}"#, "'Kind' is missing"),
            (&line(r#"{"user": 1}"#), ", line 1: "),
            (&format!("#\n{}", "x".repeat(MAX_LINE + 1)), ": line 2 is longer"),
        ] {
            let error = Abac::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
