//! Strategies of the kinds of `flowcontrol.apiserver.k8s.io`.

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::{
    field::{FieldError, Path},
    goprint,
};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors, annotation},
    meta, names, shown,
    view::{View, ViewMut, same},
};

/// `FlowSchema`
pub const FLOW_SCHEMA: &dyn Strategy = &FlowSchema;

/// `PriorityLevelConfiguration`
pub const PRIORITY_LEVEL_CONFIGURATION: &dyn Strategy = &PriorityLevelConfiguration;

const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
/// What one hash of a flow gives to draw its hand of queues from.
const MAX_HASH_BITS: f64 = 60.0;
const EXEMPT: &str = "exempt";
const CATCH_ALL: &str = "catch-all";
/// An annotation that converted objects between versions that are no longer served.
const PRESERVE_ZERO: &str = "flowcontrol.k8s.io/v1beta3-preserve-zero-concurrency-shares";
const VERBS: &[&str] =
    &["get", "list", "create", "update", "delete", "deletecollection", "patch", "watch", "proxy"];

struct FlowSchema;

impl Strategy for FlowSchema {
    fn default(&self, object: &mut Value) {
        object.default_zero("spec.matchingPrecedence", 1000);
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let spec = object.at("spec");
        let path = Path::new("spec");
        let precedence = spec.int_at("matchingPrecedence");
        let p = path.child("matchingPrecedence");
        if precedence <= 0 {
            errs.invalid(&p, precedence, "must be a positive value");
        } else if precedence > MAX_PRECEDENCE {
            errs.invalid(&p, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
        } else if precedence == 1 && object.str_at("metadata.name") != EXEMPT {
            errs.invalid(&p, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        if spec.has("distinguisherMethod") {
            let p = path.child("distinguisherMethod");
            let (kind, known) = (spec.str_at("distinguisherMethod.type"), ["ByNamespace", "ByUser"]);
            if !known.contains(&kind) {
                let error = FieldError::not_listed(&p.child("type"), kind, &known);
                errs.push(error.showing(format!("{{\"Type\":{}}}", goprint::quote(kind))));
            }
        }
        let p = path.child("priorityLevelConfiguration");
        match spec.str_at("priorityLevelConfiguration.name") {
            "" => errs.required(&p.child("name"), "must reference a priority level"),
            name => errs.each(&p.child("name"), name, names::dns1123_subdomain(name)),
        }
        let p = path.child("rules");
        for (i, rule) in spec.items("rules").iter().enumerate() {
            check_rule(&mut errs, &p.index(i), rule);
        }
        let name = object.str_at("metadata.name");
        if mandatory_schema(name).is_some_and(|fixed| !same(&fixed, spec)) {
            let detail = format!("spec of '{name}' must equal the fixed value");
            errs.invalid_shown(&path, spec, shown::FLOW_SCHEMA, &detail);
        }
        check_conditions(&mut errs, object);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_conditions(&mut errs, new);
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        keep_all_but_status(new, old);
    }
}

/// The specification that every cluster's schema of this name has.
fn mandatory_schema(name: &str) -> Option<Value> {
    let (precedence, method, groups): (_, _, &[&str]) = match name {
        EXEMPT => (1, Value::Null, &["system:masters"]),
        CATCH_ALL => {
            (MAX_PRECEDENCE, json!({"type": "ByUser"}), &["system:unauthenticated", "system:authenticated"])
        }
        _ => return None,
    };
    let subjects: Vec<Value> =
        groups.iter().map(|group| json!({"kind": "Group", "group": {"name": group}})).collect();
    Some(json!({
        "matchingPrecedence": precedence,
        "priorityLevelConfiguration": {"name": name},
        "distinguisherMethod": method,
        "rules": [{
            "subjects": subjects,
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"],
            }],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }],
    }))
}

/// Puts back all but the status, and but the record of who wrote it.
fn keep_all_but_status(new: &mut Value, old: &Value) {
    meta::prepare_for_status_update(new, old);
    let managed = new.at("metadata.managedFields").clone();
    new.copy_from(old, "metadata");
    new.set("metadata.managedFields", managed);
}

fn check_conditions(errs: &mut Errors, object: &Value) {
    let path = Path::new("status");
    let path = path.child("conditions");
    let mut kinds = HashSet::new();
    for (i, condition) in object.items("status.conditions").iter().enumerate() {
        let (p, kind) = (path.index(i), condition.str_at("type"));
        if !kinds.insert(kind) {
            errs.duplicate(&p.child("type"), kind);
        }
        errs.non_empty(&p.child("type"), kind);
    }
}

fn check_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    let p = path.child("subjects");
    let subjects = rule.items("subjects");
    if subjects.is_empty() {
        errs.required(&p, "subjects must contain at least one value");
    }
    for (i, subject) in subjects.iter().enumerate() {
        check_subject(errs, &p.index(i), subject);
    }
    let (resource, other) = (rule.items("resourceRules"), rule.items("nonResourceRules"));
    if resource.is_empty() && other.is_empty() {
        errs.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let p = path.child("resourceRules");
    for (i, rule) in resource.iter().enumerate() {
        check_resource_rule(errs, &p.index(i), rule);
    }
    let p = path.child("nonResourceRules");
    for (i, rule) in other.iter().enumerate() {
        check_non_resource_rule(errs, &p.index(i), rule);
    }
}

fn check_subject(errs: &mut Errors, path: &Path<'_>, subject: &Value) {
    const KINDS: [(&str, &str); 3] =
        [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];
    let kind = subject.str_at("kind");
    let Some((_, own)) = KINDS.iter().find(|(k, _)| *k == kind) else {
        return errs.one_of(&path.child("kind"), kind, &KINDS.map(|(k, _)| k));
    };
    let p = path.child(own);
    let name = subject.at(own).str_at("name");
    if !subject.has(own) {
        errs.required(&p, format!("{own} is required when subject kind is '{kind}'"));
    } else if name.is_empty() {
        errs.required(&p.child("name"), "");
    } else if *own == "serviceAccount" && name != "*" {
        errs.each(&p.child("name"), name, names::dns1123_subdomain(name));
    }
    if *own == "serviceAccount" && subject.has(own) {
        match subject.at(own).str_at("namespace") {
            "" => errs.required(&p.child("namespace"), "must specify namespace for service account"),
            namespace => errs.each(&p.child("namespace"), namespace, names::dns1123_label(namespace)),
        }
    }
    for (other, field) in KINDS.iter().filter(|(_, f)| f != own && subject.has(f)) {
        errs.forbidden(
            &path.child(field),
            format!("{field} is forbidden when subject kind is not '{other}'"),
        );
    }
}

/// A list that is either `*` alone or not empty; whether its items are to be looked at.
fn check_wildcard(errs: &mut Errors, path: &Path<'_>, items: &[&str], missing: &str, what: &str) -> bool {
    let wildcard = items.contains(&"*");
    if items.is_empty() {
        errs.required(path, missing);
    } else if wildcard && items.len() > 1 {
        errs.invalid(path, items.to_vec(), format!("if '*' is present, must not specify other {what}"));
    }
    !wildcard && !items.is_empty()
}

fn check_verbs(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    let verbs = rule.strings("verbs");
    let p = path.child("verbs");
    let named = check_wildcard(errs, &p, &verbs, "verbs must contain at least one value", "verbs");
    if named && verbs.iter().any(|v| !VERBS.contains(v)) {
        errs.push(FieldError::not_supported(&p, verbs, VERBS));
    }
}

fn check_resource_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    check_verbs(errs, path, rule);
    for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
        let missing = format!("resource rules must supply at least one {what}");
        check_wildcard(errs, &path.child(field), &rule.strings(field), &missing, &format!("{what}s"));
    }
    let namespaces = rule.strings("namespaces");
    let p = path.child("namespaces");
    if namespaces.is_empty() && rule.bool_at("clusterScope") {
        return;
    }
    let missing = "resource rules that are not cluster scoped must supply at least one namespace";
    if check_wildcard(errs, &p, &namespaces, missing, "namespaces") {
        for (i, namespace) in namespaces.iter().enumerate() {
            for message in names::dns1123_label(namespace) {
                errs.invalid(
                    &p.index(i),
                    *namespace,
                    format!("each member of this list must be '*' or a DNS-1123 label; {message}"),
                );
            }
        }
    }
}

