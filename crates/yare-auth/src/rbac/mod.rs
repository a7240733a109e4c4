//! Role-based access control: who may do what, from Role, ClusterRole and their bindings.
//!
//! The API server tells [`Rbac`] each change of these four kinds; a decision then looks only at bindings that
//! name the caller.

mod rule;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, RwLock},
};

use serde::Deserialize;
use yare_schema::selector::{FieldOperator, FieldRequirement, Requirement};

use crate::{
    gotext,
    user::{MASTERS, User},
};

pub use rule::{Rule, describe_rules};

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Action<'a> {
    /// `get`, `create`, …
    pub verb: &'a str,
    /// API group, empty for core.
    pub group: &'a str,
    /// API version; `*` or empty: any.
    pub version: &'a str,
    /// Plural resource; empty for a [`path`](Self::path).
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Namespace, empty at cluster scope.
    pub namespace: &'a str,
    /// Object's name, empty where there is none.
    pub name: &'a str,
    /// The path of what is not a resource (`/healthz`).
    pub path: &'a str,
    /// The field selector that confines a list, watch or collection deletion. Requirements only narrow, so
    /// those that could not be read are left out.
    pub fields: &'a [FieldRequirement],
    /// The label selector, in the same way.
    pub labels: &'a [Requirement],
}

impl Action<'_> {
    /// Whether the field selector confines the action to objects whose `field` is `value`.
    pub fn selects(&self, field: &str, value: &str) -> bool {
        self.fields
            .iter()
            .any(|r| &*r.field == field && r.operator == FieldOperator::Equals && &*r.value == value)
    }
}

/// What an authorizer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, for this reason.
    Allow(String),
    /// No, whatever the authorizers after this one would say.
    Deny(String),
    /// Not that it knows; the text says what was missing.
    NoOpinion(String),
}

/// Who a binding names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    User(String),
    Group(String),
}

#[derive(Clone, Debug)]
struct Binding {
    role_kind: RoleKind,
    role: String,
    subjects: Vec<Subject>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RoleKind {
    Role,
    ClusterRole,
}

#[derive(Default)]
struct Tables {
    /// Key: `name` or `namespace/name`.
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    roles: HashMap<String, Arc<[Rule]>>,
    cluster_bindings: BTreeMap<String, Binding>,
    bindings: BTreeMap<String, Binding>,
    /// Which bindings name a subject.
    by_subject: BySubject,
    cluster_by_subject: BySubject,
}

/// Keys of bindings by whom they name. Two maps, so that a look-up borrows the name it has.
#[derive(Default)]
struct BySubject {
    users: HashMap<String, BTreeSet<String>>,
    groups: HashMap<String, BTreeSet<String>>,
}

impl BySubject {
    fn map(&mut self, subject: &Subject) -> (&mut HashMap<String, BTreeSet<String>>, String) {
        match subject {
            Subject::User(name) => (&mut self.users, name.clone()),
            Subject::Group(name) => (&mut self.groups, name.clone()),
        }
    }

    fn add(&mut self, subject: &Subject, key: &str) {
        let (map, name) = self.map(subject);
        map.entry(name).or_default().insert(key.to_owned());
    }

    fn remove(&mut self, subject: &Subject, key: &str) {
        let (map, name) = self.map(subject);
        if let Some(keys) = map.get_mut(&name) {
            keys.remove(key);
            if keys.is_empty() {
                map.remove(&name);
            }
        }
    }

