//! Strategies of the kinds of `flowcontrol.apiserver.k8s.io`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::Strategy;
use crate::{
    check::{Check, Errors},
    names,
    view::{View, ViewMut},
};

/// `FlowSchema`
pub const FLOW_SCHEMA: &dyn Strategy = &FlowSchema;

/// `PriorityLevelConfiguration`
pub const PRIORITY_LEVEL_CONFIGURATION: &dyn Strategy = &PriorityLevelConfiguration;

const DEFAULT_PRECEDENCE: i64 = 1000;
const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
/// Bits of the hash that deals a flow its hand of queues.
const MAX_HASH_BITS: i64 = 60;
const DEFAULT_SHARES: i64 = 30;
const VERBS: &[&str] = &[
    "get", "list", "create", "update", "delete", "deletecollection", "patch", "watch", "proxy",
];
/// The kind of a subject and the field that then names it.
const SUBJECTS: [(&str, &str); 3] = [("ServiceAccount", "serviceAccount"), ("User", "user"), ("Group", "group")];

struct FlowSchema;

impl Strategy for FlowSchema {
    fn default(&self, schema: &mut Value) {
        schema.default_zero("spec.matchingPrecedence", DEFAULT_PRECEDENCE);
    }

    fn validate(&self, schema: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), schema.at("spec"));
        let (p, precedence) = (path.child("matchingPrecedence"), spec.int_at("matchingPrecedence"));
        if precedence <= 0 {
            errs.invalid(&p, precedence, "must be a positive value");
        }
        if precedence > MAX_PRECEDENCE {
            errs.invalid(&p, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
        }
        if precedence == 1 && schema.str_at("metadata.name") != "exempt" {
            errs.invalid(&p, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        if spec.has("distinguisherMethod") {
            let kind = spec.str_at("distinguisherMethod.type");
            errs.one_of(&path.child("distinguisherMethod.type"), kind, &["ByNamespace", "ByUser"]);
        }
        let (p, level) = (path.child("priorityLevelConfiguration.name"), spec.str_at("priorityLevelConfiguration.name"));
        if level.is_empty() {
            errs.required(&p, "must reference a priority level");
        } else {
            errs.each(&p, level, names::dns1123_subdomain(level));
        }
        let list = path.child("rules");
        for (i, rule) in spec.items("rules").iter().enumerate() {
            check_rule(&mut errs, &list.index(i), rule);
        }
        check_conditions(&mut errs, schema);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
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
}

fn check_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    let list = path.child("subjects");
    if !rule.is_set("subjects") {
        errs.required(&list, "subjects must contain at least one value");
    }
    for (i, subject) in rule.items("subjects").iter().enumerate() {
        check_subject(errs, &list.index(i), subject);
    }
    if !rule.is_set("resourceRules") && !rule.is_set("nonResourceRules") {
        errs.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    let list = path.child("resourceRules");
    for (i, rule) in rule.items("resourceRules").iter().enumerate() {
        check_resource_rule(errs, &list.index(i), rule);
    }
    let list = path.child("nonResourceRules");
    for (i, rule) in rule.items("nonResourceRules").iter().enumerate() {
        let path = list.index(i);
        check_verbs(errs, &path, rule);
        let (p, urls) = (path.child("nonResourceURLs"), rule.strings("nonResourceURLs"));
        if urls.is_empty() {
            errs.required(&p, "nonResourceURLs must contain at least one value");
        }
        if !check_wildcard(errs, &p, &urls, "non-resource URLs") {
            for (j, url) in urls.iter().enumerate() {
                check_url(errs, &p.index(j), url);
            }
        }
    }
}

/// Whether `*` is among `values`, which then has to stand alone.
fn check_wildcard(errs: &mut Errors, path: &Path<'_>, values: &[&str], what: &str) -> bool {
    let wild = values.contains(&"*");
    if wild && values.len() > 1 {
        errs.invalid(path, values.to_vec(), format!("if '*' is present, must not specify other {what}"));
    }
    wild
}

fn check_verbs(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    let (p, verbs) = (path.child("verbs"), rule.strings("verbs"));
    if verbs.is_empty() {
        errs.required(&p, "verbs must contain at least one value");
    } else if !check_wildcard(errs, &p, &verbs, "verbs") && !verbs.iter().all(|v| VERBS.contains(v)) {
        errs.push(FieldError::not_supported(&p, verbs, VERBS));
    }
}

fn check_resource_rule(errs: &mut Errors, path: &Path<'_>, rule: &Value) {
    check_verbs(errs, path, rule);
    for (field, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")] {
        let (p, values) = (path.child(field), rule.strings(field));
        if values.is_empty() {
            errs.required(&p, format!("resource rules must supply at least one {one}"));
        }
        check_wildcard(errs, &p, &values, many);
    }
    let (p, namespaces) = (path.child("namespaces"), rule.strings("namespaces"));
    if namespaces.is_empty() && !rule.bool_at("clusterScope") {
        errs.required(&p, "resource rules that are not cluster scoped must supply at least one namespace");
    } else if !check_wildcard(errs, &p, &namespaces, "namespaces") {
        for (i, namespace) in namespaces.iter().enumerate() {
            for message in names::dns1123_label(namespace) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errs.invalid(&p.index(i), *namespace, detail);
            }
        }
    }
}

fn check_url(errs: &mut Errors, path: &Path<'_>, url: &str) {
    if url.is_empty() {
        return errs.invalid(path, url, "must not be empty");
    }
    if url == "/" {
        return;
    }
    if !url.starts_with('/') {
        return errs.invalid(path, url, "must start with slash");
    }
    if url.contains(' ') {
        return errs.invalid(path, url, "must not contain white-space");
    }
    if url.contains("//") {
        return errs.invalid(path, url, "must not contain double slash");
    }
    if url.strip_suffix('*').unwrap_or(url).contains('*') || (url.ends_with('*') && !url.ends_with("/*")) {
        errs.invalid(path, url, "wildcard can only do suffix matching");
    }
}

fn check_subject(errs: &mut Errors, path: &Path<'_>, subject: &Value) {
    let kind = subject.str_at("kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        return errs.one_of(&path.child("kind"), kind, &SUBJECTS.map(|(kind, _)| kind));
    };
    let (p, body) = (path.child(own), subject.at(own));
    if body.is_null() {
        errs.required(&p, format!("{own} is required when subject kind is '{kind}'"));
    } else {
        let name = body.str_at("name");
        errs.non_empty(&p.child("name"), name);
        if kind == "ServiceAccount" {
            if !matches!(name, "" | "*") {
                errs.each(&p.child("name"), name, names::dns1123_subdomain(name));
            }
            let namespace = body.str_at("namespace");
            if namespace.is_empty() {
                errs.required(&p.child("namespace"), "must specify namespace for service account");
            } else {
                errs.each(&p.child("namespace"), namespace, names::dns1123_label(namespace));
            }
        }
    }
    for (kind, field) in SUBJECTS.iter().filter(|(_, field)| field != own && subject.has(field)) {
        errs.forbidden(&path.child(field), format!("{field} is forbidden when subject kind is not '{kind}'"));
    }
}

fn check_conditions(errs: &mut Errors, object: &Value) {
    let list = Path::new("status.conditions");
    let mut seen: Vec<&str> = Vec::new();
    for (i, condition) in object.items("status.conditions").iter().enumerate() {
        let p = list.index(i);
        let (p, kind) = (p.child("type"), condition.str_at("type"));
        if seen.contains(&kind) {
            errs.duplicate(&p, kind);
        }
        seen.push(kind);
        errs.non_empty(&p, kind);
    }
}

struct PriorityLevelConfiguration;

impl Strategy for PriorityLevelConfiguration {
    fn default(&self, level: &mut Value) {
        if let Some(exempt) = level.at_mut("spec.exempt") {
            exempt.default_absent("nominalConcurrencyShares", 0);
            exempt.default_absent("lendablePercent", 0);
        }
        if let Some(limited) = level.at_mut("spec.limited") {
            limited.default_absent("nominalConcurrencyShares", DEFAULT_SHARES);
            limited.default_absent("lendablePercent", 0);
            if let Some(queuing) = limited.at_mut("limitResponse.queuing") {
                for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    queuing.default_zero(field, value);
                }
            }
        }
    }

    fn validate(&self, level: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), level.at("spec"));
        let kind = spec.str_at("type");
        if (level.str_at("metadata.name") == "exempt") != (kind == "Exempt") {
            errs.invalid(&path.child("type"), kind, "must be 'Exempt' if and only if `name` is 'exempt'");
        }
        let (limited, exempt) = (path.child("limited"), path.child("exempt"));
        match kind {
            "Exempt" => {
                if spec.has("limited") {
                    errs.forbidden(&limited, "must be nil if the type is not Limited");
                }
                check_shares(&mut errs, &exempt, spec.at("exempt"));
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
        check_conditions(&mut errs, level);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
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
}

fn check_shares(errs: &mut Errors, path: &Path<'_>, level: &Value) {
    let shares = level.int_at("nominalConcurrencyShares");
    if shares < 0 {
        errs.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    errs.in_range(&path.child("lendablePercent"), level.int_at("lendablePercent"), 0, 100);
}

fn check_limited(errs: &mut Errors, path: &Path<'_>, limited: &Value) {
    check_shares(errs, path, limited);
    let p = path.child("limitResponse");
    let queuing = limited.at("limitResponse.queuing");
    match limited.str_at("limitResponse.type") {
        "Reject" => {
            if !queuing.is_null() {
                let detail = "must be nil if limited.limitResponse.type is not Limited";
                errs.forbidden(&p.child("queuing"), detail);
            }
        }
        "Queue" if queuing.is_null() => {
            errs.required(&p.child("queuing"), "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => check_queuing(errs, &p.child("queuing"), queuing),
        kind => errs.one_of(&p.child("type"), kind, &["Queue", "Reject"]),
    }
    let borrowing = limited.int_at("borrowingLimitPercent");
    if borrowing < 0 {
        let detail = "if specified, must be a non-negative integer";
        errs.invalid(&path.child("borrowingLimitPercent"), borrowing, detail);
    }
}

fn check_queuing(errs: &mut Errors, path: &Path<'_>, queuing: &Value) {
    let [limit, queues, hand] = ["queueLengthLimit", "queues", "handSize"].map(|f| queuing.int_at(f));
    if limit <= 0 {
        errs.invalid(&path.child("queueLengthLimit"), limit, "must be positive");
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
    } else if entropy_bits(queues, hand) > MAX_HASH_BITS {
        errs.invalid(
            &p,
            hand,
            format!(
                "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
            ),
        );
    }
}

/// Bits that it takes to deal `hand` of `deck` cards.
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let bits = ((deck as f64).log2() * hand as f64).ceil() as i64;
    bits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::check_create;

    const GROUP: &str = "flowcontrol.apiserver.k8s.io";

    #[test]
    fn flow_schemas() {
        let base = json!({"metadata": {"name": "f"}, "spec": {"priorityLevelConfiguration": {"name": "p"}, "rules": [{
            "subjects": [{"kind": "Group", "group": {"name": "g"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"]}]}]}});
        check_create(GROUP, "FlowSchema", &base, &[
            (json!({}), &[]),
            (json!({"spec": {"matchingPrecedence": 1, "priorityLevelConfiguration": null}}), &[
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ]),
            (json!({"spec": {"rules": [{}]}}), &[
                "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ]),
        ]);
    }

    #[test]
    fn priority_levels() {
        let base = json!({"metadata": {"name": "p"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        check_create(GROUP, "PriorityLevelConfiguration", &base, &[
            (json!({}), &[]),
            (json!({"spec": {"type": "Exempt"}}), &[
                "spec.type: Invalid value: \"Exempt\": must be 'Exempt' if and only if `name` is 'exempt'",
                "spec.limited: Forbidden: must be nil if the type is not Limited",
            ]),
            (json!({"spec": {"limited": {"limitResponse": {"queuing": {"handSize": 65}}}}}), &[
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 65: should not be greater than queues (64)",
            ]),
        ]);
    }
}
