//! `IngressClass`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    names,
    strategy::{
        Context, Strategy,
        rules::{check_domain_prefixed_path, check_length, check_reference},
    },
    view::{View, ViewMut},
};

pub(super) struct IngressClass;

const MAX_CONTROLLER: usize = 250;

impl Strategy for IngressClass {
    fn default(&self, class: &mut Value) {
        if class.has("spec.parameters") {
            class.default_absent("spec.parameters.scope", "Cluster");
        }
    }

    fn validate(&self, class: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        let p = path.child("controller");
        let controller = class.str_at("spec.controller");
        check_length(&mut errs, &p, controller, MAX_CONTROLLER);
        check_domain_prefixed_path(&mut errs, &p, controller);
        let parameters = class.at("spec.parameters");
        if !parameters.is_null() {
            check_parameters(&mut errs, &path.child("parameters"), parameters);
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec.controller"), new.at("spec.controller"), old.at("spec.controller"));
        errs.extend(self.validate(new, ctx));
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

fn check_parameters(errs: &mut Errors, path: &Path<'_>, parameters: &Value) {
    check_reference(errs, path, parameters, &["kind", "name"]);
    let Some(scope) = parameters.str_opt("scope") else {
        return errs.required(&path.child("scope"), "");
    };
    let p = path.child("namespace");
    match (scope, parameters.str_opt("namespace")) {
        ("Namespace", None) => errs.required(&p, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(namespace)) => errs.each(&p, namespace, names::dns1123_label(namespace)),
        ("Cluster", Some(_)) => errs.forbidden(&p, "`parameters.scope` is set to 'Cluster'"),
        ("Cluster", None) => {}
        _ => errs.one_of(&path.child("scope"), scope, &["Cluster", "Namespace"]),
    }
}
