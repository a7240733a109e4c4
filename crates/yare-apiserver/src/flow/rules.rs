//! FlowSchemas read into what is matched per request: no JSON, no allocation.

use serde_json::Value;
use yare_auth::User;
use yare_kinds::view::View;

use crate::path::RequestInfo;

/// What tells the flows of one schema apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Distinguisher {
    /// The user's name.
    User,
    /// The namespace.
    Namespace,
}

impl Distinguisher {
    /// Of this request.
    pub fn of<'a>(self, info: &'a RequestInfo, user: &'a User) -> &'a str {
        match self {
            Self::User => &user.name,
            Self::Namespace => &info.namespace,
        }
    }
}

/// `spec.rules` of a FlowSchema.
pub struct Rules(Vec<Rule>);

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<PathRule>,
}

enum Subject {
    AnyUser,
    User(String),
    AnyGroup,
    Group(String),
    Account {
        namespace: String,
        /// None: all of the namespace.
        name: Option<String>,
    },
}

/// Any, or one of these.
enum Names {
    Any,
    Some(Vec<String>),
}

struct ResourceRule {
    verbs: Names,
    groups: Names,
    resources: Names,
    namespaces: Names,
    cluster: bool,
}

struct PathRule {
    verbs: Names,
    paths: Vec<String>,
}

const ACCOUNT_PREFIX: &str = "system:serviceaccount:";

impl Rules {
    /// Reads `spec`.
    pub fn read(spec: &Value) -> Self {
        Self(
            spec.items("rules")
                .iter()
                .map(|rule| Rule {
                    subjects: rule.items("subjects").iter().filter_map(Subject::read).collect(),
                    resources: rule.items("resourceRules").iter().map(ResourceRule::read).collect(),
                    paths: rule
                        .items("nonResourceRules")
                        .iter()
                        .map(|rule| PathRule {
                            verbs: Names::read(rule, "verbs"),
                            paths: rule.strings("nonResourceURLs").into_iter().map(str::to_owned).collect(),
                        })
                        .collect(),
                })
                .collect(),
        )
    }

    /// Whether the request is one of these.
    pub fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        self.0.iter().any(|rule| {
            rule.subjects.iter().any(|subject| subject.is(user))
                && if info.is_resource {
                    rule.resources.iter().any(|r| r.matches(info))
                } else {
                    rule.paths.iter().any(|r| r.matches(info))
                }
        })
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Self> {
        match subject.str_at("kind") {
            "User" => Some(match subject.str_opt("user.name")? {
                "*" => Self::AnyUser,
                name => Self::User(name.to_owned()),
            }),
            "Group" => Some(match subject.str_opt("group.name")? {
                "*" => Self::AnyGroup,
                name => Self::Group(name.to_owned()),
            }),
            "ServiceAccount" => {
                let name = subject.str_opt("serviceAccount.name")?;
                Some(Self::Account {
                    namespace: subject.str_at("serviceAccount.namespace").to_owned(),
                    name: (name != "*").then(|| name.to_owned()),
                })
            }
            _ => None,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Self::AnyUser | Self::AnyGroup => true,
            Self::User(name) => *name == user.name,
            Self::Group(name) => user.groups.iter().any(|group| group == name),
            Self::Account { namespace, name } => user
                .name
                .strip_prefix(ACCOUNT_PREFIX)
                .and_then(|rest| rest.strip_prefix(namespace.as_str())?.strip_prefix(':'))
                .is_some_and(|account| name.as_ref().is_none_or(|name| name == account)),
        }
    }
}

impl Names {
    fn read(rule: &Value, field: &str) -> Self {
        match rule.strings(field).as_slice() {
            ["*"] => Self::Any,
            names => Self::Some(names.iter().map(|n| (*n).to_owned()).collect()),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Some(names) => names.iter().any(|n| n == name),
        }
    }

    /// Whether `resource/subresource` is among them.
    fn has_resource(&self, resource: &str, subresource: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Some(names) if subresource.is_empty() => names.iter().any(|n| n == resource),
            Self::Some(names) => {
                names.iter().any(|n| n.split_once('/').is_some_and(|parts| parts == (resource, subresource)))
            }
        }
    }
}

