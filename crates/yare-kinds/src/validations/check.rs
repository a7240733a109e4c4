//! Rules checked when a definition is written.

use std::collections::HashSet;

use serde_json::Value;
use yare_cel::{Decl, MAX_REQUEST_SIZE_BYTES};
use yare_schema::{
    field::{ErrorKind, FieldError, Path, html_safe},
    release::Emulation,
};

use super::{
    KEYWORD, RUNTIME_COST_BUDGET, STATIC_COST_LIMIT, STATIC_TOTAL_COST_LIMIT,
    compile::{Compiled, Envs, compile, declare, element, member},
    has_rules, is_embedded, items, properties, rules,
    run::check_default,
    values,
};
use crate::view::View;

/// Most errors that are told at once.
const MAX_ERRORS: usize = 200;
/// So many of the most expensive rules are named.
const MAX_EXPENSIVE: usize = 4;

/// The expressions of a definition before an update. They stay accepted, whatever they use.
#[derive(Default)]
pub struct Before<'a> {
    rules: HashSet<&'a str>,
    messages: HashSet<&'a str>,
    /// As which release the server behaves.
    emulation: Emulation,
}

impl<'a> Before<'a> {
    /// Those of all versions of a definition's `spec`.
    pub fn of(spec: Option<&'a Value>, emulation: Emulation) -> Self {
        let mut out = Self { emulation, ..Self::default() };
        for version in spec.map_or(&[][..], |spec| spec.items("versions")) {
            out.collect(version.at("schema.openAPIV3Schema"));
        }
        out
    }

    fn collect(&mut self, schema: &'a Value) {
        for rule in rules(schema) {
            self.rules.insert(rule.str_at("rule"));
            self.messages.insert(rule.str_at("messageExpression"));
        }
        let children = items(schema).into_iter().chain(values(schema));
        for child in children.chain(properties(schema).map(|(_, property)| property)) {
            self.collect(child);
        }
    }

    fn has(&self, expression: &str, is_message: bool) -> bool {
        if is_message { self.messages.contains(expression) } else { self.rules.contains(expression) }
    }
}

/// What is wrong with the rules in `schema`, which stands at `path`. `found`: what is wrong with the schema
/// otherwise; rules at or above such places are not looked at. `unchanged`: the schema was accepted before, and
/// single expressions may cost what they did then.
pub fn check(
    schema: &Value,
    path: &Path<'_>,
    found: &[FieldError],
    before: &Before<'_>,
    unchanged: bool,
) -> Vec<FieldError> {
    if !has_rules(schema) {
        return Vec::new();
    }
    let mut checker =
        Checker { found, before, unchanged, total: 0, expensive: Vec::new(), errors: Vec::new() };
    let mut budget = RUNTIME_COST_BUDGET;
    checker.defaults(schema, path, true, &mut budget);
    if !checker.errors.is_empty() {
        return checker.errors;
    }
    let place = Place {
        path,
        decl: declare(schema, true),
        cardinality: Some(1),
        uncorrelatable: None,
        resource: true,
    };
    checker.node(schema, &place);
    if checker.total > STATIC_TOTAL_COST_LIMIT {
        for (field, _) in &checker.expensive {
            let detail =
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            checker.errors.push(forbidden(field.clone(), detail.into()));
        }
        let detail = too_expensive(
            "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema",
            checker.total,
            STATIC_TOTAL_COST_LIMIT,
        );
        checker.errors.push(forbidden(path.to_string(), detail));
    }
    checker.errors
}

fn forbidden(field: String, detail: String) -> FieldError {
    FieldError { kind: ErrorKind::Forbidden, field, value: None, detail }
}

/// What is told of a cost above its limit. Factors near one get more digits, so that none reads `1.0x`.
fn too_expensive(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}

/// The rule in an error that is about the whole of it, as Go prints upstream's struct.
fn shown(rule: &Value) -> String {
    let text = |name: &str| Value::from(rule.str_at(name)).to_string();
    let optional = |name: &str| rule.at(name).to_string();
    html_safe(&format!(
        "{{\"Rule\":{},\"Message\":{},\"MessageExpression\":{},\"Reason\":{},\"FieldPath\":{},\"OptionalOldSelf\":{}}}",
        text("rule"),
        text("message"),
        text("messageExpression"),
        optional("reason"),
        text("fieldPath"),
        optional("optionalOldSelf"),
    ))
}

/// How often a value of this shape may stand in one request.
fn most_in_a_request(decl: &Decl) -> u64 {
    MAX_REQUEST_SIZE_BYTES / decl.min_serialized_size.saturating_add(1)
}

/// By how much more often what is below a schema may stand in an object; `None`: nothing bounds it.
fn fan_out(schema: &Value) -> Option<u64> {
    let limit = |name: &str| schema.at(name).as_i64().map(|n| u64::try_from(n).unwrap_or(0));
    match schema.str_at("type") {
        "object" if !schema.at("additionalProperties").is_null() => limit("maxProperties"),
        "array" => limit("maxItems"),
        _ => Some(1),
    }
}

/// A place in a schema.
struct Place<'p> {
    path: &'p Path<'p>,
    decl: Option<Decl>,
    /// How often its values may stand in one object; `None`: nothing bounds it.
    cardinality: Option<u64>,
    /// The nearest place above the values below which cannot be told apart from one revision to the next.
    uncorrelatable: Option<&'p Path<'p>>,
    resource: bool,
}

struct Checker<'a> {
    found: &'a [FieldError],
    before: &'a Before<'a>,
    unchanged: bool,
    total: u64,
    /// The most expensive expressions, most expensive first.
    expensive: Vec<(String, u64)>,
    errors: Vec<FieldError>,
}

