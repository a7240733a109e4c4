//! What admission counts and measures, under upstream's names (`k8s.io/apiserver/pkg/admission/metrics`,
//! `k8s.io/pod-security-admission/metrics`). Steps and plugins, which every write passes, are atomics; the rest
//! is one table of families.

use std::time::Duration;

use yare_metrics::{
    table::{Counts, Family, Kind},
    text::Page,
    timing::Timing,
};

use super::{Operation, TABLE};

/// Upper bounds of upstream's buckets for steps and plugins, in seconds.
const BOUNDS_S: [f64; 6] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5];
/// Those for webhooks.
const WEBHOOK_BOUNDS_S: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
/// Those for match conditions.
const CONDITION_BOUNDS_S: &[f64] = &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25];
/// Those for expressions of policies.
const CHECK_BOUNDS_S: &[f64] = &[0.000_000_5, 0.001, 0.01, 0.1, 1.0];

const STEP: &str = "apiserver_admission_step_admission_duration_seconds";
const STEP_HELP: &str = "[STABLE] Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).";
const SUMMARY: &str = "apiserver_admission_step_admission_duration_seconds_summary";
const SUMMARY_HELP: &str = "[ALPHA] Admission sub-step latency summary in seconds, broken out for each operation and API resource and step type (validate or admit).";
const PLUGIN: &str = "apiserver_admission_controller_admission_duration_seconds";
const PLUGIN_HELP: &str = "[STABLE] Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).";

static WEBHOOK: Family = Family::labelled(
    "apiserver_admission_webhook_admission_duration_seconds",
    Kind::Histogram(WEBHOOK_BOUNDS_S),
    &["name", "type", "operation", "rejected"],
    "[STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
);
static VALIDATION_CHECKS: Family = Family::labelled(
    "apiserver_validating_admission_policy_check_total",
    Kind::Counter,
    CHECK_LABELS,
    "[BETA] Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.",
);
static MUTATION_CHECKS: Family = Family::labelled(
    "apiserver_mutating_admission_policy_check_total",
    Kind::Counter,
    MUTATION_LABELS,
    "[ALPHA] Mutation admission policy check total, labeled by policy and further identified by binding.",
);
static CONDITION_ERRORS: Family = Family::labelled(
    "apiserver_admission_match_condition_evaluation_errors_total",
    Kind::Counter,
    CONDITION_LABELS,
    "[ALPHA] Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).",
);
static CONDITION_EXCLUSIONS: Family = Family::labelled(
    "apiserver_admission_match_condition_exclusions_total",
    Kind::Counter,
    CONDITION_LABELS,
    "[ALPHA] Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).",
);
static FAIL_OPEN: Family = Family::labelled(
    "apiserver_admission_webhook_fail_open_count",
    Kind::Counter,
    &["name", "type"],
    "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type (validating or admit).",
);
static REJECTIONS: Family = Family::labelled(
    "apiserver_admission_webhook_rejection_count",
    Kind::Counter,
    &["name", "type", "operation", "error_type", "rejection_code"],
    "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation.",
);
static REQUESTS: Family = Family::labelled(
    "apiserver_admission_webhook_request_total",
    Kind::Counter,
    &["name", "type", "operation", "code", "rejected"],
    "[ALPHA] Admission webhook request total, identified by name and broken out for each admission type (validating or admit) and operation.",
);
static CONDITIONS: Family = Family::labelled(
    "apiserver_admission_match_condition_evaluation_seconds",
    Kind::Histogram(CONDITION_BOUNDS_S),
    CONDITION_LABELS,
    "[ALPHA] Admission match condition evaluation time in seconds, identified by name and broken out for each kind containing matchConditions (webhook or policy), operation and type (validate or admit).",
);
static VALIDATIONS: Family = Family::labelled(
    "apiserver_validating_admission_policy_check_duration_seconds",
    Kind::Histogram(CHECK_BOUNDS_S),
    CHECK_LABELS,
    "[BETA] Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.",
);
static MUTATIONS: Family = Family::labelled(
    "apiserver_mutating_admission_policy_check_duration_seconds",
    Kind::Histogram(CHECK_BOUNDS_S),
    MUTATION_LABELS,
    "[ALPHA] Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.",
);
static EVALUATIONS: Family = Family::labelled(
    "pod_security_evaluations_total",
    Kind::Counter,
    &["decision", "policy_level", "policy_version", "mode", "request_operation", "resource", "subresource"],
    "[ALPHA] Number of policy evaluations that occurred, not counting ignored or exempt requests.",
);
static EXEMPTIONS: Family = Family::labelled(
    "pod_security_exemptions_total",
    Kind::Counter,
    &["request_operation", "resource", "subresource"],
    "[ALPHA] Number of exempt requests, not counting ignored or out of scope requests.",
);
static ERRORS: Family = Family::labelled(
    "pod_security_errors_total",
    Kind::Counter,
    &["fatal", "request_operation", "resource", "subresource"],
    "[ALPHA] Number of errors preventing normal evaluation. Non-fatal errors may result in the latest restricted profile being used for evaluation.",
);
const CONDITION_LABELS: &[&str] = &["name", "kind", "type", "operation"];
const CHECK_LABELS: &[&str] = &["policy", "policy_binding", "error_type", "enforcement_action"];
const MUTATION_LABELS: &[&str] = &["policy", "policy_binding", "error_type"];

