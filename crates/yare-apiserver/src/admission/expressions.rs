//! Expressions at run time: what they see of a request, and what they may cost.
//!
//! A [`Scene`] is a request in one version of its resource. What expressions do not read is not made: neither the
//! object in another version than the one that it rests in, nor `request`, nor the namespace.

use std::{borrow::Cow, cell::OnceCell, sync::Arc, time::Instant};

use serde_json::Value;
use yare_auth::{Action, User};
use yare_cel::{
    Budget, Decl, EvalError, Lazy, References, Value as Cel, Vars,
    authz::{self, Authorizer, Decision, Subject, Target},
};
use yare_kinds::{
    expressions::{CONDITIONS_BUDGET, Compiled, Compiler, PER_CALL_LIMIT, Returns, Scope, written},
    view::{View, ViewMut},
};
use yare_schema::{
    encode,
    selector::{FieldSelector, LabelSelector},
};

use super::{
    Attributes,
    metrics::ConditionSeries,
    request::{self, Members},
};
use crate::{auth, core::Core, registry::Served, status::ApiResult};

static NULL: Value = Value::Null;
/// Objects are dynamic when expressions run, whatever type checking knew of them.
static DYNAMIC: Decl = Decl::DYNAMIC;

/// What some expressions read beside the object.
#[derive(Clone, Copy, Default, Debug)]
pub struct Reads {
    object: bool,
    old: bool,
    request: Members,
    namespace: bool,
    authorizer: bool,
}

impl Reads {
    fn add(&mut self, references: &References) {
        self.object |= references.reads("object");
        self.old |= references.reads("oldObject");
        self.request = references.paths.iter().fold(self.request, |all, path| match path.split_once('.') {
            Some(("request", rest)) => all.and(Members::named(rest.split('.').next().unwrap_or_default())),
            None if path == "request" => Members::ALL,
            _ => all,
        });
        self.namespace |= references.reads("namespaceObject");
        self.authorizer |= references.reads("authorizer") || references.reads("authorizer.requestResource");
    }

    /// What either reads.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            object: self.object || other.object,
            old: self.old || other.old,
            request: self.request.and(other.request),
            namespace: self.namespace || other.namespace,
            authorizer: self.authorizer || other.authorizer,
        }
    }
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It does not compile, or failed.
    Expression(String),
    /// All that its kind may cost is spent: nothing more is evaluated.
    OutOfBudget,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Expression(why) => f.write_str(why),
            Self::OutOfBudget => EvalError::OutOfBudget.fmt(f),
        }
    }
}

/// An expression that was compiled, or why it could not be.
#[derive(Debug)]
pub struct Expression {
    /// Its text.
    pub source: String,
    compiled: Result<Compiled, String>,
}

impl Expression {
    /// Compiles a stored expression; adds what it reads to `reads`.
    pub fn new(
        compiler: &mut Compiler<'_>,
        source: &str,
        scope: Scope,
        returns: Returns,
        reads: &mut Reads,
    ) -> Self {
        let age = yare_kinds::expressions::Age::Stored;
        let compiled = compiler.compile(source, scope, returns, age).map_err(|unfit| unfit.why);
        if let Ok(compiled) = &compiled {
            reads.add(&compiled.references);
        }
        Self { source: source.to_owned(), compiled }
    }

    /// Evaluates it.
    pub fn eval<'v>(&self, vars: &Vars<'v>, budget: &mut Budget) -> Result<Cel<'v>, Failure> {
        let compiled =
            self.compiled.as_ref().map_err(|e| Failure::Expression(format!("compilation error: {e}")))?;
        compiled.program.eval(vars, budget).map_err(|error| match error {
            EvalError::OutOfBudget => Failure::OutOfBudget,
            error => Failure::Expression(format!("expression '{}' resulted in error: {error}", self.source)),
        })
    }
}

/// What is left to spend, with the limit of one evaluation.
pub fn budget(total: u64) -> Budget {
    Budget::new(PER_CALL_LIMIT, total)
}

/// Variables that the expressions of a policy share.
#[derive(Default, Debug)]
pub struct Variables {
    list: Vec<(String, Compiled)>,
    /// What they read.
    pub reads: Reads,
}

impl Variables {
    /// Compiles the stored `variables` of a policy, in their order.
    pub fn new(compiler: &mut Compiler<'_>, variables: &[Value], scope: Scope) -> Self {
        let mut out = Self::default();
        for variable in variables {
            let (name, source) = (variable.str_at("name"), variable.str_at("expression"));
            match compiler.variable(name, source, scope, yare_kinds::expressions::Age::Stored) {
                Ok(compiled) => {
                    out.reads.add(&compiled.references);
                    out.list.push((name.to_owned(), compiled));
                }
                // Who reads it fails with that.
                Err(unfit) => {
                    tracing::warn!(variable = name, why = unfit.why, "a policy's variable does not compile");
                }
            }
        }
        out
    }

