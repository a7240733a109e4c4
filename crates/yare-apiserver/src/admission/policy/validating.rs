//! ValidatingAdmissionPolicies: may refuse, warn of and note requests.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use yare_cel::Value as Cel;
use yare_kinds::{
    expressions::{BUDGET, Compiler, MAX_MESSAGE_B, Returns, Scope},
    view::View,
};

use super::{
    super::{
        Attributes,
        expressions::{Expression, Failure, Reads, Scene, budget},
        metrics::{Check, ConditionSeries},
    },
    Fault, Invocation, Rules, is_exempt, select,
};
use crate::status::{ApiError, ApiResult, Cause};

const FAILURE: &str = "validation.policy.admission.k8s.io/validation_failure";
const MAX_AUDIT_VALUE_B: usize = 10 * 1024;

/// Reasons that a validation may give, with their codes. The first is what it gives when it says nothing.
const REASONS: [(&str, u16); 4] =
    [("Invalid", 422), ("Forbidden", 403), ("Unauthorized", 401), ("RequestEntityTooLarge", 413)];

/// What a policy has to say of a request.
pub struct Validations {
    validations: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
    reads: Reads,
}

struct Validation {
    expression: Expression,
    message_expression: Option<Expression>,
    message: String,
    reason: (&'static str, u16),
}

impl Rules for Validations {
    const POLICIES: &'static str = "admissionregistration.k8s.io/validatingadmissionpolicies";
    const BINDINGS: &'static str = "admissionregistration.k8s.io/validatingadmissionpolicybindings";

    fn compile(spec: &Value, compiler: &mut Compiler<'_>) -> Self {
        let params = spec.has("paramKind");
        let (scope, message_scope) = (Scope::of_policy(params), Scope::of_message(params));
        let mut reads = Reads::default();
        let validations = spec
            .items("validations")
            .iter()
            .map(|v| Validation {
                expression: Expression::new(
                    compiler,
                    v.str_at("expression"),
                    scope,
                    Returns::Bool,
                    &mut reads,
                ),
                message_expression: Some(v.str_at("messageExpression"))
                    .filter(|m| !m.is_empty())
                    .map(|m| Expression::new(compiler, m, message_scope, Returns::String, &mut reads)),
                message: v.str_at("message").trim().to_owned(),
                reason: *REASONS.iter().find(|(r, _)| *r == v.str_at("reason")).unwrap_or(&REASONS[0]),
            })
            .collect();
        let annotations = spec
            .items("auditAnnotations")
            .iter()
            .map(|a| {
                let source = a.str_at("valueExpression");
                let value = Expression::new(compiler, source, scope, Returns::StringOrNull, &mut reads);
                (a.str_at("key").to_owned(), value)
            })
            .collect();
        Self { validations, annotations, reads }
    }
}

impl Validation {
    /// The message of a validation that does not hold.
    fn message(&self, made: Option<&str>) -> String {
        let made = made.map(str::trim).filter(|m| m.len() <= MAX_MESSAGE_B && !m.contains('\n'));
        match (made.unwrap_or_default(), self.message.as_str()) {
            ("", "") => format!("failed expression: {}", self.expression.source.trim()),
            ("", message) => message.to_owned(),
            (made, _) => made.to_owned(),
        }
    }
}

/// What came of one validation.
struct Decision {
    /// Why the request does not pass, if it does not.
    refusal: Option<String>,
    reason: (&'static str, u16),
    /// A mistake of the policy, and not its judgement.
    failed: bool,
    took: Duration,
}

/// A mistake that no validation by itself made.
fn failed(why: String) -> Decision {
    Decision { refusal: Some(why), reason: REASONS[0], failed: true, took: Duration::ZERO }
}

/// A refusal that the client is told of.
struct Denial {
    message: String,
    reason: (&'static str, u16),
}

/// Lets validating policies see a request. All are asked; the first refusal in order is told.
///
/// # Errors
/// The refusal.
pub fn validate(attributes: &Attributes<'_>, object: Option<&Value>, old: Option<&Value>) -> ApiResult<()> {
    let set = attributes.admission().policies.validating.load();
    let list = set.about(attributes.served);
    if is_exempt(attributes) {
        return Ok(());
    }
    let mut run = Run { attributes, denials: Vec::new(), annotations: BTreeMap::new() };
    let mut found = Vec::new();
    select(list, attributes, object, old, |one| found.push(one));
    let mut scenes: Vec<Scene<'_>> = Vec::new();
    for one in &found {
        match one {
            Err(fault) => run.fault(fault),
            Ok(invocation) => {
                let known = scenes.iter().position(|scene| scene.is_of(&invocation.served));
                let place = known.unwrap_or_else(|| {
                    scenes.push(Scene::new(attributes, &invocation.served, object, old));
                    scenes.len() - 1
                });
                run.invoke(invocation, &scenes[place]);
            }
        }
    }
    for ((policy, key), values) in run.annotations {
        attributes.call.annotate(format!("{policy}/{key}"), values.join(", "));
    }
    match run.denials.into_iter().next() {
        None => Ok(()),
        Some(denial) => Err(refusal(attributes, object, denial)),
    }
}

fn refusal(attributes: &Attributes<'_>, object: Option<&Value>, denial: Denial) -> ApiError {
    let mut error = attributes.forbidden_object(object.unwrap_or(&Value::Null), &denial.message);
    let (reason, code) = denial.reason;
    (error.reason, error.code) = (reason.into(), code);
    error.details.causes.push(Cause { message: denial.message, ..Cause::default() });
    error
}

struct Run<'a> {
    attributes: &'a Attributes<'a>,
    denials: Vec<Denial>,
    /// By policy and key: what its bindings came to.
    annotations: BTreeMap<(&'a str, &'a str), Vec<String>>,
}

impl<'a> Run<'a> {
    fn fault(&mut self, fault: &Fault<'a, Validations>) {
        if !fault.policy.ignores_failures {
            let message = denied(&fault.policy.name, fault.binding.map(|b| b.name.as_str()), &fault.why);
            self.denials.push(Denial { message, reason: REASONS[0] });
        }
    }

