//! `Namespace`: active from the start, and held by the `kubernetes` finalizer until it is empty.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta, names,
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub struct Namespace;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Selectors can select a namespace by its name, which is therefore also a label.
fn label_with_name(object: &mut Value) {
    let name = object.str_at("metadata.name").to_owned();
    if name.is_empty() {
        return;
    }
    let mut labels = object.at("metadata.labels").as_object().cloned().unwrap_or_default();
    labels.insert(NAME_LABEL.to_owned(), Value::from(name));
    object.set("metadata.labels", labels);
}

impl Strategy for Namespace {
    fn default(&self, object: &mut Value) {
        label_with_name(object);
        object.default_zero("status.phase", "Active");
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        label_with_name(object);
        object.set("status", json!({"phase": "Active"}));
        let mut finalizers = object.items("spec.finalizers").to_vec();
        if !finalizers.iter().any(|f| f == "kubernetes") {
            finalizers.push(Value::from("kubernetes"));
        }
        object.set("spec.finalizers", finalizers);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, false);
        new.copy_from(old, "spec.finalizers");
    }

    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        ctx: &Context<'_>,
    ) {
        match subresource {
            "status" => self.prepare_for_status_update(new, old, ctx),
            "finalize" => meta::prepare_for_update(new, old, true, false),
            _ => self.prepare_for_update(new, old, ctx),
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        for finalizer in object.strings("spec.finalizers") {
            check_finalizer(&mut errs, &path.child("finalizers"), finalizer);
        }
        errs
    }

    fn validate_update(&self, _new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        Vec::new()
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("status");
        let path = path.child("Phase");
        let phase = new.str_at("status.phase");
        if new.has("metadata.deletionTimestamp") {
            if phase != "Terminating" {
                errs.invalid(&path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
            }
        } else if phase != "Active" {
            errs.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        errs
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        ctx: &Context<'_>,
    ) -> Vec<FieldError> {
        match subresource {
            "status" => self.validate_status_update(new, old, ctx),
            "finalize" => {
                let mut errs = Errors::new();
                let path = Path::new("spec");
                let list = path.child("finalizers");
                for (i, finalizer) in new.strings("spec.finalizers").into_iter().enumerate() {
                    check_finalizer(&mut errs, &list.index(i), finalizer);
                }
                errs
            }
            _ => self.validate_update(new, old, ctx),
        }
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }
}

fn check_finalizer(errs: &mut Errors, path: &Path<'_>, name: &str) {
    errs.each(path, name, names::qualified_name(name));
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        errs.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}
