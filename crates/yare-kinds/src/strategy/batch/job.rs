//! `Job`.
//!
//! The selector is generated from the job's own UID and name, which the API server has set before it
//! prepares the object.

use std::ops::Range;

use serde_json::{Map, Value, json};
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
    selector::LabelSelector,
};

use super::{
    job_spec::{self, is_indexed},
    job_status,
};
use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, validate_label_selector},
    names,
    strategy::{
        Context, Strategy,
        workload::{check_match, default_template, is_other_generation, judge_selector_after, name_warning},
    },
    view::{View, ViewMut, same},
};

pub(super) struct Job;

const DEFAULT_BACKOFF_LIMIT: i64 = 6;
const NAME: &str = "batch.kubernetes.io/job-name";
const UID: &str = "batch.kubernetes.io/controller-uid";
/// The labels as they were called before they had a prefix.
const OLD_NAME: &str = "job-name";
const OLD_UID: &str = "controller-uid";
const IMMUTABLE: &[&str] =
    &["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];

impl Strategy for Job {
    fn default(&self, job: &mut Value) {
        if !job.has("spec.completions") && !job.has("spec.parallelism") {
            job.set("spec.completions", 1);
        }
        job.default_absent("spec.parallelism", 1);
        let per_index = job.has("spec.backoffLimitPerIndex");
        let limit = if per_index { i64::from(i32::MAX) } else { DEFAULT_BACKOFF_LIMIT };
        job.default_absent("spec.backoffLimit", limit);
        let labels = job.at("spec.template.metadata.labels").clone();
        if labels.is_object() {
            job.default_zero("metadata.labels", labels);
        }
        job.default_absent("spec.completionMode", "NonIndexed");
        job.default_absent("spec.suspend", false);
        let replace = if job.has("spec.podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        job.default_absent("spec.podReplacementPolicy", replace);
        job.default_absent("spec.manualSelector", false);
        default_template(job, "spec.template");
        if let Some(spec) = job.at_mut("spec") {
            job_spec::default_failure_policy(spec);
        }
    }

    fn prepare_for_create(&self, job: &mut Value, _ctx: &Context<'_>) {
        if !job.bool_at("spec.manualSelector") {
            generate_selector(job);
        }
        job.remove("status");
        job.set("metadata.generation", 1);
    }

    fn validate(&self, job: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, job, true, validate_label_selector);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let labels = old.at("spec.template.metadata.labels");
        let prefixed = labels.get(NAME).is_some() && labels.get(UID).is_some();
        let judge = judge_selector_after(old);
        let twice = check(&mut errs, new, prefixed, judge);
        // Upstream judges the specification as a part of the job and as a part of the update.
        errs.extend_from_within(twice);
        let path = Path::new("spec");
        let (now, before) = (new.at("spec"), old.at("spec"));
        check_completions(&mut errs, &path, now, before);
        errs.immutable(&path.child("selector"), now.at("selector"), before.at("selector"));
        check_template_update(&mut errs, &path, new, old, ctx.gates);
        for field in IMMUTABLE {
            errs.immutable(&path.child(field), now.at(field), before.at(field));
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        job_status::check_update(&mut errs, new, old);
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::from_iter(name_warning(new, old));
        if is_other_generation(new, old) {
            out.extend(job_spec::warn(&Path::new("spec"), new.at("spec")));
        }
        out
    }

    fn judges_selectors_as_one(&self) -> bool {
        true
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Labels of a JSON object, as they are or none.
fn map_of(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn generate_selector(job: &mut Value) {
    let (name, uid) = (job.at("metadata.name").clone(), job.at("metadata.uid").clone());
    let mut labels = map_of(job.at("spec.template.metadata.labels"));
    // A job without labels has those of its template: upstream's are one map, which then gets these as well, or the
    // job gets them when it is read.
    let own = map_of(job.at("metadata.labels"));
    let shared = own.is_empty() || own == labels;
    for (key, value) in [(OLD_NAME, &name), (NAME, &name), (OLD_UID, &uid), (UID, &uid)] {
        labels.entry(key).or_insert_with(|| value.clone());
    }
    if shared {
        job.set("metadata.labels", labels.clone());
    }
    job.set("spec.template.metadata.labels", labels);
    let mut selected = map_of(job.at("spec.selector.matchLabels"));
    selected.entry(UID).or_insert(uid);
    job.set("spec.selector.matchLabels", selected);
}

/// Where in `errs` those of the specification are.
fn check(errs: &mut Errors, job: &Value, prefixed: bool, judge: JudgeSelector) -> Range<usize> {
    check_generated(errs, job, prefixed);
    let start = errs.len();
    let (path, spec) = (Path::new("spec"), job.at("spec"));
    job_spec::check(errs, &path, spec);
    let selector = spec.at("selector");
    if selector.is_null() {
        errs.required(&path.child("selector"), "");
    } else {
        errs.extend(judge(selector, &path.child("selector")));
    }
    if let Ok(selector) = LabelSelector::from_object(selector) {
        check_match(errs, &path.child("template"), &selector, spec.at("template"));
    }
    let of_spec = start..errs.len();
    if is_indexed(spec)
        && let Some(last) = spec.int_opt("completions").filter(|c| *c > 0)
    {
        let name = job.str_at("metadata.name");
        let hostname = format!("{name}-{}", last - 1);
        if !names::dns1123_label(&hostname).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {hostname}");
            errs.invalid(&Path::new("metadata.name"), name, detail);
        }
    }
    of_spec
}

/// A selector that is not the user's own has to be the generated one, or it could take other jobs' pods.
fn check_generated(errs: &mut Errors, job: &Value, prefixed: bool) {
    if job.bool_at("spec.manualSelector") || !job.has("spec.selector") {
        return;
    }
    let (name, uid) = (job.str_at("metadata.name"), job.str_at("metadata.uid"));
    if uid.is_empty() {
        errs.required(&Path::new("metadata.uid"), "");
    }
    let mut expected = vec![(OLD_UID, uid), (OLD_NAME, name)];
    if prefixed {
        expected.extend([(UID, uid), (NAME, name)]);
    }
    let labels = job.at("spec.template.metadata.labels");
    let path = Path::new("spec.template.metadata.labels");
    for (key, value) in &expected {
        let detail = format!("must be '{value}'");
        match labels.get(key) {
            None => errs.required(&path.key(key), detail),
            Some(found) if found != value => errs.invalid(&path.key(key), labels.clone(), detail),
            Some(_) => {}
        }
    }
    let selector = job.at("spec.selector");
    let generated = |key: &str| expected.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
    if LabelSelector::from_object(selector).is_ok_and(|s| !s.matches_with(generated)) {
        errs.invalid(&Path::new("spec.selector"), selector.clone(), "`selector` not auto-generated");
    }
}

fn check_completions(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value) {
    let p = path.child("completions");
    let (now, before) = (new.at("completions"), old.at("completions"));
    if !is_indexed(new) {
        errs.immutable(&p, now, before);
    } else if now != before && !now.is_null() && now != new.at("parallelism") {
        errs.invalid(&p, now.clone(), "can only be modified in tandem with spec.parallelism");
    }
}

/// A suspended job that runs no pods may get other resources, and may be told other nodes.
fn check_template_update(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value, gates: &Gates) {
    let (now, mut before) = (new.at("spec.template"), old.at("spec.template").clone());
    let suspended = old.bool_at("spec.suspend");
    let fresh = !old.has("status.startTime");
    let idle = fresh || job_status::is_true(old, "Suspended");
    let mutable = suspended && idle && old.int_at("status.active") == 0;
    let by_gate = gates.is_on("MutableSchedulingDirectivesForSuspendedJobs");
    if if by_gate { mutable } else { suspended && fresh } {
        match (now.has("spec.affinity"), before.has("spec.affinity")) {
            (false, true) => {
                before.remove("spec.affinity.nodeAffinity");
                if same(before.at("spec.affinity"), &json!({})) {
                    before.remove("spec.affinity");
                }
            }
            (true, _) => before.copy_from(now, "spec.affinity.nodeAffinity"),
            (false, false) => {}
        }
        let directives = ["spec.nodeSelector", "spec.tolerations", "spec.schedulingGates"];
        for field in directives.iter().chain(&["metadata.annotations", "metadata.labels"]) {
            before.copy_from(now, field);
        }
    }
    if !mutable || !gates.is_on("MutablePodResourcesForSuspendedJobs") {
        return errs.immutable(&path.child("template"), now, &before);
    }
    for list in ["containers", "initContainers"] {
        let containers = now.at("spec").items(list);
        if let Some(spec) = before.at_mut("spec")
            && spec.items(list).len() == containers.len()
        {
            for (old, new) in spec.items_mut(list).iter_mut().zip(containers) {
                if old.str_at("name") == new.str_at("name") {
                    old.copy_from(new, "resources");
                }
            }
        }
    }
    errs.immutable(&path.child("template.spec"), now.at("spec"), before.at("spec"));
}