    fn of(&self, subject: Named<'_>) -> impl Iterator<Item = &String> {
        let keys = match subject {
            Named::User(name) => self.users.get(name),
            Named::Group(name) => self.groups.get(name),
        };
        keys.into_iter().flatten()
    }
}

/// A user or group that is looked for.
#[derive(Clone, Copy)]
enum Named<'a> {
    User(&'a str),
    Group(&'a str),
}

impl Named<'_> {
    fn describe(self) -> String {
        match self {
            Self::User(name) => format!("User {name:?}"),
            Self::Group(name) => format!("Group {name:?}"),
        }
    }
}

/// The most parts that the rules of one grant are taken apart into.
const MAX_PARTS: usize = 100_000;

/// The RBAC authorizer.
#[derive(Default)]
pub struct Rbac {
    tables: RwLock<Tables>,
}

/// The kinds that [`Rbac::apply`] takes, as resources of `rbac.authorization.k8s.io`.
pub const RESOURCES: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

impl Rbac {
    /// Takes in a change: `key` is `name` or `namespace/name`, `object` its JSON or `None` where it is gone.
    /// An object that cannot be read grants nothing.
    pub fn apply(&self, resource: &str, key: &str, object: Option<&[u8]>) {
        // A poisoned lock means a panic while writing; the tables hold whole entries all the same.
        let mut tables = self.tables.write().unwrap_or_else(|e| e.into_inner());
        let tables = &mut *tables;
        match resource {
            "clusterroles" => apply_role(&mut tables.cluster_roles, key, object),
            "roles" => apply_role(&mut tables.roles, key, object),
            "clusterrolebindings" => {
                apply_binding(&mut tables.cluster_bindings, &mut tables.cluster_by_subject, key, object);
            }
            "rolebindings" => apply_binding(&mut tables.bindings, &mut tables.by_subject, key, object),
            _ => {}
        }
    }

    /// Whether `user` may do `action`.
    pub fn authorize(&self, user: &User, action: &Action<'_>) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow(String::new());
        }
        let mut missing = BTreeSet::new();
        let found = self.visit(user, action.namespace, &mut missing, |rules, describe| {
            rules.iter().any(|rule| rule.allows(action)).then(describe)
        });
        match found {
            Some(reason) => Decision::Allow(format!("RBAC: allowed by {reason}")),
            None if missing.is_empty() => Decision::NoOpinion(String::new()),
            None => {
                let missing: Vec<String> = missing.into_iter().collect();
                Decision::NoOpinion(format!("RBAC: {}", gotext::aggregate(&missing)))
            }
        }
    }

    /// All rules that hold for `user` in `namespace`, and in one line what could not be found.
    pub fn rules_for(&self, user: &User, namespace: &str) -> (Vec<Rule>, String) {
        let (mut out, mut missing) = (Vec::new(), BTreeSet::new());
        self.visit(user, namespace, &mut missing, |rules, _| {
            out.extend_from_slice(rules);
            None::<()>
        });
        let missing: Vec<String> = missing.into_iter().collect();
        (out, gotext::aggregate(&missing))
    }

    /// The rules that a role object or the role a binding refers to holds; `None` where it does not exist.
    pub fn role_rules(&self, cluster: bool, key: &str) -> Option<Arc<[Rule]>> {
        let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
        if cluster { tables.cluster_roles.get(key).cloned() } else { tables.roles.get(key).cloned() }
    }

    /// The parts of `rules` that `user` does not hold itself in `namespace` (empty: cluster-wide): nobody may
    /// grant more than he has. A rule of more than [`MAX_PARTS`] is held as a whole or not at all, for their
    /// number is the product of lists that a request may make long.
    pub fn not_held(&self, user: &User, namespace: &str, rules: &[Rule]) -> Vec<Rule> {
        if user.in_group(MASTERS) {
            return Vec::new();
        }
        let (held, _) = self.rules_for(user, namespace);
        let is_held = |part: &Rule| held.iter().any(|own| own.covers(part));
        let mut budget = MAX_PARTS;
        let mut missing = Vec::new();
        for rule in rules.iter().filter(|r| r.non_resource_urls.len() > 1 || !is_held(r)) {
            match budget.checked_sub(rule.size()) {
                Some(left) => {
                    budget = left;
                    missing.extend(rule.parts().filter(|part| !is_held(part)));
                }
                None => missing.push(rule.clone()),
            }
        }
        missing
    }

