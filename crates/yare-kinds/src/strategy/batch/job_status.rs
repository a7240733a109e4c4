//! What the status of a `Job` may say, and how it may change. Since another controller may manage a job
//! (`managedBy`), the API server holds every controller to these rules.

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::Value;
use yare_schema::field::Path;

use super::{indexes, job_spec::is_indexed};
use crate::{
    check::{Check, Errors},
    shown::UNCOUNTED,
    strategy::{rules::plain_invalid, workload::check_counts},
    view::{View, same},
};

/// Whether the job has the condition `kind` with the status `True`.
pub fn is_true(job: &Value, kind: &str) -> bool {
    has_condition(job, kind, "True")
}

fn has_condition(job: &Value, kind: &str, status: &str) -> bool {
    let conditions = job.items("status.conditions").iter();
    conditions.into_iter().any(|c| c.str_at("type") == kind && c.str_at("status") == status)
}

fn is_finished(job: &Value) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

/// What an update changes: rules about a field hold when it, or what it is compared with, changes.
struct Changed<'a> {
    new: &'a Value,
    old: &'a Value,
}

impl Changed<'_> {
    fn field(&self, field: &str) -> bool {
        !same(self.new.at("status").at(field), self.old.at("status").at(field))
    }

    fn condition(&self, kind: &str) -> bool {
        is_true(self.new, kind) != is_true(self.old, kind)
    }

    fn finished(&self) -> bool {
        is_finished(self.new) != is_finished(self.old)
    }
}

/// Errors of an update of the status.
pub fn check_update(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("status");
    let changed = Changed { new, old };
    check_counts(errs, &path, new.at("status"), &["active", "succeeded", "failed", "ready", "terminating"]);
    check_uncounted(errs, &path.child("uncountedTerminatedPods"), new.at("status.uncountedTerminatedPods"));
    check_ends(errs, &path, new, &changed);
    check_finished(errs, &path, new, &changed);
    check_indexes(errs, &path, new, &changed);
    check_more(errs, &path, new, &changed);
    check_transition(errs, &path, new, old, &changed);
}

fn check_uncounted(errs: &mut Errors, path: &Path<'_>, uncounted: &Value) {
    let mut seen: HashSet<&str> = HashSet::new();
    for list in ["succeeded", "failed"] {
        let p = path.child(list);
        for (i, uid) in uncounted.strings(list).into_iter().enumerate() {
            if uid.is_empty() {
                errs.invalid(&p.index(i), "", "must not be empty");
            } else if seen.contains(&uid) {
                errs.duplicate(&p.index(i), uid);
            } else {
                seen.insert(uid);
            }
        }
    }
}

/// How a job ends: conditions that exclude or need each other, and the time of completion.
fn check_ends(errs: &mut Errors, path: &Path<'_>, job: &Value, changed: &Changed<'_>) {
    let conditions = path.child("conditions");
    let completion = path.child("completionTime");
    let (complete, failed) = (is_true(job, "Complete"), is_true(job, "Failed"));
    let target = is_true(job, "FailureTarget");
    let complete_changed = changed.condition("Complete");
    if complete && failed && (complete_changed || changed.condition("Failed")) {
        plain_invalid(errs, &conditions, "cannot set Complete=True and Failed=true conditions");
    }
    if complete && target && (complete_changed || changed.condition("FailureTarget")) {
        plain_invalid(errs, &conditions, "cannot set Complete=True and FailureTarget=true conditions");
    }
    let end = job.at("status.completionTime");
    if complete_changed || changed.field("completionTime") {
        if !end.is_null() && !complete {
            errs.invalid(
                &completion,
                end.clone(),
                "cannot set completionTime when there is no Complete=True condition",
            );
        }
        if end.is_null() && complete {
            errs.required(&completion, "completionTime is required for Complete jobs");
        }
    }
    if changed.field("startTime") || changed.field("completionTime") {
        let time = |field: &str| job.at("status").str_at(field).parse::<Timestamp>().ok();
        if let (Some(start), Some(finish)) = (time("startTime"), time("completionTime"))
            && finish < start
        {
            errs.invalid(&completion, end.clone(), "must be equal to or after `startTime`");
        }
    }
    if failed && !target && (changed.condition("Failed") || changed.field("failedIndexes")) {
        plain_invalid(
            errs,
            &conditions,
            "cannot set Failed=True condition without the FailureTarget=true condition",
        );
    }
    let met = is_true(job, "SuccessCriteriaMet");
    if complete && !met && (complete_changed || changed.condition("SuccessCriteriaMet")) {
        plain_invalid(
            errs,
            &conditions,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        );
    }
}

