//! Rules held against objects.

use std::{
    fmt,
    ops::ControlFlow,
    sync::{Mutex, OnceLock, PoisonError},
};

use serde_json::{Map, Value};
use yare_cel::{Budget, Decl, EvalError, Program, Value as CelValue, Vars};
use yare_schema::{
    field::{ErrorKind, FieldError, Path},
    model::TypeRef,
    release::Emulation,
};

use super::{
    MAX_MESSAGE_BYTES, PER_CALL_LIMIT, RUNTIME_COST_BUDGET,
    compile::{Compiled, Envs, compile, declare, element, member},
    has_rules, is_embedded, items, properties, rules,
    unchanged::{ByKey, Pair, Trail},
    values,
};
use crate::view::View;

/// Most errors that are told at once.
const MAX_ERRORS: usize = 200;

/// The rules of one version of a custom resource, compiled when the first object is written.
pub struct Rules {
    /// What of the schema the rules depend on, as text; taken when it is compiled.
    source: Mutex<Box<str>>,
    root: OnceLock<Option<Node>>,
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("compiled", &self.root.get().is_some()).finish_non_exhaustive()
    }
}

/// What rules say of an object.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// What is wrong.
    pub errors: Vec<FieldError>,
    /// What is wrong, but was before, and is not this update's doing.
    pub warnings: Vec<String>,
}

impl Rules {
    /// The rules of a schema; `None` if it has none.
    pub fn of(schema: &Value) -> Option<Rules> {
        has_rules(schema)
            .then(|| Rules { source: Mutex::new(needed(schema).to_string().into()), root: OnceLock::new() })
    }