impl ResourceRule {
    fn read(rule: &Value) -> Self {
        Self {
            verbs: Names::read(rule, "verbs"),
            groups: Names::read(rule, "apiGroups"),
            resources: Names::read(rule, "resources"),
            namespaces: Names::read(rule, "namespaces"),
            cluster: rule.bool_at("clusterScope"),
        }
    }

    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(info.verb)
            && self.resources.has_resource(&info.resource, &info.subresource)
            && self.groups.has(&info.group)
            && if info.namespace.is_empty() { self.cluster } else { self.namespaces.has(&info.namespace) }
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        // A path also stands for what is below it.
        let below = |path: &str| {
            let prefix = path.trim_end_matches('*').trim_end_matches('/');
            info.path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        self.verbs.has(info.verb)
            && self.paths.iter().any(|path| path == "*" || *path == info.path || below(path))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resource(verb: &'static str, group: &str, resource: &str, namespace: &str) -> RequestInfo {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn subjects() {
        let alice = User::new("alice", &["dev"]);
        let account = User::service_account("kube-system", "gc", "");
        for (subject, of_alice, of_account) in [
            (json!({"kind": "User", "user": {"name": "alice"}}), true, false),
            (json!({"kind": "User", "user": {"name": "*"}}), true, true),
            (json!({"kind": "Group", "group": {"name": "dev"}}), true, false),
            (json!({"kind": "Group", "group": {"name": "*"}}), true, true),
            (json!({"kind": "Group", "group": {"name": "system:serviceaccounts"}}), false, true),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube-system"}}),
                false,
                true,
            ),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"name": "gc", "namespace": "kube-system"}}),
                false,
                true,
            ),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"name": "g", "namespace": "kube-system"}}),
                false,
                false,
            ),
            (
                json!({"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "kube"}}),
                false,
                false,
            ),
            (json!({"kind": "User"}), false, false),
            (json!({"kind": "Robot"}), false, false),
        ] {
            let is = |user| Subject::read(&subject).is_some_and(|s| s.is(user));
            assert_eq!((is(&alice), is(&account)), (of_alice, of_account), "{subject}");
        }
    }

    #[test]
    fn rules() {
        let user = User::new("alice", &[]);
        let rules = |resource: Value, path: Value| {
            Rules::read(&json!({"rules": [{
                "subjects": [{"kind": "User", "user": {"name": "alice"}}],
                "resourceRules": [resource], "nonResourceRules": [path],
            }]}))
        };
        let nodes = rules(
            json!({"verbs": ["get", "update"], "apiGroups": [""], "resources": ["nodes", "nodes/status"], "clusterScope": true}),
            json!({"verbs": ["get"], "nonResourceURLs": ["/livez", "/debug/*"]}),
        );
        for (verb, group, name, namespace, want) in [
            ("get", "", "nodes", "", true),
            ("update", "", "nodes/status", "", true),
            ("update", "", "nodes/proxy", "", false),
            ("delete", "", "nodes", "", false),
            ("get", "apps", "nodes", "", false),
            ("get", "", "nodes", "a", false),
        ] {
            assert_eq!(nodes.matches(&resource(verb, group, name, namespace), &user), want, "{verb} {name}");
        }
        for (verb, path, want) in [
            ("get", "/livez", true),
            ("get", "/livez/ping", true),
            ("get", "/livezz", false),
            ("get", "/debug/x/y", true),
            ("post", "/livez", false),
        ] {
            let info = RequestInfo { verb, path: path.into(), ..RequestInfo::default() };
            assert_eq!(nodes.matches(&info, &user), want, "{verb} {path}");
        }
        let namespaced = rules(
            json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["a"]}),
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]}),
        );
        assert!(namespaced.matches(&resource("get", "x", "y/z", "a"), &user));
        assert!(!namespaced.matches(&resource("get", "x", "y", "b"), &user));
        assert!(!namespaced.matches(&resource("get", "x", "y", ""), &user));
        assert!(!namespaced.matches(&resource("get", "x", "y", "a"), &User::new("bob", &[])));
    }
}
