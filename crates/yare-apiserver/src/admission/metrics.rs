//! What admission counts and measures, under upstream's names (`k8s.io/apiserver/pkg/admission/metrics`,
//! `k8s.io/pod-security-admission/metrics`). Steps and plugins are atomics; what names webhooks is kept only
//! where there are some.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use yare_metrics::Histogram;

use super::{Operation, TABLE};

/// Upper bounds of upstream's buckets, in seconds; webhooks have all of them, others the first six.
const BOUNDS_S: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const PLUGIN_BOUNDS: usize = 6;
/// Distinct label sets of webhooks that are kept; further ones are not counted.
const MAX_SERIES: usize = 4096;

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

#[derive(Default)]
struct Cell {
    buckets: [AtomicU64; BOUNDS_S.len()],
    count: AtomicU64,
    sum_ns: AtomicU64,
}

impl Cell {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        if let Some(i) = BOUNDS_S.iter().position(|bound| seconds <= *bound) {
            self.buckets[i].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn sum_s(&self) -> f64 {
        self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9
    }

    fn render(&self, name: &str, labels: &str, bounds: usize, out: &mut String) {
        let mut seen = 0;
        for (bound, bucket) in BOUNDS_S.iter().zip(&self.buckets).take(bounds) {
            seen += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {seen}");
        }
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}",
            self.sum_s()
        );
    }
}

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
    fn labels(self, operation: Operation) -> String {
        let Self { name, kind, step } = self;
        format!("name=\"{name}\",kind=\"{kind}\",type=\"{step}\",operation=\"{}\"", operation.name())
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

/// All of admission's metrics.
pub struct Metrics {
    steps: Box<[Cell]>,
    plugins: Box<[Cell]>,
    /// By name, type and operation, and whether it was rejected.
    webhooks: Mutex<BTreeMap<String, Cell>>,
    counters: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// By place in [`EXPRESSIONS`] and labels.
    expressions: Mutex<BTreeMap<(usize, String), Histogram<7>>>,
    evaluations: Mutex<BTreeMap<Evaluation, u64>>,
    exemptions: Mutex<BTreeMap<Unevaluated, u64>>,
    errors: Mutex<BTreeMap<(bool, Unevaluated), u64>>,
}

/// The newest policy version that is named in labels of metrics.
const NEWEST_VERSION: u32 = 36;
const REJECTIONS: &str = "apiserver_admission_webhook_rejection_count";
const FAIL_OPEN: &str = "apiserver_admission_webhook_fail_open_count";
const REQUESTS: &str = "apiserver_admission_webhook_request_total";
const CONDITION_ERRORS: &str = "apiserver_admission_match_condition_evaluation_errors_total";
const CONDITION_EXCLUSIONS: &str = "apiserver_admission_match_condition_exclusions_total";

/// A histogram of what expressions take.
struct Timing {
    name: &'static str,
    help: &'static str,
    bounds_s: &'static [f64],
}

/// What expressions take, by whose they are.
const EXPRESSIONS: [Timing; 3] = [
    Timing {
        name: "apiserver_admission_match_condition_evaluation_seconds",
        help: "[ALPHA] Admission match condition evaluation time in seconds, identified by name and broken out for each kind containing matchConditions (webhook or policy), operation and type (validate or admit).",
        bounds_s: &[0.001, 0.005, 0.01, 0.025, 0.1, 0.2, 0.25],
    },
    Timing {
        name: "apiserver_validating_admission_policy_check_duration_seconds",
        help: "[BETA] Validation admission latency for individual validation expressions in seconds, labeled by policy and further including binding and enforcement action taken.",
        bounds_s: &[0.000_000_5, 0.001, 0.01, 0.1, 1.0],
    },
    Timing {
        name: "apiserver_mutating_admission_policy_check_duration_seconds",
        help: "[ALPHA] Mutation admission latency for individual mutation expressions in seconds, labeled by policy and binding.",
        bounds_s: &[0.000_000_5, 0.001, 0.01, 0.1, 1.0],
    },
];
const CONDITIONS: usize = 0;
const VALIDATIONS: usize = 1;
const MUTATIONS: usize = 2;
const VALIDATION_CHECKS: &str = "apiserver_validating_admission_policy_check_total";
const MUTATION_CHECKS: &str = "apiserver_mutating_admission_policy_check_total";

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

const HELP: [(&str, &str); 7] = [
    (
        VALIDATION_CHECKS,
        "[BETA] Validation admission policy check total, labeled by policy and further identified by binding and enforcement action taken.",
    ),
    (
        MUTATION_CHECKS,
        "[ALPHA] Mutation admission policy check total, labeled by policy and further identified by binding.",
    ),
    (
        CONDITION_ERRORS,
        "[ALPHA] Admission match condition evaluation errors count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).",
    ),
    (
        CONDITION_EXCLUSIONS,
        "[ALPHA] Admission match condition evaluation exclusions count, identified by name of resource containing the match condition and broken out for each kind containing matchConditions (webhook or policy), operation and admission type (validate or admit).",
    ),
    (
        FAIL_OPEN,
        "[ALPHA] Admission webhook fail open count, identified by name and broken out for each admission type (validating or admit).",
    ),
    (
        REJECTIONS,
        "[ALPHA] Admission webhook rejection count, identified by name and broken out for each admission type (validating or admit) and operation.",
    ),
    (
        REQUESTS,
        "[ALPHA] Admission webhook request total, identified by name and broken out for each admission type (validating or admit) and operation.",
    ),
];

fn cell(step: Step, operation: Operation, rejected: bool) -> usize {
    ((step as usize) * OPERATIONS.len() + operation as usize) * 2 + usize::from(rejected)
}

impl Metrics {
    /// For that many plugins.
    pub fn new(plugins: usize) -> Self {
        let cells = |n: usize| (0..n).map(|_| Cell::default()).collect();
        Self {
            steps: cells(CELLS),
            plugins: cells(CELLS * plugins),
            webhooks: Mutex::default(),
            counters: Mutex::default(),
            expressions: Mutex::default(),
            evaluations: Mutex::default(),
            exemptions: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    /// A half of admission is done.
    pub fn step(&self, step: Step, operation: Operation, rejected: bool, took: Duration) {
        self.steps[cell(step, operation, rejected)].observe(took);
    }

    /// The plugin at `place` in the table is done.
    pub fn plugin(&self, place: usize, step: Step, operation: Operation, rejected: bool, took: Duration) {
        if let Some(c) = self.plugins.get(place * CELLS + cell(step, operation, rejected)) {
            c.observe(took);
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
        let who = format!("name=\"{name}\",type=\"{kind}\"");
        let rejected = outcome.is_rejected();
        let labels = format!("{who},operation=\"{operation}\",rejected=\"{rejected}\"");
        let mut webhooks = self.webhooks.lock();
        if webhooks.len() < MAX_SERIES || webhooks.contains_key(&labels) {
            webhooks.entry(labels).or_default().observe(took);
        }
        drop(webhooks);
        let code = outcome.code();
        self.count(
            REQUESTS,
            format!("{who},operation=\"{operation}\",code=\"{code}\",rejected=\"{rejected}\""),
        );
        let error = match outcome {
            Outcome::Denied(_) => "no_error",
            Outcome::Failed(_) => "calling_webhook_error",
            Outcome::Internal => "apiserver_internal_error",
            Outcome::FailedOpen(_) => return self.count(FAIL_OPEN, who),
            Outcome::Allowed => return,
        };
        self.count(
            REJECTIONS,
            format!("{who},operation=\"{operation}\",error_type=\"{error}\",rejection_code=\"{code}\""),
        );
    }

    fn count(&self, name: &'static str, labels: String) {
        let mut counters = self.counters.lock();
        let key = (name, labels);
        if counters.len() < MAX_SERIES || counters.contains_key(&key) {
            *counters.entry(key).or_default() += 1;
        }
    }

    fn timed(&self, what: usize, labels: String, took: Duration) {
        let mut all = self.expressions.lock();
        let key = (what, labels);
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            return;
        }
        all.entry(key).or_default().observe(EXPRESSIONS[what].bounds_s, took.as_secs_f64());
    }

    /// Match conditions kept a request from somebody, or failed.
    pub fn conditions(&self, series: ConditionSeries<'_>, operation: Operation, took: Duration) {
        self.timed(CONDITIONS, series.labels(operation), took);
    }

    /// A match condition failed.
    pub fn condition_failed(&self, series: ConditionSeries<'_>, operation: Operation) {
        self.count(CONDITION_ERRORS, series.labels(operation));
    }

    /// A webhook is not called because of its match conditions.
    pub fn excluded(&self, series: ConditionSeries<'_>, operation: Operation) {
        self.count(CONDITION_EXCLUSIONS, series.labels(operation));
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
        let error = error_type(error);
        let labels = format!(
            "policy=\"{policy}\",policy_binding=\"{binding}\",error_type=\"{error}\",enforcement_action=\"{action}\""
        );
        self.count(VALIDATION_CHECKS, labels.clone());
        self.timed(VALIDATIONS, labels, took);
    }

    /// A mutation of a policy was made, or failed.
    pub fn mutation(&self, policy: &str, binding: &str, error: Option<&str>, took: Duration) {
        let error = error_type(error);
        let labels = format!("policy=\"{policy}\",policy_binding=\"{binding}\",error_type=\"{error}\"");
        self.count(MUTATION_CHECKS, labels.clone());
        self.timed(MUTATIONS, labels, took);
    }

    /// Pod Security looked at a pod or a template.
    pub fn evaluation(&self, evaluation: Evaluation) {
        *self.evaluations.lock().entry(evaluation).or_default() += 1;
    }

    /// Pod Security looked away.
    pub fn exemption(&self, what: Unevaluated) {
        *self.exemptions.lock().entry(what).or_default() += 1;
    }

    /// Pod Security could not read what holds in a namespace.
    pub fn pod_security_error(&self, fatal: bool, what: Unevaluated) {
        *self.errors.lock().entry((fatal, what)).or_default() += 1;
    }

    /// Everything in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        fn head(name: &str, kind: &str, help: &str, out: &mut String) {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        }
        let series = || {
            STEPS.into_iter().flat_map(|step| {
                OPERATIONS
                    .into_iter()
                    .flat_map(move |operation| [false, true].map(|rejected| (step, operation, rejected)))
            })
        };
        let labels = |(step, operation, rejected): (Step, Operation, bool)| {
            format!("type=\"{}\",operation=\"{}\",rejected=\"{rejected}\"", step.name(), operation.name())
        };
        let seen = |c: &Cell| c.count.load(Ordering::Relaxed) > 0;
        let name = "apiserver_admission_step_admission_duration_seconds";
        head(
            name,
            "histogram",
            "[STABLE] Admission sub-step latency histogram in seconds, broken out for each operation and API resource and step type (validate or admit).",
            out,
        );
        let steps: Vec<(String, &Cell)> = series()
            .map(|s| (labels(s), &self.steps[cell(s.0, s.1, s.2)]))
            .filter(|(_, c)| seen(c))
            .collect();
        for (labels, c) in &steps {
            c.render(name, labels, PLUGIN_BOUNDS, out);
        }
        let name = "apiserver_admission_step_admission_duration_seconds_summary";
        head(
            name,
            "summary",
            "[ALPHA] Admission sub-step latency summary in seconds, broken out for each operation and API resource and step type (validate or admit).",
            out,
        );
        for (labels, c) in &steps {
            let count = c.count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}", c.sum_s());
        }
        let name = "apiserver_admission_controller_admission_duration_seconds";
        head(
            name,
            "histogram",
            "[STABLE] Admission controller latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
            out,
        );
        for (place, row) in TABLE.iter().enumerate() {
            for s in series() {
                let c = &self.plugins[place * CELLS + cell(s.0, s.1, s.2)];
                if seen(c) {
                    let labels = format!("name=\"{}\",{}", row.name, labels(s));
                    c.render(name, &labels, PLUGIN_BOUNDS, out);
                }
            }
        }
        let name = "apiserver_admission_webhook_admission_duration_seconds";
        head(
            name,
            "histogram",
            "[STABLE] Admission webhook latency histogram in seconds, identified by name and broken out for each operation and API resource and type (validate or admit).",
            out,
        );
        for (labels, c) in self.webhooks.lock().iter() {
            c.render(name, labels, BOUNDS_S.len(), out);
        }
        let counters = self.counters.lock();
        for (name, help) in HELP {
            head(name, "counter", help, out);
            for ((_, labels), count) in counters.iter().filter(|((n, _), _)| *n == name) {
                let _ = writeln!(out, "{name}{{{labels}}} {count}");
            }
        }
        drop(counters);
        self.render_expressions(head, out);
        self.render_pod_security(head, out);
    }

    fn render_expressions(&self, head: impl Fn(&str, &str, &str, &mut String), out: &mut String) {
        let all = self.expressions.lock();
        for (place, Timing { name, help, bounds_s }) in EXPRESSIONS.iter().enumerate() {
            head(name, "histogram", help, out);
            for ((_, labels), histogram) in all.iter().filter(|((p, _), _)| *p == place) {
                let mut seen = 0;
                for (bound, count) in bounds_s.iter().zip(&histogram.buckets) {
                    seen += count;
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {seen}");
                }
                let Histogram { count, sum, .. } = histogram;
                let _ = writeln!(
                    out,
                    "{name}_bucket{{{labels},le=\"+Inf\"}} {count}\n{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}"
                );
            }
        }
    }

    fn render_pod_security(&self, head: impl Fn(&str, &str, &str, &mut String), out: &mut String) {
        let place = |(operation, resource, subresource): &Unevaluated| {
            format!("request_operation=\"{operation}\",resource=\"{resource}\",subresource=\"{subresource}\"")
        };
        let name = "pod_security_evaluations_total";
        head(
            name,
            "counter",
            "[ALPHA] Number of policy evaluations that occurred, not counting ignored or exempt requests.",
            out,
        );
        for (e, count) in self.evaluations.lock().iter() {
            let version = match e.version {
                None => "latest".to_owned(),
                Some(minor) if minor > NEWEST_VERSION => "future".to_owned(),
                Some(minor) => format!("v1.{minor}"),
            };
            let _ = writeln!(
                out,
                "{name}{{decision=\"{}\",policy_level=\"{}\",policy_version=\"{version}\",mode=\"{}\",{}}} {count}",
                e.decision,
                e.level,
                e.mode,
                place(&(e.operation, e.resource, e.subresource))
            );
        }
        let name = "pod_security_exemptions_total";
        head(
            name,
            "counter",
            "[ALPHA] Number of exempt requests, not counting ignored or out of scope requests.",
            out,
        );
        for (what, count) in self.exemptions.lock().iter() {
            let _ = writeln!(out, "{name}{{{}}} {count}", place(what));
        }
        let name = "pod_security_errors_total";
        head(
            name,
            "counter",
            "[ALPHA] Number of errors preventing normal evaluation. Non-fatal errors may result in the latest restricted profile being used for evaluation.",
            out,
        );
        for ((fatal, what), count) in self.errors.lock().iter() {
            let _ = writeln!(out, "{name}{{fatal=\"{fatal}\",{}}} {count}", place(what));
        }
    }
}