    fn invoke(&mut self, invocation: &Invocation<'a, Validations>, scene: &Scene<'_>) {
        let policy = invocation.policy;
        let params = invocation.params.as_deref();
        let holds = policy.conditions.is_empty() || {
            let series = ConditionSeries { name: &policy.name, kind: "policy", step: "validate" };
            let (conditions, variables) = (&policy.conditions, &policy.variables);
            match conditions.hold(scene, params, variables, series, policy.ignores_failures) {
                Ok(holds) => holds,
                Err(why) => return self.decide(invocation, 0, failed(why)),
            }
        };
        if !holds {
            return;
        }
        let (decisions, mistakes) = self.evaluate(invocation, scene);
        for (place, decision) in decisions.into_iter().enumerate() {
            self.decide(invocation, place, decision);
        }
        for why in mistakes {
            self.deny(invocation, &why, REASONS[0]);
            self.measure(invocation, Check::Deny, Some(&why), Duration::ZERO);
        }
    }

    /// What comes of the validations, and the mistakes of audit annotations that refuse the request.
    fn evaluate(
        &mut self,
        invocation: &Invocation<'a, Validations>,
        scene: &Scene<'_>,
    ) -> (Vec<Decision>, Vec<String>) {
        let policy = invocation.policy;
        let only = |why: String| (vec![failed(why)], Vec::new());
        let lazy = policy.variables.lazy();
        let reads = policy.rules.reads.and(policy.variables.reads);
        let mut vars = match scene.vars(reads, invocation.params.as_deref()) {
            Ok(vars) => vars,
            Err(error) => return only(format!("failed to convert object version: {}", error.message)),
        };
        vars.bind_lazy("variables", &lazy);
        let mut left = budget(BUDGET);
        let mut decisions = Vec::with_capacity(policy.rules.validations.len());
        for validation in &policy.rules.validations {
            let started = Instant::now();
            let value = validation.expression.eval(&vars, &mut left);
            let (refusal, failed) = match value {
                Ok(value) if value.as_bool() == Some(true) => (None, false),
                // Its message is made below.
                Ok(_) => (Some(String::new()), false),
                Err(Failure::OutOfBudget) => return only(Failure::OutOfBudget.to_string()),
                Err(failure) => (Some(failure.to_string()), true),
            };
            let took = started.elapsed();
            decisions.push(Decision { refusal, reason: validation.reason, failed, took });
        }
        for (validation, decision) in policy.rules.validations.iter().zip(&mut decisions) {
            if decision.refusal.is_none() || decision.failed {
                continue;
            }
            let made = validation.message_expression.as_ref().map(|m| m.eval(&vars, &mut left));
            decision.refusal = Some(match made {
                Some(Err(Failure::OutOfBudget)) => {
                    decision.failed = true;
                    format!("failed messageExpression: {}", Failure::OutOfBudget)
                }
                Some(Ok(made)) => validation.message(made.as_str()),
                Some(Err(_)) | None => validation.message(None),
            });
        }
        let mut left = budget(BUDGET);
        let mut mistakes = Vec::new();
        for (key, expression) in &policy.rules.annotations {
            let value = match expression.eval(&vars, &mut left) {
                Ok(Cel::Null) => continue,
                Ok(value) => match value.as_str() {
                    Some(text) => Ok(text.trim().to_owned()),
                    None => Err(format!(
                        "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                        expression.source,
                        value.type_name()
                    )),
                },
                Err(Failure::OutOfBudget) => return only(Failure::OutOfBudget.to_string()),
                Err(_) if policy.ignores_failures => continue,
                Err(failure) => Err(failure.to_string()),
            };
            match value {
                Ok(text) if text.is_empty() => {}
                Ok(text) => self.note(&policy.name, key, text),
                Err(why) => mistakes.push(why),
            }
        }
        (decisions, mistakes)
    }

