//! Admission policies and their bindings.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use super::{
    check_static_name,
    rules::{
        Before, FAILURE_POLICIES, REINVOCATION_POLICIES, check_conditions, check_expression,
        check_match_resources, default_match,
    },
    static_name_warnings,
};
use crate::{
    check::{Check, Errors},
    expressions::{Compiler, Returns, Scope},
    meta::{validate_conditions, validate_label_selector},
    names,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

const MAX_AUDIT_ANNOTATIONS: usize = 20;
const MAX_AUDIT_EXPRESSION_B: usize = 5 * 1024;
const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge"];
const RULES: [&str; 2] = ["resourceRules", "excludeResourceRules"];

/// `ValidatingAdmissionPolicy` and `MutatingAdmissionPolicy`.
pub struct Policy {
    pub mutating: bool,
}

impl Strategy for Policy {
    fn default(&self, policy: &mut Value) {
        policy.default_absent("spec.failurePolicy", "Fail");
        if let Some(constraints) = policy.at_mut("spec.matchConstraints") {
            default_match(constraints, &RULES);
        }
    }

    fn validate(&self, policy: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.check(policy, None, ctx.gates);
        check_static_name(&mut errs, policy, ctx);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.check(new, Some(old), ctx.gates)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        static_name_warnings(new)
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let path = Path::new("status");
        let mut errs = Errors::new();
        let list = path.child("typeChecking.expressionWarnings");
        for (i, warning) in new.items("status.typeChecking.expressionWarnings").iter().enumerate() {
            let p = list.index(i);
            errs.non_empty(&p.child("warning"), warning.str_at("warning"));
            errs.non_empty(&p.child("fieldRef"), warning.str_at("fieldRef").trim());
        }
        errs.extend(validate_conditions(new.items("status.conditions"), &path.child("conditions")));
        errs
    }

    fn has_status(&self) -> bool {
        !self.mutating
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Policy {
    fn check(&self, policy: &Value, old: Option<&Value>, gates: &Gates) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let old = old.map(|old| old.at("spec"));
        let (path, spec) = (Path::new("spec"), policy.at("spec"));
        errs.one_of(&path.child("failurePolicy"), spec.str_at("failurePolicy"), FAILURE_POLICIES);
        if spec.has("paramKind") {
            check_param_kind(&mut errs, &path.child("paramKind"), spec.at("paramKind"));
        }
        let p = path.child("matchConstraints");
        if spec.has("matchConstraints") {
            check_match_resources(&mut errs, &p, spec.at("matchConstraints"));
            if !spec.is_set("matchConstraints.resourceRules") {
                errs.required(&p.child("resourceRules"), "");
            }
            if self.mutating {
                check_mutating_operations(&mut errs, &p, spec.at("matchConstraints"));
            }
        } else {
            errs.required(&p, "");
        }
        let params = spec.has("paramKind");
        let touched = old.is_none_or(|old| {
            ["paramKind", "matchConditions"].iter().any(|field| !same(spec.at(field), old.at(field)))
        });
        if touched {
            let stored = old.map_or(&[][..], |old| old.items("matchConditions"));
            let (p, before) = (path.child("matchConditions"), Before::of(stored, "expression"));
            check_conditions(&mut errs, &p, spec.items("matchConditions"), params, &before, gates);
        }
        let list = path.child("variables");
        let variables = spec.items("variables");
        let compiler =
            if self.mutating || !variables.is_empty() { Compiler::composing() } else { Compiler::plain() };
        let mut compiler = compiler.emulating(gates.emulation());
        let stored = old.map_or(&[][..], |old| old.items("validations"));
        let before = Before::of(stored, "expression");
        for (i, variable) in variables.iter().enumerate() {
            check_variable(&mut errs, &list.index(i), variable, params, &before, &mut compiler);
        }
        if self.mutating {
            check_mutations(&mut errs, &path, spec, old, &mut compiler);
        } else {
            check_validations(&mut errs, &path, spec, old, &mut compiler);
            check_audit_annotations(
                &mut errs,
                &path,
                spec,
                old,
                policy.str_at("metadata.name"),
                &mut compiler,
            );
        }
        errs
    }
}

fn check_param_kind(errs: &mut Errors, path: &Path<'_>, param: &Value) {
    let (p, api_version) = (path.child("apiVersion"), param.str_at("apiVersion"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        errs.required(&p, "");
    } else if version.contains('/') {
        errs.invalid(&p, api_version, format!("unexpected GroupVersion string: {api_version}"));
    } else {
        let messages = names::dns1123_subdomain(group);
        if !group.is_empty() && !messages.is_empty() {
            errs.invalid(&p, group, messages.join(","));
        }
        let messages = names::dns1035_label(version);
        if version.is_empty() {
            errs.invalid(&p, api_version, "version must be specified");
        } else if !messages.is_empty() {
            errs.invalid(&p, version, messages.join(","));
        }
    }
    let (p, kind) = (path.child("kind"), param.str_at("kind"));
    let messages = names::dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errs.required(&p, "");
    } else if !messages.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", messages.join(","));
        errs.invalid(&p, kind, detail);
    }
}

fn check_mutating_operations(errs: &mut Errors, path: &Path<'_>, resources: &Value) {
    let p = path.child("resourceRules.operations");
    for rule in resources.items("resourceRules") {
        for operation in rule.strings("operations") {
            errs.one_of(&p, operation, MUTATING_OPERATIONS);
        }
    }
}

fn check_variable(
    errs: &mut Errors,
    path: &Path<'_>,
    variable: &Value,
    params: bool,
    before: &Before<'_>,
    compiler: &mut Compiler<'_>,
) {
    let (p, name) = (path.child("name"), variable.str_at("name"));
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.trim().is_empty() {
        errs.required(&p, "name is not specified");
    } else if !name.chars().all(word)
        || name.starts_with(|c: char| c.is_ascii_digit())
        || yare_cel::RESERVED.contains(&name)
    {
        errs.invalid(&p, name, "must be a valid CEL identifier");
    }
    let (p, expression) = (path.child("expression"), variable.str_at("expression"));
    if expression.trim().is_empty() {
        errs.required(&p, "expression is not specified");
    } else {
        let (scope, age) = (Scope::of_policy(params), before.age(expression));
        check_expression(errs, &p, expression, compiler.variable(name, expression, scope, age));
    }
}

fn check_validations(
    errs: &mut Errors,
    path: &Path<'_>,
    spec: &Value,
    old: Option<&Value>,
    compiler: &mut Compiler<'_>,
) {
    let (validations, annotations) = (spec.items("validations"), spec.items("auditAnnotations"));
    let (list, annotation_list) = (path.child("validations"), path.child("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for p in [&list, &annotation_list] {
            errs.required(p, "validations or auditAnnotations must contain at least one item");
        }
        return;
    }
    let params = spec.has("paramKind");
    let stored = old.map_or(&[][..], |old| old.items("validations"));
    let (before, messages) = (Before::of(stored, "expression"), Before::of(stored, "messageExpression"));
    for (i, validation) in validations.iter().enumerate() {
        let path = list.index(i);
        let (p, expression) = (path.child("expression"), validation.str_at("expression"));
        if expression.trim().is_empty() {
            errs.required(&p, "expression is not specified");
        } else {
            let (scope, age) = (Scope::of_policy(params), before.age(expression));
            let compiled = compiler.compile(expression, scope, Returns::Bool, age);
            check_expression(errs, &p, expression, compiled);
        }
        let (p, expression) = (path.child("messageExpression"), validation.str_at("messageExpression"));
        if !expression.trim().is_empty() {
            let (scope, age) = (Scope::of_message(params), messages.age(expression));
            let compiled = compiler.compile(expression, scope, Returns::String, age);
            check_expression(errs, &p, expression, compiled);
        } else if !expression.is_empty() {
            errs.invalid(&p, expression, "must be non-empty if specified");
        }
        let message = validation.str_at("message");
        if !message.is_empty() && message.trim().is_empty() {
            errs.invalid(&path.child("message"), message, "must be non-empty if specified");
        } else if message.trim().contains(['\n', '\r']) {
            errs.invalid(&path.child("message"), message, "must not contain line breaks");
        }
        if let Some(reason) = validation.str_opt("reason") {
            errs.one_of(&path.child("reason"), reason, REASONS);
        }
    }
}

fn check_audit_annotations(
    errs: &mut Errors,
    path: &Path<'_>,
    spec: &Value,
    old: Option<&Value>,
    policy: &str,
    compiler: &mut Compiler<'_>,
) {
    let (annotation_list, annotations) = (path.child("auditAnnotations"), spec.items("auditAnnotations"));
    let scope = Scope::of_policy(spec.has("paramKind"));
    let before = Before::of(old.map_or(&[][..], |old| old.items("auditAnnotations")), "valueExpression");
    if annotations.len() > MAX_AUDIT_ANNOTATIONS {
        errs.invalid(
            &annotation_list,
            annotations.to_vec(),
            format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations"),
        );
    }
    let mut keys: HashSet<&str> = HashSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let path = annotation_list.index(i);
        let (p, key) = (path.child("key"), annotation.str_at("key"));
        let full = format!("{policy}/{key}");
        if policy.is_empty() {
            errs.invalid(&p, key, "requires metadata.name be non-empty");
        } else {
            errs.each(&p, full.as_str(), names::qualified_name(&full));
        }
        let p = path.child("valueExpression");
        let expression = annotation.str_at("valueExpression").trim();
        if expression.is_empty() {
            errs.required(&p, "valueExpression is not specified");
        } else if expression.len() > MAX_AUDIT_EXPRESSION_B {
            errs.required(&p, format!("must not exceed {MAX_AUDIT_EXPRESSION_B} bytes in length"));
        } else {
            let given = annotation.str_at("valueExpression");
            let compiled = compiler.compile(expression, scope, Returns::StringOrNull, before.age(given));
            check_expression(errs, &p, given, compiled);
        }
        if keys.contains(&key) {
            errs.duplicate(&path.child("key"), key);
        }
        keys.insert(key);
    }
}

