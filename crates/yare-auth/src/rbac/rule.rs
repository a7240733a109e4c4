//! One rule of a role: what it allows, what it covers of another, and how it is told.

use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use super::Action;
use crate::gotext;

/// `rbac.authorization.k8s.io/v1.PolicyRule`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Operations; `*` is all.
    pub verbs: Vec<String>,
    /// Groups; `*` is all.
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*`, `*/scale`
    pub resources: Vec<String>,
    /// Names; none is all.
    pub resource_names: Vec<String>,
    /// Paths; a trailing `*` matches what follows.
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether the rule allows `action`.
    pub fn allows(&self, action: &Action<'_>) -> bool {
        let verb = self.verbs.iter().any(|v| v == "*" || v == action.verb);
        if action.resource.is_empty() {
            return verb && self.non_resource_urls.iter().any(|url| url_matches(url, action.path));
        }
        verb && self.api_groups.iter().any(|g| g == "*" || g == action.group)
            && self.resources.iter().any(|r| resource_matches(r, action.resource, action.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == action.name))
    }

    /// The rules that allow everything.
    pub fn everything() -> [Self; 2] {
        let all = || vec!["*".to_owned()];
        [
            Self { verbs: all(), api_groups: all(), resources: all(), ..Self::default() },
            Self { verbs: all(), non_resource_urls: all(), ..Self::default() },
        ]
    }

    /// The rule as it stands in an API object.
    pub fn to_json(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (key, list) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                out.insert(key.into(), list.clone().into());
            }
        }
        Value::Object(out)
    }

    /// How many [`parts`](Self::parts) it has.
    pub(super) fn size(&self) -> usize {
        let resources = self.api_groups.len().saturating_mul(self.resources.len());
        let resources = resources.saturating_mul(self.resource_names.len().max(1));
        self.verbs.len().saturating_mul(resources.saturating_add(self.non_resource_urls.len()))
    }

    /// The rule taken apart: each part has one verb, one group and resource (or URL) and at most one name.
    pub(super) fn parts(&self) -> impl Iterator<Item = Rule> + '_ {
        let one = |s: &String| vec![s.clone()];
        let urls = self.verbs.iter().flat_map(move |v| {
            self.non_resource_urls.iter().map(move |u| Rule {
                verbs: one(v),
                non_resource_urls: one(u),
                ..Rule::default()
            })
        });
        let names: Vec<Vec<String>> = if self.resource_names.is_empty() {
            vec![Vec::new()]
        } else {
            self.resource_names.iter().map(one).collect()
        };
        let resources = self.verbs.iter().flat_map(move |v| {
            let names = names.clone();
            self.api_groups.iter().flat_map(move |g| {
                let names = names.clone();
                self.resources.iter().flat_map(move |r| {
                    names.clone().into_iter().map(move |n| Rule {
                        verbs: one(v),
                        api_groups: one(g),
                        resources: one(r),
                        resource_names: n,
                        ..Rule::default()
                    })
                })
            })
        });
        urls.chain(resources)
    }

    /// Whether this rule allows all that `part` (one of [`Rule::parts`]) does.
    pub(super) fn covers(&self, part: &Rule) -> bool {
        let has = |list: &[String], wanted: &[String]| {
            wanted.iter().all(|w| list.iter().any(|l| l == "*" || l == w))
        };
        if !has(&self.verbs, &part.verbs) {
            return false;
        }
        if let Some(url) = part.non_resource_urls.first() {
            return self.non_resource_urls.iter().any(|own| own == url || url_matches(own, url));
        }
        has(&self.api_groups, &part.api_groups)
            && part.resources.iter().all(|wanted| {
                let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
                self.resources.iter().any(|own| own == wanted || resource_matches(own, resource, subresource))
            })
            && (self.resource_names.is_empty()
                || (!part.resource_names.is_empty()
                    && part.resource_names.iter().all(|n| self.resource_names.contains(n))))
    }
}

fn url_matches(pattern: &str, path: &str) -> bool {
    pattern == "*" || pattern == path || pattern.strip_suffix('*').is_some_and(|p| path.starts_with(p))
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    match pattern.split_once('/') {
        Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
        Some((res, sub)) => res == resource && sub == subresource,
        None => subresource.is_empty() && pattern == resource,
    }
}

/// How upstream writes rules in the message that refuses an escalation: those that differ in their verb only
/// become one, and they stand in order.
pub fn describe_rules(rules: &[Rule]) -> String {
    let mut compact: Vec<Rule> = Vec::new();
    for rule in rules {
        let simple =
            rule.api_groups.len() == 1 && rule.resources.len() == 1 && rule.resource_names.len() <= 1;
        let like = |other: &&mut Rule| {
            other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
        };
        match compact.iter_mut().find(like).filter(|_| simple) {
            Some(known) => known.verbs.extend_from_slice(&rule.verbs),
            None => compact.push(rule.clone()),
        }
    }
    let mut lines: Vec<String> = compact
        .iter()
        .map(|rule| {
            let mut out = String::from("{");
            for (name, list) in [
                ("APIGroups", &rule.api_groups),
                ("Resources", &rule.resources),
                ("NonResourceURLs", &rule.non_resource_urls),
                ("ResourceNames", &rule.resource_names),
                ("Verbs", &rule.verbs),
            ] {
                if !list.is_empty() {
                    let separator = if out.len() > 1 { ", " } else { "" };
                    // Writing to a string cannot fail.
                    let _ = write!(out, "{separator}{name}:{}", gotext::list(list));
                }
            }
            out.push('}');
            out
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines.join("\n")
}
