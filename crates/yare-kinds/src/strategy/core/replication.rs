//! `ReplicationController` and `PodTemplate`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    names,
    pod::{defaults, spec, warnings},
    strategy::{Context, Strategy, workload::default_template},
    view::{View, ViewMut, same},
};

pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        default_template(object, "template");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        spec::check_template(&mut errs, &Path::new("template"), object.at("template"));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|o| o.int_at("metadata.generation") == new.int_at("metadata.generation")) {
            return Vec::new();
        }
        warnings::of(new.at("template"), &Path::new("template"))
    }

    fn has_generation(&self) -> bool {
        true
    }
}

pub struct ReplicationController;

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        object.default_absent("spec.replicas", 1);
        let labels = object.at("spec.template.metadata.labels").clone();
        if labels.is_object() {
            if !object.is_set("spec.selector") {
                object.set("spec.selector", labels.clone());
            }
            if !object.is_set("metadata.labels") {
                object.set("metadata.labels", labels);
            }
        }
        if let Some(template) = object.at_mut("spec.template") {
            defaults::template(template);
        }
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        object.set("status", json!({"replicas": 0}));
        object.set("metadata.generation", 1);
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        errs.non_negative(&path.child("minReadySeconds"), object.int_at("spec.minReadySeconds"));
        if !object.is_set("spec.selector") {
            errs.required(&path.child("selector"), "");
        }
        match object.int_opt("spec.replicas") {
            None => errs.required(&path.child("replicas"), ""),
            Some(replicas) => errs.non_negative(&path.child("replicas"), replicas),
        }
        check_template(&mut errs, &path.child("template"), object);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        // What another group's selector could not be said with is only noted.
        const NOTE: &str = "non-convertible.kubernetes.io/";
        for (key, note) in old.entries("metadata.annotations") {
            let Some(field) = key.strip_prefix(NOTE).filter(|field| !field.contains('/')) else { continue };
            if !field.contains("selector") {
                let error = FieldError::not_found(&Path::new(field), note.clone());
                errs.push(FieldError { detail: "unknown non-convertible field".to_owned(), ..error });
            } else if !same(new.at("spec.selector"), old.at("spec.selector")) {
                let path = Path::new("spec");
                let selector = new.at("spec.selector").clone();
                errs.invalid(&path.child("selector"), selector, "cannot update non-convertible selector");
            }
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_replica_counts(&mut errs, new.at("status"));
        errs
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        let messages = names::dns1123_label(new.str_at("metadata.name"));
        if old.is_none() && !messages.is_empty() {
            out.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
                messages.join(" ")
            ));
        }
        let unchanged =
            old.is_some_and(|o| o.int_at("metadata.generation") == new.int_at("metadata.generation"));
        if !unchanged {
            let path = Path::new("spec");
            out.extend(warnings::of(new.at("spec.template"), &path.child("template")));
        }
        out
    }

    fn has_status(&self) -> bool {
        true
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn judges_prefix(&self) -> bool {
        false
    }
}

fn check_template(errs: &mut Errors, path: &Path<'_>, object: &Value) {
    let template = object.at("spec.template");
    if template.is_null() {
        return errs.required(path, "");
    }
    let labels = template.at("metadata.labels");
    if object.entries("spec.selector").any(|(key, value)| labels.get(key) != Some(value)) {
        errs.invalid(
            &path.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        );
    }
    spec::check_template(errs, path, template);
    let p = path.child("spec");
    errs.one_of(&p.child("restartPolicy"), template.str_at("spec.restartPolicy"), &["Always"]);
    if template.has("spec.activeDeadlineSeconds") {
        errs.forbidden(
            &p.child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicationController is not Supported",
        );
    }
}

/// Errors in the counts that the status of ReplicationControllers and ReplicaSets holds.
pub fn check_replica_counts(errs: &mut Errors, status: &Value) {
    let path = Path::new("status");
    let count = |field: &str| status.int_at(field);
    for field in
        ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"]
    {
        errs.non_negative(&path.child(field), count(field));
    }
    for field in ["fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if count(field) > count("replicas") {
            errs.invalid(&path.child(field), count(field), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        errs.invalid(
            &path.child("availableReplicas"),
            count("availableReplicas"),
            "cannot be greater than readyReplicas",
        );
    }
}