/// What is told apart by words.
static FAMILIES: &[&Family] = &[
    &WEBHOOK,
    &VALIDATION_CHECKS,
    &MUTATION_CHECKS,
    &CONDITION_ERRORS,
    &CONDITION_EXCLUSIONS,
    &FAIL_OPEN,
    &REJECTIONS,
    &REQUESTS,
    &CONDITIONS,
    &VALIDATIONS,
    &MUTATIONS,
    &EVALUATIONS,
    &EXEMPTIONS,
    &ERRORS,
];

/// Half of admission.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Changes.
    Admit,
    /// Refusals.
    Validate,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Validate => "validate",
        }
    }
}

const STEPS: [Step; 2] = [Step::Admit, Step::Validate];
const OPERATIONS: [Operation; 4] =
    [Operation::Create, Operation::Update, Operation::Delete, Operation::Connect];
/// Series of one plugin: step, operation, rejected.
const CELLS: usize = 2 * 4 * 2;

/// What came of a call of a webhook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It answered and lets the request pass.
    Allowed,
    /// It refused, with this code.
    Denied(u16),
    /// It could not be asked, and the request fails with it.
    Failed(u16),
    /// It could not be asked, and the request passes.
    FailedOpen(u16),
    /// The server itself could not go on.
    Internal,
}

impl Outcome {
    fn code(self) -> u16 {
        match self {
            Self::Allowed => 200,
            // Upstream bounds what a webhook may make labels of.
            Self::Denied(code) | Self::Failed(code) | Self::FailedOpen(code) => code.min(600),
            Self::Internal => 0,
        }
    }

    fn is_rejected(self) -> bool {
        !matches!(self, Self::Allowed | Self::FailedOpen(_))
    }
}

/// Whose match conditions are counted: its name, `webhook` or `policy`, and `admit` or `validate`.
#[derive(Clone, Copy, Debug)]
pub struct ConditionSeries<'a> {
    /// The webhook or policy.
    pub name: &'a str,
    /// What it is.
    pub kind: &'static str,
    /// When it is asked.
    pub step: &'static str,
}

impl ConditionSeries<'_> {
    fn labels(&self, operation: Operation) -> [&str; 4] {
        [self.name, self.kind, self.step, operation.name()]
    }
}

/// Labels of the evaluation of a pod by Pod Security.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Evaluation {
    /// `allow` or `deny`
    pub decision: &'static str,
    /// `baseline`
    pub level: &'static str,
    /// Minor release; `None` for the newest, what is beyond it is `future`.
    pub version: Option<u32>,
    /// `enforce`, `audit` or `warn`
    pub mode: &'static str,
    /// `create` or `update`
    pub operation: &'static str,
    /// `pod`, `namespace` or `controller`
    pub resource: &'static str,
    /// Subresource.
    pub subresource: &'static str,
}

/// Operation, resource and subresource of what Pod Security did not look at.
pub type Unevaluated = (&'static str, &'static str, &'static str);

/// What comes of a validation that does not hold, or fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Check {
    /// It failed, and the policy ignores that.
    Allow,
    /// The request is refused.
    Deny,
    /// It is noted for audit.
    Audit,
    /// The client is warned.
    Warn,
}

/// The kind of an error, as upstream reads it off its text.
fn error_type(error: Option<&str>) -> &'static str {
    match error {
        None => "no_error",
        Some(e) if e.starts_with("compilation") => "compile_error",
        Some(e) if e.starts_with("validation failed due to running out of cost budget") => "out_of_budget",
        Some(_) => "invalid_error",
    }
}

/// The newest policy version that is named in labels of metrics.
const NEWEST_VERSION: u32 = 36;

fn cell(step: Step, operation: Operation, rejected: bool) -> usize {
    ((step as usize) * OPERATIONS.len() + operation as usize) * 2 + usize::from(rejected)
}

/// Steps, operations and outcomes in the order of their cells, as labels.
fn cells() -> impl Iterator<Item = [(&'static str, &'static str); 3]> {
    STEPS.into_iter().flat_map(|step| {
        OPERATIONS.into_iter().flat_map(move |operation| {
            ["false", "true"].map(|rejected| {
                [("type", step.name()), ("operation", operation.name()), ("rejected", rejected)]
            })
        })
    })
}

/// All of admission's metrics.
pub struct Metrics {
    steps: Box<[Timing<6>]>,
    plugins: Box<[Timing<6>]>,
    table: Counts,
}

impl Metrics {
    /// For that many plugins.
    pub fn new(plugins: usize) -> Self {
        let cells = |n: usize| (0..n).map(|_| Timing::default()).collect();
        Self { steps: cells(CELLS), plugins: cells(CELLS * plugins), table: Counts::default() }
    }