    /// Holds the rules against an object that is structurally valid. `old`: what it was, with its type.
    pub fn run(&self, object: &Value, old: Option<(TypeRef<'_>, &Value)>) -> Verdict {
        let root = self.root.get_or_init(|| {
            let source = std::mem::take(&mut *self.source.lock().unwrap_or_else(PoisonError::into_inner));
            let schema: Value = serde_json::from_str(&source).ok()?;
            Node::load(&schema, declare(&schema, true))
        });
        let Some(root) = root else { return Verdict::default() };
        let mut run = Run::new(RUNTIME_COST_BUDGET);
        let pair = old.map(|(ty, old)| Pair::new(ty, object, old));
        let trail = pair.as_ref().map_or_else(Trail::default, Trail::root);
        let _ = run.node(root, &Path::ROOT, object, old.map(|(_, old)| old), trail);
        run.verdict
    }
}

/// Holds the rules of `schema` against its default, as an object that was like this and as one that was not
/// there. `budget`: what evaluations may still cost; `false` if that was not enough.
pub(super) fn check_default(
    schema: &Value,
    is_resource: bool,
    path: &Path<'_>,
    default: &Value,
    budget: &mut u64,
    errors: &mut Vec<FieldError>,
) -> bool {
    let Some(root) = Node::load(schema, declare(schema, is_resource)) else { return true };
    let mut left = *budget;
    for old in [Some(default), None] {
        let mut run = Run::new(*budget);
        let enough = run.node(&root, path, default, old, Trail::default()).is_continue();
        left = left.min(run.budget.remaining);
        let failed = !run.verdict.errors.is_empty();
        errors.append(&mut run.verdict.errors);
        if !enough {
            *budget = 0;
            return false;
        }
        if failed {
            break;
        }
    }
    *budget = left;
    true
}

/// What of a schema declarations, rules and correlation depend on.
fn needed(schema: &Value) -> Value {
    const KEPT: [&str; 15] = [
        "type",
        "format",
        "nullable",
        "maxLength",
        "maxItems",
        "maxProperties",
        "enum",
        "required",
        "x-kubernetes-int-or-string",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type",
        super::KEYWORD,
    ];
    let mut out = Map::new();
    for name in KEPT {
        if let Some(value) = schema.get(name) {
            out.insert(name.into(), value.clone());
        }
    }
    if schema.get("default").is_some_and(|default| !default.is_null()) {
        // Only that there is one matters.
        out.insert("default".into(), true.into());
    }
    if let Some(items) = items(schema) {
        out.insert("items".into(), needed(items));
    }
    if let Some(values) = values(schema) {
        out.insert("additionalProperties".into(), needed(values));
    }
    let fields: Map<String, Value> =
        properties(schema).map(|(name, property)| (name.clone(), needed(property))).collect();
    if !fields.is_empty() {
        out.insert("properties".into(), fields.into());
    }
    out.into()
}

/// A place of a schema with rules in it or below.
struct Node {
    rules: Box<[Ready]>,
    /// The shape of values; there if there are rules.
    decl: Option<Decl>,
    /// `type`, which messages show for the value.
    ty: Box<str>,
    /// Some rule reads `oldSelf`.
    has_transitions: bool,
    items: Option<Box<Node>>,
    /// By which fields items are known, in lists of type `map`.
    keys: Box<[Box<str>]>,
    values: Option<Box<Node>>,
    /// Sorted by name.
    properties: Box<[(Box<str>, Node)]>,
}

/// A rule with its texts.
struct Ready {
    compiled: Compiled,
    /// `message`, trimmed; empty: none.
    message: Box<str>,
    /// `rule`, trimmed.
    rule: Box<str>,
    message_expression: Box<str>,
    kind: ErrorKind,
}

impl Ready {
    /// How messages call the rule.
    fn shown(&self) -> &str {
        if self.message.is_empty() { &self.rule } else { &self.message }
    }
}

impl Node {
    fn load(schema: &Value, decl: Option<Decl>) -> Option<Node> {
        let ready: Box<[Ready]> = match &decl {
            Some(decl) if !rules(schema).is_empty() => {
                let mut envs = Envs::new(decl, Emulation::NONE);
                // Whatever is here was accepted once.
                rules(schema).iter().map(|rule| Ready::load(rule, schema, &mut envs)).collect()
            }
            _ => Box::default(),
        };
        let element = element(decl.as_ref());
        let child = |schema: Option<&Value>| {
            schema.and_then(|schema| Node::load(schema, element.clone())).map(Box::new)
        };
        let (items, values) = (child(items(schema)), child(values(schema)));
        let properties: Box<[(Box<str>, Node)]> = properties(schema)
            .filter(|(_, property)| has_rules(property))
            .filter_map(|(name, property)| {
                // A name that expressions cannot spell has a declaration of its own.
                let decl = match yare_cel::escape(name) {
                    Some(_) => member(decl.as_ref(), name)?,
                    None => declare(property, is_embedded(property))?,
                };
                Some((name.as_str().into(), Node::load(property, Some(decl))?))
            })
            .collect();
        if ready.is_empty() && items.is_none() && values.is_none() && properties.is_empty() {
            return None;
        }
        let keys = match schema.str_at("x-kubernetes-list-type") {
            "map" => schema.strings("x-kubernetes-list-map-keys").into_iter().map(Box::from).collect(),
            _ => Box::default(),
        };
        Some(Node {
            decl: decl.filter(|_| !ready.is_empty()),
            has_transitions: ready.iter().any(|rule| rule.compiled.is_transition),
            rules: ready,
            ty: schema.str_at("type").into(),
            items,
            keys,
            values,
            properties,
        })
    }
}

impl Ready {
    fn load(rule: &Value, schema: &Value, envs: &mut Envs<'_>) -> Ready {
        Ready {
            compiled: compile(rule, schema, envs, &|_, _| true),
            message: rule.str_at("message").trim().into(),
            rule: rule.str_at("rule").trim().into(),
            message_expression: rule.str_at("messageExpression").into(),
            kind: match rule.str_at("reason") {
                "FieldValueForbidden" => ErrorKind::Forbidden,
                "FieldValueRequired" => ErrorKind::Required,
                "FieldValueDuplicate" => ErrorKind::Duplicate,
                _ => ErrorKind::Invalid,
            },
        }
    }
}

/// A walk through an object. It breaks off when the budget is spent.
struct Run {
    budget: Budget,
    verdict: Verdict,
}

/// How messages of an expression went.
enum Message {
    /// It made one, or none that can be used.
    Made(Option<String>),
    /// It cost too much.
    Ended(String),
}

impl Run {
    fn new(budget: u64) -> Run {
        Run { budget: Budget::new(PER_CALL_LIMIT, budget), verdict: Verdict::default() }
    }

