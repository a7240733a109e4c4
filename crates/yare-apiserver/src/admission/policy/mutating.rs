//! MutatingAdmissionPolicies: change objects, by apply configurations that are merged in or by JSON patches.

use std::{collections::BTreeSet, time::Instant};

use serde_json::Value;
use yare_cel::Value as Cel;
use yare_kinds::{
    expressions::{BUDGET, Compiler, Returns, Scope},
    view::{View, ViewMut, same},
};
use yare_schema::{managed, patch};

use super::{
    super::{
        Attributes,
        expressions::{Expression, Reads, Scene, budget},
        metrics::ConditionSeries,
        request,
    },
    Fault, Invocation, Rules, is_exempt, select,
};
use crate::{
    codec,
    status::{ApiError, ApiResult, Cause},
};

/// What a policy does to objects.
pub struct Mutations {
    mutations: Vec<Mutation>,
    reads: Reads,
    /// Wants to see later changes.
    reinvoke: bool,
}

struct Mutation {
    expression: Expression,
    is_patch: bool,
}

impl Rules for Mutations {
    const POLICIES: &'static str = "admissionregistration.k8s.io/mutatingadmissionpolicies";
    const BINDINGS: &'static str = "admissionregistration.k8s.io/mutatingadmissionpolicybindings";

    fn compile(spec: &Value, compiler: &mut Compiler<'_>) -> Self {
        let scope = Scope::of_mutation(spec.has("paramKind"));
        let mut reads = Reads::default();
        let mutations = spec
            .items("mutations")
            .iter()
            .map(|mutation| {
                let is_patch = mutation.str_at("patchType") == "JSONPatch";
                let (field, returns) = if is_patch {
                    ("jsonPatch.expression", Returns::Patches)
                } else {
                    ("applyConfiguration.expression", Returns::Object)
                };
                let source = mutation.str_at(field);
                Mutation {
                    expression: Expression::new(compiler, source, scope, returns, &mut reads),
                    is_patch,
                }
            })
            .collect();
        Self { mutations, reads, reinvoke: spec.str_at("reinvocationPolicy") == "IfNeeded" }
    }
}

/// A policy, its binding, and namespace and name of its parameters.
type Key = (String, String, String, String);

/// What is remembered from the first round of policies for the second, and last.
#[derive(Default)]
pub struct Rounds {
    round: usize,
    /// What the policies left behind.
    output: Option<Value>,
    /// Policies that want to see later changes and have run.
    invoked: BTreeSet<Key>,
    /// Of them, those that a change came after.
    due: BTreeSet<Key>,
    changed: bool,
}

impl Rounds {
    /// Whether any policy changed the object.
    pub fn has_changes(&self) -> bool {
        self.changed
    }
}

/// Why a mutation is not made.
enum Refusal {
    /// The policy's mistake.
    Policy(String),
    /// The server's, or what is told as it is.
    Server(ApiError),
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self::Server(error)
    }
}

/// Lets policies change the object (of the storage version). Whether plugins, policies and webhooks should see it
/// once more.
///
/// # Errors
/// A policy makes a mistake, and says that the request then fails.
pub fn mutate(
    attributes: &Attributes<'_>,
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
) -> ApiResult<bool> {
    let set = attributes.admission().policies.mutating.load();
    let list = set.about(attributes.served);
    if is_exempt(attributes) {
        return Ok(false);
    }
    let mut found = Vec::new();
    select(list, attributes, Some(object), old, |one| found.push(one));
    if found.is_empty() {
        return Ok(false);
    }
    let again = rounds.round > 0;
    rounds.round += 1;
    if again && rounds.output.as_ref().is_some_and(|output| !same(output, object)) {
        rounds.due.append(&mut rounds.invoked);
    }
    let mut refusals = Vec::new();
    let mut any = false;
    for one in found {
        match one {
            Err(fault) => refuse(&mut refusals, &fault, "Forbidden"),
            Ok(invocation) => {
                let changed = invoke(attributes, &invocation, object, old, rounds, again, &mut refusals)?;
                any |= changed;
            }
        }
    }
    if any {
        rounds.due.append(&mut rounds.invoked);
        rounds.changed = true;
    }
    if !again {
        rounds.output = Some(object.clone());
    }
    match denied(attributes, object, refusals) {
        Some(error) => Err(error),
        None => Ok(any && !again),
    }
}

/// Lets policies see (but not change) a connection.
///
/// # Errors
/// As [`mutate`].
pub fn observe(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let Some(object) = object.filter(|_| attributes.admission().policies.may_change(attributes)) else {
        return Ok(());
    };
    mutate(attributes, &mut object.clone(), old, &mut Rounds::default()).map(|_| ())
}

/// Message and reason.
type Refused = (String, &'static str);

fn refuse(refusals: &mut Vec<Refused>, fault: &Fault<'_, Mutations>, reason: &'static str) {
    let (policy, why) = (fault.policy, &fault.why);
    if policy.ignores_failures {
        return;
    }
    let message = match fault.binding {
        Some(binding) => {
            format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name)
        }
        None => format!("policy {:?} denied request: {why}", policy.name),
    };
    refusals.push((message, reason));
}

/// All refusals in one error; the first is its message.
fn denied(attributes: &Attributes<'_>, object: &Value, refusals: Vec<Refused>) -> Option<ApiError> {
    let (message, reason) = refusals.first()?.clone();
    let mut error = attributes.forbidden_object(object, "admission request denied by policy");
    (error.message, error.reason) = (message, reason.into());
    let causes = refusals.into_iter().map(|(message, _)| Cause { message, ..Cause::default() });
    error.details.causes.extend(causes);
    Some(error)
}

