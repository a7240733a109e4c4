//! `CronJob`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::job_spec;
use crate::{
    check::{Check, Errors},
    cron, shown,
    strategy::{
        Context, Strategy,
        workload::{check_counts, default_template, is_other_generation, name_warning},
    },
    view::{View, ViewMut},
};

pub(super) struct CronJob;

/// The controller adds `-` and ten digits to make the names of jobs.
const MAX_NAME: usize = 52;

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        object.default_zero("spec.concurrencyPolicy", "Allow");
        object.default_absent("spec.suspend", false);
        object.default_absent("spec.successfulJobsHistoryLimit", 3);
        object.default_absent("spec.failedJobsHistoryLimit", 1);
        default_template(object, "spec.jobTemplate.spec.template");
        if let Some(spec) = object.at_mut("spec.jobTemplate.spec") {
            job_spec::default_failure_policy(spec);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, object.at("spec"), None);
        let name = object.str_at("metadata.name");
        if name.len() > MAX_NAME {
            errs.invalid(&Path::new("metadata.name"), name, "must be no more than 52 characters");
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, new.at("spec"), Some(old.at("spec")));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::from_iter(name_warning(new, old));
        if is_other_generation(new, old) {
            out.extend(job_spec::warn(&Path::new("spec.jobTemplate.spec"), new.at("spec.jobTemplate.spec")));
        }
        if old.is_some() && new.str_at("spec.schedule").contains("TZ") {
            out.push(
                "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
                    .to_owned(),
            );
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_spec(errs: &mut Errors, spec: &Value, old: Option<&Value>) {
    let path = Path::new("spec");
    let schedule = spec.str_at("schedule");
    let zone = spec.str_opt("timeZone");
    if schedule.is_empty() {
        errs.required(&path.child("schedule"), "");
    } else {
        let p = path.child("schedule");
        if let Err(e) = cron::parse(schedule) {
            errs.invalid(&p, schedule, e);
        }
        let had_zone = old.is_some_and(|o| o.str_at("schedule").contains("TZ"));
        if schedule.contains("TZ") && !had_zone {
            errs.invalid(&p, schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        } else if schedule.contains("TZ") && zone.is_some() {
            errs.invalid(&p, schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
    }
    check_counts(errs, &path, spec, &["startingDeadlineSeconds"]);
    if let Some(zone) = zone
        && old.is_none_or(|o| o.str_opt("timeZone") != Some(zone))
    {
        check_time_zone(errs, &path.child("timeZone"), zone);
    }
    let policies = ["Allow", "Forbid", "Replace"];
    errs.required_one_of(&path.child("concurrencyPolicy"), spec.str_at("concurrencyPolicy"), &policies);
    let (p, job) = (path.child("jobTemplate.spec"), spec.at("jobTemplate.spec"));
    job_spec::check(errs, &p, job);
    if job.has("selector") {
        let detail = "`selector` will be auto-generated";
        let shown = shown::selector(job.at("selector"));
        errs.push(FieldError::invalid(&p.child("selector"), Value::Null, detail).showing(shown));
    }
    if job.bool_at("manualSelector") {
        errs.push(FieldError::not_listed(&p.child("manualSelector"), true, &["nil", "false"]));
    }
    check_counts(errs, &path, spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"]);
}

fn check_time_zone(errs: &mut Errors, path: &Path<'_>, zone: &str) {
    if zone.is_empty() {
        return errs.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b".-_+".contains(&b);
    let is_part = |part: &str| {
        (1..=14).contains(&part.len())
            && part.bytes().all(word)
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
    };
    if !zone.split('/').all(is_part) {
        return errs.invalid(path, zone, format!("unknown time zone {zone}"));
    }
    if zone.eq_ignore_ascii_case("Local") {
        errs.invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        );
    }
    if let Err(e) = cron::time_zone(zone) {
        errs.invalid(path, zone, e);
    }
}