    /// A half of admission is done.
    pub fn step(&self, step: Step, operation: Operation, rejected: bool, took: Duration) {
        self.steps[cell(step, operation, rejected)].observe(&BOUNDS_S, took);
    }

    /// The plugin at `place` in the table is done.
    pub fn plugin(&self, place: usize, step: Step, operation: Operation, rejected: bool, took: Duration) {
        if let Some(c) = self.plugins.get(place * CELLS + cell(step, operation, rejected)) {
            c.observe(&BOUNDS_S, took);
        }
    }

    /// A webhook was called. `kind`: `admit` or `validating`.
    pub fn webhook(
        &self,
        name: &str,
        kind: &'static str,
        operation: Operation,
        outcome: Outcome,
        took: Duration,
    ) {
        let operation = operation.name();
        let rejected = if outcome.is_rejected() { "true" } else { "false" };
        let code = outcome.code().to_string();
        self.table.observe(&WEBHOOK, &[name, kind, operation, rejected], took.as_secs_f64());
        self.table.count(&REQUESTS, &[name, kind, operation, &code, rejected]);
        let error = match outcome {
            Outcome::Denied(_) => "no_error",
            Outcome::Failed(_) => "calling_webhook_error",
            Outcome::Internal => "apiserver_internal_error",
            Outcome::FailedOpen(_) => return self.table.count(&FAIL_OPEN, &[name, kind]),
            Outcome::Allowed => return,
        };
        self.table.count(&REJECTIONS, &[name, kind, operation, error, &code]);
    }

    /// Match conditions kept a request from somebody, or failed.
    pub fn conditions(&self, series: ConditionSeries<'_>, operation: Operation, took: Duration) {
        self.table.observe(&CONDITIONS, &series.labels(operation), took.as_secs_f64());
    }

    /// A match condition failed.
    pub fn condition_failed(&self, series: ConditionSeries<'_>, operation: Operation) {
        self.table.count(&CONDITION_ERRORS, &series.labels(operation));
    }

    /// A webhook is not called because of its match conditions.
    pub fn excluded(&self, series: ConditionSeries<'_>, operation: Operation) {
        self.table.count(&CONDITION_EXCLUSIONS, &series.labels(operation));
    }

    /// A validation of a policy did not hold, or failed.
    pub fn validation(
        &self,
        policy: &str,
        binding: &str,
        action: Check,
        error: Option<&str>,
        took: Duration,
    ) {
        let action = match action {
            Check::Allow => "allow",
            Check::Deny => "deny",
            Check::Audit => "audit",
            Check::Warn => "warn",
        };
        let labels = [policy, binding, error_type(error), action];
        self.table.count(&VALIDATION_CHECKS, &labels);
        self.table.observe(&VALIDATIONS, &labels, took.as_secs_f64());
    }

    /// A mutation of a policy was made, or failed.
    pub fn mutation(&self, policy: &str, binding: &str, error: Option<&str>, took: Duration) {
        let labels = [policy, binding, error_type(error)];
        self.table.count(&MUTATION_CHECKS, &labels);
        self.table.observe(&MUTATIONS, &labels, took.as_secs_f64());
    }

    /// Pod Security looked at a pod or a template.
    pub fn evaluation(&self, e: Evaluation) {
        let version = match e.version {
            None => "latest".into(),
            Some(minor) if minor > NEWEST_VERSION => "future".into(),
            Some(minor) => format!("v1.{minor}"),
        };
        let labels = [e.decision, e.level, &version, e.mode, e.operation, e.resource, e.subresource];
        self.table.count(&EVALUATIONS, &labels);
    }

    /// Pod Security looked away.
    pub fn exemption(&self, (operation, resource, subresource): Unevaluated) {
        self.table.count(&EXEMPTIONS, &[operation, resource, subresource]);
    }

    /// Pod Security could not read what holds in a namespace.
    pub fn pod_security_error(&self, fatal: bool, (operation, resource, subresource): Unevaluated) {
        let fatal = if fatal { "true" } else { "false" };
        self.table.count(&ERRORS, &[fatal, operation, resource, subresource]);
    }

    /// Adds everything.
    pub fn expose(&self, page: &mut Page) {
        page.family(STEP, "histogram", STEP_HELP);
        for (labels, timing) in cells().zip(&self.steps) {
            timing.expose(page, STEP, &labels, &BOUNDS_S);
        }
        page.family(SUMMARY, "summary", SUMMARY_HELP);
        for (labels, timing) in cells().zip(&self.steps) {
            if timing.count() > 0 {
                page.sample(&format!("{SUMMARY}_sum"), &labels, timing.sum_s());
                page.sample(&format!("{SUMMARY}_count"), &labels, timing.count());
            }
        }
        page.family(PLUGIN, "histogram", PLUGIN_HELP);
        for (row, timings) in TABLE.iter().zip(self.plugins.chunks(CELLS)) {
            for ([a, b, c], timing) in cells().zip(timings) {
                timing.expose(page, PLUGIN, &[("name", row.name), a, b, c], &BOUNDS_S);
            }
        }
        self.table.expose(FAMILIES, page);
    }
}