    /// Calls `see` with the rules of each role bound to `user`, until it returns something.
    fn visit<T>(
        &self,
        user: &User,
        namespace: &str,
        missing: &mut BTreeSet<String>,
        mut see: impl FnMut(&[Rule], &dyn Fn() -> String) -> Option<T>,
    ) -> Option<T>
    where
        T: Sized,
    {
        let tables = self.tables.read().unwrap_or_else(|e| e.into_inner());
        let subjects =
            std::iter::once(Named::User(&user.name)).chain(user.groups.iter().map(|g| Named::Group(g)));
        for subject in subjects {
            for name in tables.cluster_by_subject.of(subject) {
                let Some(binding) = tables.cluster_bindings.get(name) else { continue };
                let Some(rules) = tables.cluster_roles.get(&binding.role) else {
                    missing.insert(not_found("clusterrole", &binding.role));
                    continue;
                };
                let describe = || {
                    let role = &binding.role;
                    format!("ClusterRoleBinding {name:?} of ClusterRole {role:?} to {}", subject.describe())
                };
                if let Some(out) = see(rules, &describe) {
                    return Some(out);
                }
            }
            if namespace.is_empty() {
                continue;
            }
            for key in tables.by_subject.of(subject) {
                let Some((place, name)) = key.split_once('/') else { continue };
                if place != namespace {
                    continue;
                }
                let Some(binding) = tables.bindings.get(key) else { continue };
                let (rules, kind) = match binding.role_kind {
                    RoleKind::ClusterRole => (tables.cluster_roles.get(&binding.role), "ClusterRole"),
                    RoleKind::Role => (tables.roles.get(&format!("{namespace}/{}", binding.role)), "Role"),
                };
                let Some(rules) = rules else {
                    missing.insert(not_found(&kind.to_lowercase(), &binding.role));
                    continue;
                };
                let describe = || {
                    let (role, who) = (&binding.role, subject.describe());
                    format!("RoleBinding \"{name}/{namespace}\" of {kind} {role:?} to {who}")
                };
                if let Some(out) = see(rules, &describe) {
                    return Some(out);
                }
            }
        }
        None
    }
}

fn not_found(kind: &str, name: &str) -> String {
    format!("{kind}.rbac.authorization.k8s.io {name:?} not found")
}

fn apply_role(roles: &mut HashMap<String, Arc<[Rule]>>, key: &str, object: Option<&[u8]>) {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Role {
        rules: Option<Vec<Rule>>,
    }
    match object {
        Some(json) => {
            let role: Role = serde_json::from_slice(json).unwrap_or_default();
            roles.insert(key.to_owned(), role.rules.unwrap_or_default().into());
        }
        None => {
            roles.remove(key);
        }
    }
}

fn apply_binding(
    bindings: &mut BTreeMap<String, Binding>,
    by_subject: &mut BySubject,
    key: &str,
    object: Option<&[u8]>,
) {
    if let Some(old) = bindings.remove(key) {
        for subject in &old.subjects {
            by_subject.remove(subject, key);
        }
    }
    let Some(binding) = object.and_then(|json| read_binding(key, json)) else { return };
    for subject in &binding.subjects {
        by_subject.add(subject, key);
    }
    bindings.insert(key.to_owned(), binding);
}