/// What a finished job has no more.
fn check_finished(errs: &mut Errors, path: &Path<'_>, job: &Value, changed: &Changed<'_>) {
    if !is_finished(job) {
        return;
    }
    let status = job.at("status");
    let now = changed.finished();
    let active = status.int_at("active");
    if active > 0 && (now || changed.field("active")) {
        errs.invalid(&path.child("active"), active, "active>0 is invalid for finished job");
    }
    let nothing_to_do = job.bool_at("spec.suspend") && job.int_opt("spec.completions") == Some(0);
    if !status.has("startTime") && (now || changed.field("startTime")) && !nothing_to_do {
        errs.required(&path.child("startTime"), "startTime is required for finished job");
    }
    let uncounted = status.at("uncountedTerminatedPods");
    let any = uncounted.is_set("failed") || uncounted.is_set("succeeded");
    if any && (now || changed.field("uncountedTerminatedPods")) {
        errs.invalid_shown(
            &path.child("uncountedTerminatedPods"),
            uncounted,
            UNCOUNTED,
            "must be empty for finished job",
        );
    }
}

fn check_indexes(errs: &mut Errors, path: &Path<'_>, job: &Value, changed: &Changed<'_>) {
    let (completed, failed) = (job.str_at("status.completedIndexes"), job.str_opt("status.failedIndexes"));
    let (completed_path, failed_path) = (path.child("completedIndexes"), path.child("failedIndexes"));
    let (completed_changed, failed_changed) =
        (changed.field("completedIndexes"), changed.field("failedIndexes"));
    let completions = job.int_opt("spec.completions");
    let per_index = job.has("spec.backoffLimitPerIndex");
    if let Some(completions) = completions {
        if completed_changed && let Err(e) = indexes::count(completed, completions) {
            errs.invalid(&completed_path, completed, format!("error parsing completedIndexes: {e}"));
        }
        if failed_changed
            && per_index
            && let Some(failed) = failed
            && let Err(e) = indexes::count(failed, completions)
        {
            errs.invalid(&failed_path, failed, format!("error parsing failedIndexes: {e}"));
        }
    }
    if completed_changed && !completed.is_empty() && !is_indexed(job.at("spec")) {
        errs.invalid(
            &completed_path,
            completed,
            "cannot set non-empty completedIndexes when non-indexed completion mode",
        );
    }
    let Some(failed) = failed else { return };
    if failed_changed && !per_index {
        errs.invalid(
            &failed_path,
            failed,
            "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
        );
    }
    if (failed_changed || completed_changed)
        && let Some(completions) = completions
        && let Err(e) = indexes::check_apart(completed, failed, completions)
    {
        errs.invalid(&failed_path, failed, e);
    }
}

fn check_more(errs: &mut Errors, path: &Path<'_>, job: &Value, changed: &Changed<'_>) {
    let terminating = job.int_at("status.terminating");
    if terminating > 0 && is_finished(job) && (changed.finished() || changed.field("terminating")) {
        errs.invalid(&path.child("terminating"), terminating, "terminating>0 is invalid for finished job");
    }
    let ready = job.int_at("status.ready");
    if ready > job.int_at("status.active") && (changed.field("ready") || changed.field("active")) {
        errs.invalid(&path.child("ready"), ready, "cannot set more ready pods than active");
    }
    let conditions = path.child("conditions");
    let met = is_true(job, "SuccessCriteriaMet");
    for kind in ["Failed", "FailureTarget"] {
        if met && is_true(job, kind) {
            let detail = format!("cannot set SuccessCriteriaMet=True and {kind}=true conditions");
            plain_invalid(errs, &conditions, detail);
        }
    }
    if job.has("spec.successPolicy") && !met && is_true(job, "Complete") {
        plain_invalid(
            errs,
            &conditions,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        );
    }
}

fn check_transition(errs: &mut Errors, path: &Path<'_>, new: &Value, old: &Value, changed: &Changed<'_>) {
    let conditions = path.child("conditions");
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is_true(old, kind) && !is_true(new, kind) {
            plain_invalid(errs, &conditions, format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    let scalable = is_indexed(new.at("spec")) && new.at("spec.completions") == new.at("spec.parallelism");
    for (field, counts) in [("failed", true), ("succeeded", !scalable)] {
        let (now, before) = (new.at("status").int_at(field), old.at("status").int_at(field));
        if counts && now < before {
            errs.invalid(&path.child(field), now, format!("cannot decrease the {field} counter"));
        }
    }
    let (now, before) = (new.at("status.completionTime"), old.at("status.completionTime"));
    if !now.is_null() && !before.is_null() && now != before {
        errs.invalid(&path.child("completionTime"), now.clone(), "field is immutable");
    }
    let resuming = is_true(old, "Suspended") && has_condition(new, "Suspended", "False");
    let moved = changed.field("startTime") && old.has("status.startTime");
    if moved && !resuming && !new.bool_at("spec.suspend") {
        errs.invalid(
            &path.child("startTime"),
            new.at("status.startTime").clone(),
            "field is immutable for unsuspended job once set",
        );
    }
    let met = |job: &Value| is_true(job, "SuccessCriteriaMet");
    if met(old) && !met(new) {
        plain_invalid(errs, &conditions, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if is_true(old, "Complete") && !met(old) && met(new) {
        plain_invalid(
            errs,
            &conditions,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}