    /// The variables, each to be evaluated when it is first read.
    pub fn lazy(&self) -> Lazy<'_> {
        let mut lazy = Lazy::new();
        for (name, compiled) in &self.list {
            lazy.push(name, &compiled.program);
        }
        lazy
    }
}

/// A request in one version of its resource.
pub struct Scene<'a> {
    attributes: &'a Attributes<'a>,
    served: Arc<Served>,
    object: Option<&'a Value>,
    old: Option<&'a Value>,
    shown: OnceCell<Cow<'a, Value>>,
    shown_old: OnceCell<Cow<'a, Value>>,
    /// What was read of it first, and all of it where that is not enough.
    request: OnceCell<(Members, Value)>,
    whole_request: OnceCell<Value>,
    namespace: OnceCell<Value>,
    asker: OnceCell<Arc<dyn Authorizer>>,
}

impl<'a> Scene<'a> {
    /// The request with these objects of the storage version.
    pub fn new(
        attributes: &'a Attributes<'a>,
        served: &Arc<Served>,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> Self {
        Self {
            attributes,
            served: served.clone(),
            object,
            old,
            shown: OnceCell::new(),
            shown_old: OnceCell::new(),
            request: OnceCell::new(),
            whole_request: OnceCell::new(),
            namespace: OnceCell::new(),
            asker: OnceCell::new(),
        }
    }

    /// Whether it shows this version.
    pub fn is_of(&self, served: &Arc<Served>) -> bool {
        Arc::ptr_eq(&self.served, served)
    }

    /// The object in this version, with what Go writes of it; `null` where there is none.
    ///
    /// # Errors
    /// The object cannot be brought into this version.
    pub fn written(&self) -> ApiResult<Value> {
        let mut object = self.show(&self.shown, self.object)?.clone();
        if let Some(ty) = request::type_in(self.attributes, &self.served) {
            encode::fill(ty, &mut object);
        }
        Ok(object)
    }

    fn show<'s>(
        &self,
        place: &'s OnceCell<Cow<'a, Value>>,
        object: Option<&'a Value>,
    ) -> ApiResult<&'s Value> {
        let Some(object) = object else { return Ok(&NULL) };
        if place.get().is_none() {
            let _ = place.set(self.versioned(object)?);
        }
        Ok(place.get().map_or(&NULL, |shown| &**shown))
    }

    /// The object in this version.
    fn versioned(&self, object: &'a Value) -> ApiResult<Cow<'a, Value>> {
        let own = self.served.sub(self.attributes.subresource).is_some_and(|s| s.kind.is_some());
        if own || self.served.is_storage() {
            return Ok(Cow::Borrowed(object));
        }
        request::in_version(self.attributes, &self.served, object).map(Cow::Owned)
    }

    fn request(&self, members: Members) -> &Value {
        let made = |members: Members| {
            let mut request = request::describe(self.attributes, &self.served, self.object, members);
            for (name, value) in [("uid", "".into()), ("object", Value::Null), ("oldObject", Value::Null)] {
                if members.has(name) {
                    request.insert(name.into(), value);
                }
            }
            Value::Object(request)
        };
        let (first, request) = self.request.get_or_init(|| (members, made(members)));
        if first.covers(members) { request } else { self.whole_request.get_or_init(|| made(Members::ALL)) }
    }

    fn namespace(&self) -> &Value {
        self.namespace.get_or_init(|| {
            let attributes = self.attributes;
            if attributes.namespace.is_empty() || attributes.is("", "namespaces") {
                return Value::Null;
            }
            let Some(mut namespace) = attributes.call.core.read("namespaces", attributes.namespace) else {
                return Value::Null;
            };
            for field in ["apiVersion", "kind", "metadata.managedFields", "metadata.ownerReferences"] {
                namespace.remove(field);
            }
            namespace
        })
    }

    fn asker(&self) -> &Arc<dyn Authorizer> {
        self.asker.get_or_init(|| {
            let call = self.attributes.call;
            Arc::new(Asker { core: call.core.clone(), user: call.user.clone() })
        })
    }

    /// The variables of an evaluation.
    ///
    /// # Errors
    /// The object cannot be brought into this version.
    pub fn vars<'v>(&'v self, reads: Reads, params: Option<&'v Value>) -> ApiResult<Vars<'v>> {
        let mut vars = Vars::new();
        // Go writes some fields of built-in types although nobody set them, and expressions count on that.
        let decl = request::type_in(self.attributes, &self.served).map_or(&DYNAMIC, written::of);
        let object = if reads.object { self.show(&self.shown, self.object)? } else { &NULL };
        vars.bind_json("object", object, decl);
        let old = if reads.old { self.show(&self.shown_old, self.old)? } else { &NULL };
        vars.bind_json("oldObject", old, decl);
        let mut bind = |name, value| vars.bind_json(name, value, &DYNAMIC);
        bind("request", if reads.request.is_none() { &NULL } else { self.request(reads.request) });
        bind("namespaceObject", if reads.namespace { self.namespace() } else { &NULL });
        bind("params", params.unwrap_or(&NULL));
        if reads.authorizer {
            let attributes = self.attributes;
            vars.bind("authorizer", authz::authorizer(self.asker().clone()));
            let resource = authz::Resource {
                group: attributes.served.group.to_string(),
                resource: attributes.served.plural.to_string(),
                subresource: attributes.subresource.to_owned(),
                namespace: attributes.namespace.to_owned(),
                name: attributes.name.to_owned(),
                ..authz::Resource::default()
            };
            let check = authz::request_resource(self.asker().clone(), resource);
            vars.bind("authorizer.requestResource", check);
        }
        Ok(vars)
    }
}