/// Runs a policy. Whether it changed the object.
fn invoke(
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_, Mutations>,
    object: &mut Value,
    old: Option<&Value>,
    rounds: &mut Rounds,
    again: bool,
    refusals: &mut Vec<Refused>,
) -> ApiResult<bool> {
    let Invocation { policy, binding, served, params } = invocation;
    let metrics = &attributes.admission().metrics;
    let mut refuse = |why: String| {
        refuse(refusals, &Fault { policy, binding: Some(binding), why }, "Invalid");
    };
    if !policy.conditions.is_empty() {
        let scene = Scene::new(attributes, served, Some(object), old);
        let series = ConditionSeries { name: &policy.name, kind: "policy", step: "validate" };
        let (conditions, variables) = (&policy.conditions, &policy.variables);
        match conditions.hold(&scene, params.as_deref(), variables, series, policy.ignores_failures) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                refuse(why);
                return Ok(false);
            }
        }
    }
    let of = |path: &str| params.as_ref().map_or("", |p| p.str_at(path)).to_owned();
    let key: Key = (policy.name.clone(), binding.name.clone(), of("metadata.namespace"), of("metadata.name"));
    if again && !rounds.due.contains(&key) {
        return Ok(false);
    }
    let mut changed = false;
    for mutation in &policy.rules.mutations {
        let started = Instant::now();
        let done = apply(attributes, invocation, mutation, object, old);
        let took = started.elapsed();
        let error = match &done {
            Ok(_) => None,
            Err(Refusal::Policy(why)) => Some(why.as_str()),
            Err(Refusal::Server(error)) => Some(error.message.as_str()),
        };
        metrics.mutation(&policy.name, &binding.name, error, took);
        match done {
            Ok(None) => {}
            Ok(Some(new)) => {
                crate::managed::replace(attributes.call, object, new);
                changed = true;
            }
            Err(Refusal::Policy(why)) => refuse(why),
            Err(Refusal::Server(error)) => return Err(error),
        }
    }
    if changed {
        rounds.due.append(&mut rounds.invoked);
    }
    if policy.rules.reinvoke {
        rounds.invoked.insert(key);
    }
    Ok(changed)
}

/// Makes one mutation: the object of the storage version where that changes it.
fn apply(
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_, Mutations>,
    mutation: &Mutation,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Value>, Refusal> {
    let Invocation { policy, served, params, .. } = invocation;
    let scene = Scene::new(attributes, served, Some(object), old);
    let lazy = policy.variables.lazy();
    let reads = policy.rules.reads.and(policy.variables.reads);
    let mut vars = scene.vars(reads, params.as_deref())?;
    vars.bind_lazy("variables", &lazy);
    let mut left = budget(BUDGET);
    let made =
        mutation.expression.eval(&vars, &mut left).map_err(|failure| Refusal::Policy(failure.to_string()))?;
    let patched = if mutation.is_patch {
        match patch::json::apply(scene.written()?, &operations(&made)?) {
            // The patch says itself that it is not for this object.
            Err(error) if error.is_failed_test() => return Ok(None),
            done => done.map_err(|e| Refusal::Policy(format!("JSON Patch: {e}")))?,
        }
    } else {
        let shown = request::in_version(attributes, served, object)?;
        merged(attributes, invocation, &made, &shown)?
    };
    Ok(request::settle(attributes, served, object, patched, mutation.is_patch)?)
}

fn misnamed(value: &Cel<'_>) -> Result<(), Refusal> {
    let wrong = match value {
        Cel::Struct(made) => made.misnamed(),
        _ => Vec::new(),
    };
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Refusal::Policy(format!("type mismatch: {}", wrong.join("\n"))))
    }
}

/// The operations that an expression made, as a document.
fn operations(made: &Cel<'_>) -> Result<Value, Refusal> {
    let wrong = |what: String| Refusal::Policy(format!("type mismatch: {what}"));
    let Cel::List(list) = made else {
        return Err(wrong("JSONPatchType.expression should evaluate to array".into()));
    };
    let mut out = Vec::with_capacity(list.len());
    for operation in list.values().map_err(|e| Refusal::Policy(e.to_string()))? {
        let Cel::Struct(fields) = &operation else {
            return Err(wrong("JSONPatchType.expression should evaluate to array of JSONPatch".into()));
        };
        if let Some(value) = fields.fields.get("value") {
            misnamed(value)?;
        }
        let mut operation = operation.to_json().map_err(|e| {
            let why = "JSONPath valueExpression evaluated to a type that could not marshal to JSON";
            Refusal::Policy(format!("{why}: {e}"))
        })?;
        for field in ["op", "path"] {
            operation.default_absent(field, "");
        }
        if operation.str_at("from").is_empty() {
            operation.remove("from");
        }
        out.push(operation);
    }
    Ok(Value::Array(out))
}

/// The object with an apply configuration merged in. Who writes keeps what it owns: a policy owns nothing.
fn merged(
    attributes: &Attributes<'_>,
    invocation: &Invocation<'_, Mutations>,
    made: &Cel<'_>,
    shown: &Value,
) -> Result<Value, Refusal> {
    misnamed(made)?;
    let mut configuration = made.to_json().map_err(|e| Refusal::Policy(e.to_string()))?;
    // What it is of is not the policy's to say.
    for field in ["apiVersion", "kind"] {
        configuration.copy_from(shown, field);
    }
    let served = &invocation.served;
    let own = served.sub(attributes.subresource).and_then(|s| s.kind.as_ref());
    let ty = match own {
        Some((group, version, kind)) => codec::builtin_type(group, version, kind)
            .ok_or_else(|| ApiError::unavailable(format!("Resource kind {kind} not found.")))?,
        None => served.ty.at(),
    };
    managed::overlay(ty, shown, &configuration)
        .map_err(|why| Refusal::Policy(format!("error applying patch: {why}")))
}
