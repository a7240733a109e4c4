//! Which requests a webhook or policy sees: rules and match conditions.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::{
    features::Gates,
    field::{ErrorKind, FieldError, Path},
};

use crate::{
    check::{Check, Errors},
    expressions::{Age, Compiled, Compiler, Returns, Scope, Unfit},
    meta::validate_label_selector,
    names,
    strategy::rules::check_items,
    view::{View, ViewMut},
};

pub const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
pub const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
pub const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
pub const SELECTORS: [&str; 2] = ["namespaceSelector", "objectSelector"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];
const MAX_CONDITIONS: usize = 64;

/// Defaults of what webhooks and policies match alike.
pub fn default_match(object: &mut Value, lists: &[&str]) {
    object.default_absent("matchPolicy", "Equivalent");
    for selector in SELECTORS {
        object.default_absent(selector, json!({}));
    }
    for list in lists {
        for rule in object.items_mut(list) {
            rule.default_absent("scope", "*");
        }
    }
}

/// Errors in a rule with operations.
pub fn check_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    let wildcard = |errs: &mut Errors, field: &str, what: &str| {
        let (p, values) = (path.child(field), rule.strings(field));
        if values.is_empty() {
            errs.required(&p, "");
        }
        if values.len() > 1 && values.contains(&"*") {
            errs.invalid(&p, values, format!("if '*' is present, must not specify other {what}"));
        }
    };
    wildcard(errs, "operations", "operations");
    let p = path.child("operations");
    for (i, operation) in rule.strings("operations").iter().enumerate() {
        errs.one_of(&p.index(i), operation, OPERATIONS);
    }
    wildcard(errs, "apiGroups", "API groups");
    wildcard(errs, "apiVersions", "API versions");
    let p = path.child("apiVersions");
    for (i, version) in rule.strings("apiVersions").iter().enumerate() {
        errs.non_empty(&p.index(i), version);
    }
    check_resources(errs, &path.child("resources"), &rule.strings("resources"));
    if let Some(scope) = rule.str_opt("scope") {
        errs.one_of(&path.child("scope"), scope, SCOPES);
    }
}

fn check_resources(errs: &mut Errors, path: &Path<'_>, resources: &[&str]) {
    if resources.is_empty() {
        errs.required(path, "");
    }
    let (mut whole, mut subs): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (i, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            errs.required(&path.index(i), "");
            continue;
        }
        let Some((kind, sub)) = resource.split_once('/') else {
            // As upstream has it, the last one decides.
            plain = *resource != "*";
            continue;
        };
        if whole.contains(&kind) {
            let detail = format!("if '{kind}/*' is present, must not specify {resource}");
            errs.invalid(&path.index(i), *resource, detail);
        }
        if subs.contains(&sub) {
            let detail = format!("if '*/{sub}' is present, must not specify {resource}");
            errs.invalid(&path.index(i), *resource, detail);
        }
        if sub == "*" {
            whole.push(kind);
        }
        if kind == "*" {
            subs.push(sub);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        errs.invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources");
    }
    if resources.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errs.invalid(path, resources.to_vec(), detail);
    }
}

/// Errors in the `MatchResources` of a policy or binding.
pub fn check_match_resources(errs: &mut Errors, path: &Path<'_>, resources: &Value) {
    errs.one_of(&path.child("matchPolicy"), resources.str_at("matchPolicy"), MATCH_POLICIES);
    for field in SELECTORS {
        let p = path.child(field);
        if resources.has(field) {
            errs.extend(validate_label_selector(resources.at(field), &p));
        } else {
            errs.required(&p, "");
        }
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        let list = path.child(field);
        for (i, rule) in resources.items(field).iter().enumerate() {
            let path = list.index(i);
            let (p, names) = (path.child("resourceNames"), rule.strings("resourceNames"));
            let mut seen = HashSet::new();
            for (j, name) in names.iter().enumerate() {
                errs.each(&p.index(j), *name, names::path_segment(name));
                if !seen.insert(*name) {
                    errs.duplicate(&p.index(j), *name);
                }
            }
            check_rule(errs, &path, rule);
        }
    }
}

/// Expressions of an object that were there before an update: they may use what is newest, and a mistake in them
/// that was let in once is no reason to refuse other changes.
#[derive(Default)]
pub struct Before<'a>(HashSet<&'a str>);

impl<'a> Before<'a> {
    /// The expressions under `field` of these.
    pub fn of(objects: impl IntoIterator<Item = &'a Value>, field: &str) -> Self {
        Self(objects.into_iter().filter_map(|object| object.str_opt(field)).collect())
    }

    /// How old an expression is.
    pub fn age(&self, expression: &str) -> Age {
        if self.0.contains(expression) { Age::Stored } else { Age::New }
    }
}

/// Errors in an expression.
pub fn check_expression(
    errs: &mut Errors,
    path: &Path<'_>,
    expression: &str,
    compiled: Result<Compiled, Unfit>,
) {
    match compiled {
        Ok(_) => {}
        Err(Unfit { kind: ErrorKind::Internal, why }) => errs.push(FieldError::internal(path, why)),
        Err(Unfit { why, .. }) => errs.invalid(path, expression, why),
    }
}

/// Errors in `matchConditions`; `params`: whether they may read parameters.
pub fn check_conditions(
    errs: &mut Errors,
    path: &Path<'_>,
    conditions: &[Value],
    params: bool,
    before: &Before<'_>,
    gates: &Gates,
) {
    check_items(errs, path, conditions.len(), MAX_CONDITIONS);
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let (p, expression) = (path.child("expression"), condition.str_at("expression").trim());
        if expression.is_empty() {
            errs.required(&p, "");
        } else {
            let (scope, age) = (Scope::of_policy(params), before.age(expression));
            let mut compiler = Compiler::plain().emulating(gates.emulation());
            let compiled = compiler.compile(expression, scope, Returns::Bool, age);
            check_expression(errs, &p, expression, compiled);
        }
        let (p, name) = (path.child("name"), condition.str_at("name"));
        errs.name(&p, name, names::qualified_name);
        if !name.is_empty() && seen.contains(&name) {
            errs.duplicate(&p, name);
        }
        seen.insert(name);
    }
}
