//! Strategies of the kinds of `apiregistration.k8s.io`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    names,
    view::{View, ViewMut},
};

/// `APIService`
pub const API_SERVICE: &dyn Strategy = &ApiService;

struct ApiService;

impl Strategy for ApiService {
    fn default(&self, object: &mut Value) {
        if let Some(service) = object.at_mut("spec.service") {
            service.default_absent("port", 443);
        }
    }

    /// What the server itself serves is available at once.
    fn prepare_for_create(&self, object: &mut Value, ctx: &Context<'_>) {
        object.set("status", json!({}));
        if !object.has("spec.service") {
            object.set(
                "status.conditions",
                json!([{
                    "type": "Available",
                    "status": "True",
                    "lastTransitionTime": ctx.now,
                    "reason": "Local",
                    "message": "Local APIServices are always available",
                }]),
            );
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let spec = object.at("spec");
        let (group, version) = (spec.str_at("group"), spec.str_at("version"));
        let path = Path::new("spec");
        if group.is_empty() {
            if version != "v1" {
                errs.required(
                    &path.child("group"),
                    "only v1 may have an empty group and it better be legacy kube",
                );
            }
        } else {
            errs.each(&path.child("group"), group, names::dns1123_subdomain(group));
        }
        errs.each(&path.child("version"), version, names::dns1035_label(version));
        for (field, max) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
            let priority = spec.int_at(field);
            if !(1..=max).contains(&priority) {
                errs.invalid(&path.child(field), priority, format!("must be positive and less than {max}"));
            }
        }
        check_service(&mut errs, &path, spec);
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("status");
        let path = path.child("conditions");
        for (i, condition) in new.items("status.conditions").iter().enumerate() {
            let p = path.index(i);
            errs.one_listed(&p.child("status"), condition.str_at("status"), &["True", "False", "Unknown"]);
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name_of(&self, name: &str, service: &Value) -> Vec<String> {
        let messages = names::path_segment(name);
        let required = format!("{}.{}", service.str_at("spec.version"), service.str_at("spec.group"));
        if messages.is_empty() && name != required {
            return vec![format!("must be `spec.version+\".\"+spec.group`: {required:?}")];
        }
        messages
    }
}

fn check_service(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let insecure = spec.bool_at("insecureSkipTLSVerify");
    let insecure_path = path.child("insecureSkipTLSVerify");
    if !spec.has("service") {
        if spec.is_set("caBundle") {
            let encoded = spec.str_at("caBundle");
            let padding = encoded.len() - encoded.trim_end_matches('=').len();
            let shown = format!("{} bytes", encoded.len() / 4 * 3 - padding.min(2));
            errs.invalid(&path.child("caBundle"), shown, "local APIServices may not have a caBundle");
        }
        if insecure {
            errs.invalid(&insecure_path, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    let p = path.child("service");
    errs.non_empty(&p.child("namespace"), spec.str_at("service.namespace"));
    errs.non_empty(&p.child("name"), spec.str_at("service.name"));
    let port = spec.int_at("service.port");
    for message in names::port_number(port) {
        errs.invalid(&p.child("port"), port, format!("port is not valid: {message}"));
    }
    if insecure && spec.is_set("caBundle") {
        errs.invalid(&insecure_path, true, "may not be true if caBundle is present");
    }
}