    fn node<'p, 'a>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        value: &'a Value,
        old: Option<&'a Value>,
        trail: Trail<'p, 'a>,
    ) -> ControlFlow<()> {
        if value.is_null() {
            // Whether something may be null is for rules further up.
            return ControlFlow::Continue(());
        }
        let old = old.filter(|old| !old.is_null());
        self.rules(node, path, value, old, trail)?;
        match value {
            Value::Array(list) => {
                let Some(child) = &node.items else { return ControlFlow::Continue(()) };
                let before = old
                    .and_then(Value::as_array)
                    .filter(|_| !node.keys.is_empty())
                    .map(|old| ByKey::new(&node.keys, old));
                for (i, item) in list.iter().enumerate() {
                    let old = before.as_ref().and_then(|before| before.get(item));
                    let pair = trail.item(i, old);
                    // A trail does not outlive the pair that it steps on.
                    let trail: Trail<'_, 'a> = trail;
                    self.node(child, &path.index(i), item, old, trail.below(pair.as_ref(), ""))?;
                }
            }
            Value::Object(map) => {
                if let Some(child) = &node.values {
                    for (name, value) in map {
                        self.member(child, &path.key(name), name, value, old, trail)?;
                    }
                }
                for (name, child) in &node.properties {
                    if let Some(value) = map.get(&**name) {
                        self.member(child, &path.child(name), name, value, old, trail)?;
                    }
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn member<'a>(
        &mut self,
        child: &Node,
        path: &Path<'_>,
        name: &str,
        value: &'a Value,
        old: Option<&'a Value>,
        trail: Trail<'_, 'a>,
    ) -> ControlFlow<()> {
        let pair = trail.member(name);
        let trail: Trail<'_, 'a> = trail;
        self.node(child, path, value, old.and_then(|old| old.get(name)), trail.below(pair.as_ref(), name))
    }

    fn wrong(&mut self, path: &Path<'_>, node: &Node, detail: String) {
        self.verdict.errors.push(FieldError::invalid(path, &*node.ty, detail));
    }

    fn rules<'a>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        value: &'a Value,
        old: Option<&'a Value>,
        trail: Trail<'_, 'a>,
    ) -> ControlFlow<()> {
        let Some(decl) = &node.decl else { return ControlFlow::Continue(()) };
        if self.verdict.errors.len() >= MAX_ERRORS {
            return ControlFlow::Break(());
        }
        if self.budget.remaining == 0 {
            self.wrong(path, node, EvalError::OutOfBudget.to_string());
            return ControlFlow::Break(());
        }
        let mut plain = Vars::new();
        plain.bind_json("self", value, decl);
        let mut optional = None;
        if node.has_transitions {
            let mut vars = Vars::new();
            vars.bind_json("self", value, decl);
            // What was stored under another schema may not be readable under this one: then it is as if it
            // were not bound.
            match old.map(|old| CelValue::from_json(old, decl)) {
                None => vars.bind("oldSelf", CelValue::Optional(None)),
                Some(Ok(old)) => vars.bind("oldSelf", CelValue::some(old)),
                Some(Err(_)) => {}
            }
            optional = Some(vars);
            if let Some(old) = old {
                plain.bind_json("oldSelf", old, decl);
            }
        }
        for rule in &node.rules {
            let program = match &rule.compiled.program {
                None => continue,
                Some(Ok(program)) => program,
                Some(Err(why)) => {
                    self.wrong(path, node, format!("rule compile error: {why}"));
                    continue;
                }
            };
            let optional_old = rule.compiled.optional_old;
            if rule.compiled.is_transition && old.is_none() && !optional_old {
                continue;
            }
            let vars = optional.as_ref().filter(|_| optional_old).unwrap_or(&plain);
            match program.eval(vars, &mut self.budget) {
                Ok(verdict) if verdict.as_bool() == Some(true) => {}
                Ok(_) => self.failed(node, rule, path, value, &plain, trail)?,
                Err(error @ EvalError::OutOfBudget) => {
                    self.wrong(path, node, error.to_string());
                    return ControlFlow::Break(());
                }
                Err(error @ EvalError::CostLimit) => {
                    let rule = rule.shown();
                    self.wrong(path, node, format!("'{error}': no further validation rules will be run due to call cost exceeds limit for rule: {rule}"));
                    return ControlFlow::Break(());
                }
                Err(error) => {
                    let (error, rule) = (error.to_string(), rule.shown());
                    let detail = if error.starts_with("no such overload") {
                        format!(
                            "'{error}': call arguments did not match a supported operator, function or macro signature for rule: {rule}"
                        )
                    } else {
                        format!("{error} evaluating rule: {rule}")
                    };
                    self.wrong(path, node, detail);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Reports that a rule does not hold.
    fn failed<'a>(
        &mut self,
        node: &Node,
        rule: &Ready,
        path: &Path<'_>,
        value: &Value,
        vars: &Vars<'a>,
        trail: Trail<'_, '_>,
    ) -> ControlFlow<()> {
        let below = path.child(&rule.compiled.field_path);
        let path = if rule.compiled.field_path.is_empty() { path } else { &below };
        let made = match &rule.compiled.message {
            Some(Ok((program, _))) => self.message(program, &rule.message_expression, vars),
            _ => Message::Made(None),
        };
        let (error, flow) = match made {
            Message::Ended(detail) => (FieldError::invalid(path, &*node.ty, detail), ControlFlow::Break(())),
            Message::Made(detail) => {
                let detail = detail.unwrap_or_else(|| match &*rule.message {
                    "" => format!("failed rule: {}", rule.rule),
                    message => message.to_owned(),
                });
                let shown = matches!(rule.kind, ErrorKind::Invalid | ErrorKind::Duplicate)
                    && !matches!(&*node.ty, "object" | "array");
                let error = FieldError {
                    kind: rule.kind,
                    field: path.to_string(),
                    value: shown.then(|| value.clone().into()),
                    detail: if rule.kind == ErrorKind::Duplicate { String::new() } else { detail },
                };
                (error, ControlFlow::Continue(()))
            }
        };
        // What compares with the past is about the update itself.
        if !rule.compiled.is_transition && trail.forgives() {
            self.verdict.warnings.push(error.to_string());
        } else {
            self.verdict.errors.push(error);
        }
        flow
    }

    fn message(&mut self, program: &Program, text: &str, vars: &Vars<'_>) -> Message {
        match program.eval(vars, &mut self.budget) {
            Ok(made) => {
                let made = made.as_str().unwrap_or_default().trim();
                let usable = !made.is_empty() && made.len() <= MAX_MESSAGE_BYTES && !made.contains('\n');
                Message::Made(usable.then(|| made.to_owned()))
            }
            Err(EvalError::OutOfBudget) => Message::Ended(
                "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run".into(),
            ),
            Err(EvalError::CostLimit) => Message::Ended(format!(
                "no further validation rules will be run due to call cost exceeds limit for messageExpression: {text:?}"
            )),
            Err(_) => Message::Made(None),
        }
    }
}
