//! Strategies of the kinds of `rbac.authorization.k8s.io`.
//!
//! Whether a user may grant what a role holds is the authorizer's question, not asked here.

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    selector::LabelSelector,
};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    meta::{JudgeSelector, judge_selectors_after, validate_label_selector},
    names,
    shown::ROLE_REF,
    view::{View, ViewMut},
};

/// `ClusterRole`
pub const CLUSTER_ROLE: &dyn Strategy = &Role { namespaced: false };

/// `ClusterRoleBinding`
pub const CLUSTER_ROLE_BINDING: &dyn Strategy = &RoleBinding { namespaced: false };

/// `Role`
pub const ROLE: &dyn Strategy = &Role { namespaced: true };

/// `RoleBinding`
pub const ROLE_BINDING: &dyn Strategy = &RoleBinding { namespaced: true };

const GROUP: &str = "rbac.authorization.k8s.io";
/// Which roles a role gathers.
const SELECTORS: &str = "aggregationRule.clusterRoleSelectors";

/// `Role` and `ClusterRole`.
struct Role {
    namespaced: bool,
}

impl Strategy for Role {
    fn validate(&self, role: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        self.check(role, validate_label_selector)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        self.check(new, judge_selectors_after(old.items(SELECTORS)))
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
}

impl Role {
    fn check(&self, role: &Value, judge: JudgeSelector) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let list = Path::new("rules");
        for (i, rule) in role.items("rules").iter().enumerate() {
            self.check_rule(&mut errs, &list.index(i), rule);
        }
        if !self.namespaced && role.has("aggregationRule") {
            let list = Path::new(SELECTORS);
            let selectors = role.items(SELECTORS);
            if selectors.is_empty() {
                errs.required(
                    &list,
                    "at least one clusterRoleSelector required if aggregationRule is non-nil",
                );
            }
            for (i, selector) in selectors.iter().enumerate() {
                let path = list.index(i);
                errs.extend(judge(selector, &path));
                if LabelSelector::from_object(selector).is_err() {
                    errs.invalid(&path, Value::Null, "invalid label selector.");
                }
            }
        }
        errs
    }

    fn check_rule(&self, errs: &mut Errors, path: &Path<'_>, rule: &Value) {
        if !rule.is_set("verbs") {
            errs.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.strings("nonResourceURLs");
        if !urls.is_empty() {
            let p = path.child("nonResourceURLs");
            if self.namespaced {
                errs.invalid(&p, urls.clone(), "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|f| rule.is_set(f)) {
                errs.invalid(&p, urls, "rules cannot apply to both regular resources and non-resource URLs");
            }
            return;
        }
        for (field, what) in [("apiGroups", "api group"), ("resources", "resource")] {
            if !rule.is_set(field) {
                errs.required(&path.child(field), format!("resource rules must supply at least one {what}"));
            }
        }
    }
}

/// `RoleBinding` and `ClusterRoleBinding`.
struct RoleBinding {
    namespaced: bool,
}

impl Strategy for RoleBinding {
    fn default(&self, binding: &mut Value) {
        binding.default_zero("roleRef.apiGroup", GROUP);
        for subject in binding.items_mut("subjects") {
            if matches!(subject.str_at("kind"), "User" | "Group") {
                subject.default_zero("apiGroup", GROUP);
            }
        }
    }

    fn validate(&self, binding: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, role) = (Path::new("roleRef"), binding.at("roleRef"));
        errs.one_of(&path.child("apiGroup"), role.str_at("apiGroup"), &[GROUP]);
        let kinds: &[&str] = if self.namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
        errs.one_listed(&path.child("kind"), role.str_at("kind"), kinds);
        errs.name(&path.child("name"), role.str_at("name"), names::path_segment);
        let list = Path::new("subjects");
        for (i, subject) in binding.items("subjects").iter().enumerate() {
            self.check_subject(&mut errs, &list.index(i), subject);
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        if new.at("roleRef") != old.at("roleRef") {
            let detail = "cannot change roleRef";
            errs.invalid_shown(&Path::new("roleRef"), new.at("roleRef"), ROLE_REF, detail);
        }
        errs
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
    }
}

impl RoleBinding {
    fn check_subject(&self, errs: &mut Errors, path: &Path<'_>, subject: &Value) {
        let name = subject.str_at("name");
        errs.non_empty(&path.child("name"), name);
        let group = subject.str_at("apiGroup");
        match subject.str_at("kind") {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errs.each(&path.child("name"), name, names::dns1123_subdomain(name));
                }
                errs.one_of(&path.child("apiGroup"), group, &[""]);
                if !self.namespaced {
                    errs.non_empty(&path.child("namespace"), subject.str_at("namespace"));
                }
            }
            "User" | "Group" => errs.one_of(&path.child("apiGroup"), group, &[GROUP]),
            kind => errs.one_listed(&path.child("kind"), kind, &["ServiceAccount", "User", "Group"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::GROUP;
    use crate::{
        strategy::testing::{check_create, check_update, defaulted, named},
        view::View,
    };

    #[test]
    fn roles() {
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        check_create(
            GROUP,
            "Role",
            &named(json!({"rules": [rule]})),
            &[
                (json!({}), &[]),
                (
                    json!({"rules": [{}]}),
                    &[
                        "rules[0].verbs: Required value: verbs must contain at least one value",
                        "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                        "rules[0].resources: Required value: resource rules must supply at least one resource",
                    ],
                ),
                (
                    json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}),
                    &[
                        "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
                    ],
                ),
            ],
        );
        check_create(
            GROUP,
            "ClusterRole",
            &named(json!({})),
            &[
                (json!({"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}), &[]),
                (
                    json!({"aggregationRule": {}}),
                    &[
                        "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn bindings() {
        let base = named(
            json!({"roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}),
        );
        let b = defaulted(GROUP, "RoleBinding", base.clone());
        assert_eq!((b.str_at("roleRef.apiGroup"), b.items("subjects")[0].str_at("apiGroup")), (GROUP, GROUP));
        check_create(
            GROUP,
            "ClusterRoleBinding",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"roleRef": {"kind": "Role", "name": ""}}),
                    &[
                        "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                        "roleRef.name: Required value",
                    ],
                ),
                (
                    json!({"subjects": [{"kind": "ServiceAccount", "name": "s"}, {"kind": "X", "name": "x"}]}),
                    &[
                        "subjects[0].namespace: Required value",
                        "subjects[1].kind: Unsupported value: \"X\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            "RoleBinding",
            &base,
            &[(
                json!({"roleRef": {"name": "other"}}),
                &[
                    "roleRef: Invalid value: {\"APIGroup\":\"rbac.authorization.k8s.io\",\"Kind\":\"ClusterRole\",\"Name\":\"other\"}: cannot change roleRef",
                ],
            )],
        );
    }
}