fn check_mutations(
    errs: &mut Errors,
    path: &Path<'_>,
    spec: &Value,
    old: Option<&Value>,
    compiler: &mut Compiler<'_>,
) {
    /// The type of a patch, the field that then holds it, and what its expression comes to.
    const PATCHES: [(&str, &str, Returns); 2] = [
        ("ApplyConfiguration", "applyConfiguration", Returns::Object),
        ("JSONPatch", "jsonPatch", Returns::Patches),
    ];
    let scope = Scope::of_mutation(spec.has("paramKind"));
    let stored = || old.map_or(&[][..], |old| old.items("mutations")).iter();
    let before = Before::of(stored().flat_map(|m| PATCHES.map(|(_, field, _)| m.at(field))), "expression");
    let list = path.child("mutations");
    if !spec.is_set("mutations") {
        errs.required(&list, "mutations must contain at least one item");
    }
    for (i, mutation) in spec.items("mutations").iter().enumerate() {
        let path = list.index(i);
        let (p, kind) = (path.child("patchType"), mutation.str_at("patchType"));
        if kind.is_empty() {
            errs.required(&p, "");
            continue;
        }
        let Some((_, own, returns)) = PATCHES.iter().find(|(k, ..)| *k == kind) else {
            errs.one_of(&p, kind, &PATCHES.map(|(kind, ..)| kind));
            continue;
        };
        if mutation.has(own) {
            let (p, given) = (path.child(own), mutation.at(own).str_at("expression"));
            let (p, expression) = (p.child("expression"), given.trim());
            if expression.is_empty() {
                errs.required(&p, "");
            } else {
                let compiled = compiler.compile(expression, scope, *returns, before.age(given));
                check_expression(errs, &p, expression, compiled);
            }
        } else {
            errs.required(&path.child(own), format!("must be specified when patchType is {kind}"));
        }
        for (_, other, _) in PATCHES.iter().filter(|(_, f, _)| f != own && mutation.has(f)) {
            let detail = format!("must not be specified when patchType is {kind}");
            errs.invalid(&path.child(other), format!("{{{other}}}"), detail);
        }
    }
    errs.required_one_of(
        &path.child("reinvocationPolicy"),
        spec.str_at("reinvocationPolicy"),
        REINVOCATION_POLICIES,
    );
}