    fn note(&mut self, policy: &'a str, key: &'a str, mut text: String) {
        let mut end = text.len().min(MAX_AUDIT_VALUE_B);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        let values = self.annotations.entry((policy, key)).or_default();
        if !values.contains(&text) {
            values.push(text);
        }
    }

    fn deny(&mut self, invocation: &Invocation<'a, Validations>, why: &str, reason: (&'static str, u16)) {
        let message = denied(&invocation.policy.name, Some(&invocation.binding.name), why);
        self.denials.push(Denial { message, reason });
    }

    fn measure(
        &self,
        invocation: &Invocation<'a, Validations>,
        action: Check,
        error: Option<&str>,
        took: Duration,
    ) {
        let metrics = &self.attributes.admission().metrics;
        metrics.validation(&invocation.policy.name, &invocation.binding.name, action, error, took);
    }

    fn decide(&mut self, invocation: &Invocation<'a, Validations>, place: usize, decision: Decision) {
        let (policy, binding) = (invocation.policy, invocation.binding);
        let Some(why) = decision.refusal else { return };
        let (took, error) = (decision.took, Some(why.as_str()));
        if decision.failed && policy.ignores_failures {
            return self.measure(invocation, Check::Allow, error, took);
        }
        // A mistake is no reason of the policy's.
        let reason = if decision.failed { REASONS[0] } else { decision.reason };
        for action in &binding.actions {
            match action.as_str() {
                "Deny" => {
                    self.deny(invocation, &why, reason);
                    self.measure(invocation, Check::Deny, error, took);
                }
                "Warn" => {
                    self.attributes.call.warn(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {why}",
                        policy.name, binding.name
                    ));
                    self.measure(invocation, Check::Warn, error, took);
                }
                "Audit" => {
                    let failure = json!([{
                        "message": why, "policy": policy.name, "binding": binding.name,
                        "expressionIndex": place, "validationActions": binding.actions,
                    }]);
                    self.attributes.call.annotate(FAILURE, failure.to_string());
                    self.measure(invocation, Check::Audit, error, took);
                }
                _ => {}
            }
        }
    }
}

fn denied(policy: &str, binding: Option<&str>, why: &str) -> String {
    match binding {
        Some(binding) => {
            format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}' denied request: {why}")
        }
        None => format!("ValidatingAdmissionPolicy '{policy}' denied request: {why}"),
    }
}