fn read_binding(key: &str, json: &[u8]) -> Option<Binding> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        role_ref: RawRole,
        #[serde(default)]
        subjects: Option<Vec<RawSubject>>,
    }
    #[derive(Deserialize)]
    struct RawRole {
        kind: String,
        name: String,
    }
    #[derive(Deserialize)]
    struct RawSubject {
        kind: String,
        name: String,
        #[serde(default)]
        namespace: String,
    }
    let raw: Raw = serde_json::from_slice(json).ok()?;
    let own = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let subjects = raw.subjects.unwrap_or_default().into_iter().filter_map(|s| match s.kind.as_str() {
        "User" => Some(Subject::User(s.name)),
        "Group" => Some(Subject::Group(s.name)),
        "ServiceAccount" => {
            let namespace = if s.namespace.is_empty() { own } else { &s.namespace };
            Some(Subject::User(format!("system:serviceaccount:{namespace}:{}", s.name)))
        }
        _ => None,
    });
    let role_kind = if raw.role_ref.kind == "Role" { RoleKind::Role } else { RoleKind::ClusterRole };
    Some(Binding { role_kind, role: raw.role_ref.name, subjects: subjects.collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rbac() -> Rbac {
        let rbac = Rbac::default();
        let put = |resource: &str, key: &str, value: Value| {
            rbac.apply(resource, key, Some(value.to_string().as_bytes()));
        };
        put(
            "clusterroles",
            "reader",
            json!({"rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/scale"]},
                {"verbs": ["get"], "nonResourceURLs": ["/healthz", "/openapi/*"]},
            ]}),
        );
        put(
            "roles",
            "ns/one",
            json!({"rules": [{"verbs": ["*"], "apiGroups": [""], "resources": ["configmaps"],
                "resourceNames": ["c"]}]}),
        );
        put(
            "clusterrolebindings",
            "all",
            json!({"roleRef": {"kind": "ClusterRole", "name": "reader"},
                "subjects": [{"kind": "Group", "name": "readers"}]}),
        );
        put(
            "rolebindings",
            "ns/b",
            json!({"roleRef": {"kind": "Role", "name": "one"},
                "subjects": [{"kind": "ServiceAccount", "name": "sa", "namespace": "other"}]}),
        );
        put(
            "rolebindings",
            "ns/gone",
            json!({"roleRef": {"kind": "ClusterRole", "name": "absent"},
                "subjects": [{"kind": "User", "name": "u"}]}),
        );
        rbac
    }

    #[test]
    fn decisions() {
        let rbac = rbac();
        let reader = User::new("r", &["readers"]);
        let sa = User::service_account("other", "sa", "");
        let action = |verb, resource, subresource, namespace, name| Action {
            verb,
            resource,
            subresource,
            namespace,
            name,
            ..Action::default()
        };
        let cases = [
            (&reader, action("get", "pods", "", "ns", "p"), true),
            (&reader, action("get", "pods", "", "", ""), true),
            (&reader, action("delete", "pods", "", "ns", "p"), false),
            (&reader, action("get", "pods", "log", "ns", "p"), false),
            (&reader, action("get", "deployments", "scale", "ns", "p"), true),
            (&sa, action("delete", "configmaps", "", "ns", "c"), true),
            (&sa, action("delete", "configmaps", "", "ns", "d"), false),
            (&sa, action("delete", "configmaps", "", "elsewhere", "c"), false),
            (&reader, Action { verb: "get", path: "/healthz", ..Action::default() }, true),
            (&reader, Action { verb: "get", path: "/openapi/v3", ..Action::default() }, true),
            (&reader, Action { verb: "get", path: "/healthz/x", ..Action::default() }, false),
        ];
        for (user, action, allowed) in cases {
            let got = rbac.authorize(user, &action);
            assert_eq!(matches!(got, Decision::Allow(_)), allowed, "{action:?}: {got:?}");
        }
    }

    #[test]
    fn reasons_name_binding_role_and_subject() {
        let rbac = rbac();
        let action = Action { verb: "get", resource: "pods", namespace: "ns", ..Action::default() };
        assert_eq!(
            rbac.authorize(&User::new("r", &["readers"]), &action),
            Decision::Allow(
                r#"RBAC: allowed by ClusterRoleBinding "all" of ClusterRole "reader" to Group "readers""#
                    .into()
            )
        );
        assert_eq!(
            rbac.authorize(&User::new("u", &[]), &action),
            Decision::NoOpinion(r#"RBAC: clusterrole.rbac.authorization.k8s.io "absent" not found"#.into())
        );
    }

    #[test]
    fn a_binding_that_changes_or_goes_takes_its_grants_along() {
        let rbac = rbac();
        let reader = User::new("r", &["readers"]);
        let action = Action { verb: "get", resource: "pods", namespace: "ns", ..Action::default() };
        rbac.apply("clusterrolebindings", "all", None);
        assert_eq!(rbac.authorize(&reader, &action), Decision::NoOpinion(String::new()));
    }

    #[test]
    fn nobody_grants_more_than_he_holds() {
        let rbac = rbac();
        let reader = User::new("r", &["readers"]);
        let rule = |verbs: &[&str], resources: &[&str]| Rule {
            verbs: verbs.iter().map(|s| (*s).into()).collect(),
            api_groups: vec![String::new()],
            resources: resources.iter().map(|s| (*s).into()).collect(),
            ..Rule::default()
        };
        assert!(rbac.not_held(&reader, "ns", &[rule(&["get"], &["pods"])]).is_empty());
        let missing = rbac.not_held(&reader, "ns", &[rule(&["get", "delete"], &["pods"])]);
        assert_eq!(missing, [rule(&["delete"], &["pods"])]);
        assert!(rbac.not_held(&User::admin(), "", &[rule(&["*"], &["*"])]).is_empty());
        let missing = rbac.not_held(&reader, "ns", &[rule(&["get", "delete", "watch"], &["pods", "nodes"])]);
        assert_eq!(
            describe_rules(&missing),
            "{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\" \"watch\"]}\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\" \"watch\"]}"
        );
    }
}