/// `ValidatingAdmissionPolicyBinding` and `MutatingAdmissionPolicyBinding`.
pub struct Binding {
    pub mutating: bool,
}

impl Strategy for Binding {
    fn default(&self, binding: &mut Value) {
        if let Some(resources) = binding.at_mut("spec.matchResources") {
            default_match(resources, &RULES);
        }
    }

    fn validate(&self, binding: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.check(binding);
        check_static_name(&mut errs, binding, ctx);
        errs
    }

    fn validate_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        self.check(new)
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        static_name_warnings(new)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

impl Binding {
    fn check(&self, binding: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), binding.at("spec"));
        errs.name(&path.child("policyName"), spec.str_at("policyName"), names::dns1123_subdomain);
        if spec.has("paramRef") {
            check_param_ref(&mut errs, &path.child("paramRef"), spec.at("paramRef"));
        }
        if spec.has("matchResources") {
            let p = path.child("matchResources");
            check_match_resources(&mut errs, &p, spec.at("matchResources"));
            if self.mutating {
                check_mutating_operations(&mut errs, &p, spec.at("matchResources"));
            }
        }
        if !self.mutating {
            check_actions(&mut errs, &path.child("validationActions"), &spec.strings("validationActions"));
        }
        errs
    }
}

fn check_param_ref(errs: &mut Errors, path: &Path<'_>, reference: &Value) {
    const EXCLUSIVE: &str = "name and selector are mutually exclusive";
    let (name, selector) = (reference.str_at("name"), reference.at("selector"));
    let both = !name.is_empty() && !selector.is_null();
    if !name.is_empty() {
        errs.each(&path.child("name"), name, names::path_segment(name));
    }
    if both {
        errs.forbidden(&path.child("name"), EXCLUSIVE);
    }
    errs.extend(validate_label_selector(selector, &path.child("selector")));
    if both {
        errs.forbidden(&path.child("selector"), EXCLUSIVE);
    }
    if name.is_empty() && selector.is_null() {
        errs.required(path, "one of name or selector must be specified");
    }
    let action = reference.str_at("parameterNotFoundAction");
    errs.required_one_listed(&path.child("parameterNotFoundAction"), action, &["Deny", "Allow"]);
}

fn check_actions(errs: &mut Errors, path: &Path<'_>, actions: &[&str]) {
    let mut seen = HashSet::new();
    for (i, action) in actions.iter().enumerate() {
        errs.one_of(&path.index(i), action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(*action) {
            errs.duplicate(&path.index(i), *action);
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        errs.invalid(
            path,
            actions.to_vec(),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)",
        );
    }
    if actions.is_empty() {
        errs.required(path, "at least one validation action is required");
    }
}