fn check_non_resource_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    check_verbs(errs, path, rule);
    let urls = rule.strings("nonResourceURLs");
    let p = path.child("nonResourceURLs");
    let missing = "nonResourceURLs must contain at least one value";
    if check_wildcard(errs, &p, &urls, missing, "non-resource URLs") {
        for (i, url) in urls.iter().enumerate() {
            if let Some(detail) = url_error(url) {
                errs.invalid(&p.index(i), *url, detail);
            }
        }
    }
}

fn url_error(url: &str) -> Option<&'static str> {
    let wildcards = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        u if !u.starts_with('/') => Some("must start with slash"),
        u if u.contains(' ') => Some("must not contain white-space"),
        u if u.contains("//") => Some("must not contain double slash"),
        u if wildcards > 1 || (wildcards == 1 && !u.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

struct PriorityLevelConfiguration;

impl Strategy for PriorityLevelConfiguration {
    fn default(&self, object: &mut Value) {
        for (kind, shares) in [("exempt", 0), ("limited", 30)] {
            if let Some(level) = object.at_mut("spec").and_then(|s| s.at_mut(kind)) {
                level.default_absent("nominalConcurrencyShares", shares);
                level.default_absent("lendablePercent", 0);
            }
        }
        if let Some(queuing) = object.at_mut("spec.limited.limitResponse.queuing") {
            for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                queuing.default_zero(field, value);
            }
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        if annotation(object, PRESERVE_ZERO).is_some() {
            errs.forbidden(
                &Path::new("metadata.annotations"),
                format!("annotation '{PRESERVE_ZERO}' is forbidden"),
            );
        }
        let spec = object.at("spec");
        let path = Path::new("spec");
        let kind = spec.str_at("type");
        if (object.str_at("metadata.name") == EXEMPT) != (kind == "Exempt") {
            errs.invalid(&path.child("type"), kind, "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        let (limited, exempt) = (path.child("limited"), path.child("exempt"));
        match kind {
            "Exempt" => {
                if spec.has("limited") {
                    errs.forbidden(&limited, "must be nil if the type is not Limited");
                }
                check_shares(&mut errs, &exempt, spec.at("exempt"));
                check_lendable(&mut errs, &exempt, spec.at("exempt"));
            }
            "Limited" => {
                if spec.has("exempt") {
                    errs.forbidden(&exempt, "must be nil if the type is Limited");
                }
                if spec.has("limited") {
                    check_limited(&mut errs, &limited, spec.at("limited"));
                } else {
                    errs.required(&limited, "must not be empty when type is Limited");
                }
            }
            _ => errs.one_of(&path.child("type"), kind, &["Exempt", "Limited"]),
        }
        check_mandatory_level(&mut errs, &path, object.str_at("metadata.name"), spec);
        check_conditions(&mut errs, object);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_conditions(&mut errs, new);
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        keep_all_but_status(new, old);
    }
}

/// Levels that every cluster has are as they are, but for what the exempt one lends.
fn check_mandatory_level(errs: &mut Errors, path: &Path<'_>, name: &str, spec: &Value) {
    let (fixed, but) = match name {
        EXEMPT => {
            let fixed = json!({"type": "Exempt", "exempt": spec.at("exempt")});
            (fixed, " except the 'spec.exempt' field")
        }
        CATCH_ALL => {
            let limited = json!({
                "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
            });
            (json!({"type": "Limited", "limited": limited}), "")
        }
        _ => return,
    };
    if !same(&fixed, spec) {
        let detail = format!("spec of '{name}'{but} must equal the fixed value");
        errs.invalid_shown(path, spec, shown::PRIORITY_LEVEL, &detail);
    }
}

fn check_shares(errs: &mut Errors, path: &Path<'_>, level: &Value) {
    let shares = level.int_at("nominalConcurrencyShares");
    if shares < 0 {
        errs.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
}

fn check_lendable(errs: &mut Errors, path: &Path<'_>, level: &Value) {
    errs.in_range(&path.child("lendablePercent"), level.int_at("lendablePercent"), 0, 100);
}

fn check_limited(errs: &mut Errors, path: &Path<'_>, limited: &Value) {
    check_shares(errs, path, limited);
    let p = path.child("limitResponse");
    let queuing = p.child("queuing");
    let has_queuing = limited.has("limitResponse.queuing");
    match (limited.str_at("limitResponse.type"), has_queuing) {
        ("Reject", true) => {
            errs.forbidden(&queuing, "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Queue", false) => {
            errs.required(&queuing, "must not be empty if limited.limitResponse.type is Limited");
        }
        ("Queue", true) => check_queuing(errs, &queuing, limited.at("limitResponse.queuing")),
        ("Reject", false) => {}
        (kind, _) => errs.one_of(&p.child("type"), kind, &["Queue", "Reject"]),
    }
    check_lendable(errs, path, limited);
    if limited.int_at("borrowingLimitPercent") < 0 {
        errs.invalid(
            &path.child("borrowingLimitPercent"),
            limited.int_at("borrowingLimitPercent"),
            "if specified, must be a non-negative integer",
        );
    }
}

fn check_queuing(errs: &mut Errors, path: &Path<'_>, queuing: &Value) {
    let (length, queues, hand) =
        (queuing.int_at("queueLengthLimit"), queuing.int_at("queues"), queuing.int_at("handSize"));
    if length <= 0 {
        errs.invalid(&path.child("queueLengthLimit"), length, "must be positive");
    }
    if queues <= 0 {
        errs.invalid(&path.child("queues"), queues, "must be positive");
    } else if queues > MAX_QUEUES {
        errs.invalid(&path.child("queues"), queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    let p = path.child("handSize");
    if hand <= 0 {
        errs.invalid(&p, hand, "must be positive");
    } else if hand > queues {
        errs.invalid(&p, hand, format!("should not be greater than queues ({queues})"));
    } else {
        // Bits that it takes to draw `hand` different queues, one after the other.
        let bits = (0..hand).map(|i| ((queues - i) as f64).log2()).sum::<f64>().ceil();
        if bits > MAX_HASH_BITS {
            errs.invalid(
                &p,
                hand,
                format!(
                    "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
                ),
            );
        }
    }
}