impl Checker<'_> {
    fn defaults(&mut self, schema: &Value, path: &Path<'_>, root: bool, budget: &mut u64) {
        let default = schema.at("default");
        if !default.is_null() {
            let resource = root || is_embedded(schema);
            let enough =
                check_default(schema, resource, &path.child("default"), default, budget, &mut self.errors);
            if !enough {
                return;
            }
        }
        if let Some(items) = items(schema) {
            self.defaults(items, &path.child("items"), false, budget);
        }
        let list = path.child("properties");
        for (name, property) in properties(schema) {
            self.defaults(property, &list.key(name), false, budget);
        }
    }

    /// Whether something else is wrong here or below.
    fn is_wrong_otherwise(&self, path: &Path<'_>) -> bool {
        !self.found.is_empty() && {
            let path = path.to_string();
            self.found.iter().any(|error| {
                error
                    .field
                    .strip_prefix(&path)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
        }
    }

    fn node(&mut self, schema: &Value, place: &Place<'_>) {
        if self.errors.len() >= MAX_ERRORS || !has_rules(schema) {
            return;
        }
        let cardinality = place.cardinality.and_then(|count| Some(count.saturating_mul(fan_out(schema)?)));
        let element = element(place.decl.as_ref());
        if let Some(values) = values(schema) {
            let path = place.path.child("additionalProperties");
            let decl = element.clone();
            self.node(values, &Place { path: &path, decl, cardinality, resource: false, ..*place });
        }
        let list = place.path.child("properties");
        let tells_fields_apart = matches!(schema.str_at("x-kubernetes-map-type"), "" | "granular" | "atomic");
        for (name, property) in properties(schema) {
            let path = list.key(name);
            let uncorrelatable = place.uncorrelatable.or((!tells_fields_apart).then_some(place.path));
            let decl = member(place.decl.as_ref(), name);
            self.node(property, &Place { path: &path, decl, cardinality, uncorrelatable, resource: false });
        }
        if let Some(items) = items(schema) {
            let path = place.path.child("items");
            let tells_items_apart = schema.str_at("x-kubernetes-list-type") == "map";
            let uncorrelatable = place.uncorrelatable.or((!tells_items_apart).then_some(place.path));
            self.node(
                items,
                &Place { path: &path, decl: element, cardinality, uncorrelatable, resource: false },
            );
        }
        if !rules(schema).is_empty() && !self.is_wrong_otherwise(place.path) {
            self.rules(schema, place);
        }
    }

    fn rules(&mut self, schema: &Value, place: &Place<'_>) {
        let own;
        let decl = match &place.decl {
            Some(decl) => decl,
            None => match declare(schema, place.resource || is_embedded(schema)) {
                Some(decl) => {
                    own = decl;
                    &own
                }
                None => {
                    self.errors.push(FieldError::internal(
                        &place.path.child(KEYWORD),
                        "internal error: failed to construct type information for x-kubernetes-validations rules: unable to convert structural schema to CEL declarations",
                    ));
                    return;
                }
            },
        };
        let times = place.cardinality.unwrap_or_else(|| most_in_a_request(decl));
        let mut envs = Envs::new(decl, self.before.emulation);
        let before = self.before;
        let list = place.path.child(KEYWORD);
        for (i, rule) in rules(schema).iter().enumerate() {
            let compiled = compile(rule, schema, &mut envs, &|text, message| before.has(text, message));
            self.rule(rule, &compiled, times, &list.index(i), place.uncorrelatable);
        }
    }

    fn rule(
        &mut self,
        rule: &Value,
        compiled: &Compiled,
        times: u64,
        path: &Path<'_>,
        uncorrelatable: Option<&Path<'_>>,
    ) {
        let at_rule = path.child("rule");
        let whole = |path: &Path<'_>, detail: &str| FieldError {
            kind: ErrorKind::Invalid,
            field: path.to_string(),
            value: None,
            detail: format!("{}: {detail}", shown(rule)),
        };
        self.cost("estimated rule cost", compiled.max_cost.saturating_mul(times), &at_rule);
        if let Some(Err(why)) = &compiled.program {
            self.errors.push(whole(&at_rule, why));
        }
        match &compiled.message {
            Some(Err(why)) => self.errors.push(whole(&path.child("messageExpression"), why)),
            Some(Ok((_, cost))) => {
                self.cost("estimated messageExpression cost", *cost, &path.child("messageExpression"));
            }
            None => {}
        }
        if compiled.is_transition {
            if let Some(above) = uncorrelatable {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {above}"
                );
                self.errors.push(FieldError::invalid(&at_rule, rule.str_at("rule"), detail));
            }
        } else if let Some(set) = rule.at("optionalOldSelf").as_bool() {
            self.errors.push(FieldError::invalid(
                &path.child("optionalOldSelf"),
                set,
                "may not be set if oldSelf is not used in rule",
            ));
        }
    }

    fn cost(&mut self, what: &str, cost: u64, path: &Path<'_>) {
        if !self.unchanged && cost > STATIC_COST_LIMIT {
            self.errors.push(forbidden(path.to_string(), too_expensive(what, cost, STATIC_COST_LIMIT)));
        }
        self.total = self.total.saturating_add(cost);
        // What contributes less than a hundredth is not named.
        if cost >= STATIC_TOTAL_COST_LIMIT / 100 {
            let at = self.expensive.partition_point(|(_, other)| *other >= cost);
            self.expensive.insert(at, (path.to_string(), cost));
            self.expensive.truncate(MAX_EXPENSIVE);
        }
    }
}
