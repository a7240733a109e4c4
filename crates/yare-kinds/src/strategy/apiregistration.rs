//! Strategies of the kinds of `apiregistration.k8s.io`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::Strategy;
use crate::{
    check::{Check, Errors},
    names,
    view::{View, ViewMut},
};

/// `APIService`
pub const API_SERVICE: &dyn Strategy = &ApiService;

struct ApiService;

const DEFAULT_PORT: i64 = 443;
const MAX_GROUP_PRIORITY: i64 = 20_000;
const MAX_VERSION_PRIORITY: i64 = 1000;

impl Strategy for ApiService {
    fn default(&self, service: &mut Value) {
        if service.has("spec.service") {
            service.default_absent("spec.service.port", DEFAULT_PORT);
        }
    }

    fn validate(&self, service: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), service.at("spec"));
        let (group, version) = (spec.str_at("group"), spec.str_at("version"));
        let (name, wanted) = (service.str_at("metadata.name"), format!("{version}.{group}"));
        if name != wanted {
            errs.invalid(
                &Path::new("metadata.name"),
                name,
                format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"),
            );
        }
        if group.is_empty() && version != "v1" {
            errs.required(&path.child("group"), "only v1 may have an empty group and it better be legacy kube");
        }
        if !group.is_empty() {
            errs.each(&path.child("group"), group, names::dns1123_subdomain(group));
        }
        errs.each(&path.child("version"), version, names::dns1035_label(version));
        for (field, max) in [("groupPriorityMinimum", MAX_GROUP_PRIORITY), ("versionPriority", MAX_VERSION_PRIORITY)] {
            let priority = spec.int_at(field);
            if !(1..=max).contains(&priority) {
                errs.invalid(&path.child(field), priority, format!("must be positive and less than {max}"));
            }
        }
        let (insecure, bundle) = (spec.bool_at("insecureSkipTLSVerify"), spec.str_at("caBundle"));
        let insecure_path = path.child("insecureSkipTLSVerify");
        if !spec.has("service") {
            if !bundle.is_empty() {
                let size = format!("{} bytes", bundle.trim_end_matches('=').len() * 3 / 4);
                errs.invalid(&path.child("caBundle"), size, "local APIServices may not have a caBundle");
            }
            if insecure {
                errs.invalid(&insecure_path, true, "local APIServices may not have insecureSkipTLSVerify");
            }
            return errs;
        }
        let p = path.child("service");
        for field in ["namespace", "name"] {
            errs.non_empty(&p.child(field), spec.at("service").str_at(field));
        }
        let port = spec.int_at("service.port");
        let messages = names::port_number(port);
        if !messages.is_empty() {
            errs.invalid(&p.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
        }
        if insecure && !bundle.is_empty() {
            errs.invalid(&insecure_path, true, "may not be true if caBundle is present");
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let list = Path::new("status.conditions");
        for (i, condition) in new.items("status.conditions").iter().enumerate() {
            let status = condition.str_at("status");
            errs.one_of(&list.index(i).child("status"), status, &["True", "False", "Unknown"]);
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        strategy::testing::{check_create, defaulted},
        view::View,
    };

    #[test]
    fn services() {
        let base = json!({"metadata": {"name": "v1.a.b"}, "spec": {"group": "a.b", "version": "v1",
            "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"name": "s", "namespace": "n"}}});
        assert_eq!(defaulted("apiregistration.k8s.io", "APIService", base.clone()).int_at("spec.service.port"), 443);
        check_create("apiregistration.k8s.io", "APIService", &base, &[
            (json!({}), &[]),
            (json!({"metadata": {"name": "x"}, "spec": {"versionPriority": 0}}), &[
                "metadata.name: Invalid value: \"x\": must be `spec.version+\".\"+spec.group`: \"v1.a.b\"",
                "spec.versionPriority: Invalid value: 0: must be positive and less than 1000",
            ]),
            (json!({"spec": {"caBundle": "YWJj", "insecureSkipTLSVerify": true}}), &[
                "spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present",
            ]),
        ]);
    }
}