/// Answers what expressions ask of the authorizers.
struct Asker {
    core: Arc<Core>,
    user: Arc<User>,
}

impl Authorizer for Asker {
    fn authorize(&self, attributes: &authz::Attributes) -> Decision {
        let account;
        let (fields, labels);
        let user = match &attributes.subject {
            Subject::Caller => &self.user,
            Subject::ServiceAccount { namespace, name } => {
                account = User::service_account(namespace, name, "");
                &account
            }
        };
        let action = match &attributes.target {
            Target::Path(path) => Action { verb: &attributes.verb, path, ..Action::default() },
            Target::Resource(resource) => {
                // What cannot be read narrows nothing.
                fields = FieldSelector::parse(&resource.field_selector).unwrap_or_default();
                labels = LabelSelector::parse(&resource.label_selector).unwrap_or_default();
                Action {
                    verb: &attributes.verb,
                    group: &resource.group,
                    resource: &resource.resource,
                    subresource: &resource.subresource,
                    namespace: &resource.namespace,
                    name: &resource.name,
                    fields: fields.requirements(),
                    labels: labels.requirements(),
                    ..Action::default()
                }
            }
        };
        match auth::decide_at_once(&self.core, user, &action) {
            Ok(reason) => Decision { allowed: true, reason, error: None },
            Err(reason) => Decision { allowed: false, reason, error: None },
        }
    }
}

/// The match conditions of a webhook or policy.
#[derive(Default)]
pub struct Conditions {
    list: Vec<Expression>,
    reads: Reads,
}

impl Conditions {
    /// Of a webhook.
    pub fn of_webhook(conditions: &[Value]) -> Self {
        Self::new(&mut Compiler::plain(), conditions, Scope::of_policy(false))
    }

    /// Compiled among the variables of a policy.
    pub fn new(compiler: &mut Compiler<'_>, conditions: &[Value], scope: Scope) -> Self {
        let mut reads = Reads::default();
        let list = conditions
            .iter()
            .map(|c| Expression::new(compiler, c.str_at("expression"), scope, Returns::Bool, &mut reads))
            .collect();
        Self { list, reads }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether all of them hold. One that does not hold decides; failures count only where none does, as
    /// `ignores_failures` has it.
    ///
    /// # Errors
    /// What failed.
    pub fn hold(
        &self,
        scene: &Scene<'_>,
        params: Option<&Value>,
        variables: &Variables,
        series: ConditionSeries<'_>,
        ignores_failures: bool,
    ) -> Result<bool, String> {
        let started = Instant::now();
        let (metrics, operation) = (&scene.attributes.admission().metrics, scene.attributes.operation);
        // Upstream shows them no namespace.
        let reads = Reads { namespace: false, ..self.reads.and(variables.reads) };
        let lazy = variables.lazy();
        let mut vars = scene.vars(reads, params).map_err(|e| e.message)?;
        vars.bind_lazy("variables", &lazy);
        let mut budget = budget(CONDITIONS_BUDGET);
        let mut failures: Vec<String> = Vec::new();
        let mut holds = true;
        for condition in &self.list {
            match condition.eval(&vars, &mut budget) {
                Ok(value) if value.as_bool() == Some(false) => {
                    holds = false;
                    break;
                }
                Ok(_) => {}
                Err(Failure::OutOfBudget) => {
                    failures = vec![Failure::OutOfBudget.to_string()];
                    break;
                }
                Err(failure) => {
                    metrics.condition_failed(series, operation);
                    let text = failure.to_string();
                    if !failures.contains(&text) {
                        failures.push(text);
                    }
                }
            }
        }
        if !holds || !failures.is_empty() {
            metrics.conditions(series, operation, started.elapsed());
        }
        match failures.as_slice() {
            _ if !holds => Ok(false),
            [] => Ok(true),
            _ if ignores_failures => Ok(false),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}
