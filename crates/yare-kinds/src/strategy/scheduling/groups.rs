//! `Workload` and `PodGroup`: pods that are scheduled together (KEP-4671). Their rules are declared.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta, names,
    strategy::{
        Context, Strategy,
        declared::{Field, Rule, check, field},
    },
    view::{View, ViewMut},
};

const LONG_NAME: Rule = Rule::Format(names::dns1123_subdomain);
const SHORT_NAME: Rule = Rule::Format(names::dns1123_label);
const SEGMENT: Rule = Rule::Format(names::path_segment);
/// The highest priority that is not the system's.
const PRIORITY: &[Rule] = &[Rule::Minimum(i32::MIN as i64), Rule::Maximum(1_000_000_000)];
const MODES: Rule = Rule::Enum(&["Pod", "PodGroup"]);

const POLICY: &[Field] =
    &[field("basic", &[]), field("gang", &[]).of(&[field("minCount", &[Rule::Required, Rule::Minimum(1)])])];
const ONE_POLICY: Rule = Rule::OneOf(&["basic", "gang"]);
const CONSTRAINTS: &[Field] = &[field("topology", &[Rule::MaxItems(1)])
    .of(&[field("key", &[Rule::Required, Rule::Format(names::qualified_name)])])];
const ONE_CLAIM: Rule = Rule::OneOf(&["resourceClaimName", "resourceClaimTemplateName"]);
const CLAIM: &[Field] = &[
    field("name", &[Rule::Required, SHORT_NAME]),
    field("resourceClaimName", &[LONG_NAME]),
    field("resourceClaimTemplateName", &[LONG_NAME]),
];

const WORKLOAD: &[Field] = &[
    field("controllerRef", &[Rule::Immutable]).of(&[
        field("apiGroup", &[LONG_NAME]),
        field("kind", &[Rule::Required, SEGMENT]),
        field("name", &[Rule::Required, SEGMENT]),
    ]),
    field("podGroupTemplates", &[Rule::Immutable, Rule::MaxItems(8), Rule::Required, Rule::Keyed("name")])
        .of(&[
            field("name", &[Rule::Required, SHORT_NAME]),
            field("schedulingPolicy", &[ONE_POLICY]).of(POLICY),
            field("schedulingConstraints", &[]).of(CONSTRAINTS),
            field("resourceClaims", &[Rule::Immutable, Rule::MaxItems(4), Rule::Keyed("name")])
                .each(&[ONE_CLAIM])
                .of(CLAIM),
            field("disruptionMode", &[MODES]),
            field("priorityClassName", &[LONG_NAME]),
            field("priority", PRIORITY),
        ]),
];

const POD_GROUP: &[Field] = &[
    field("podGroupTemplateRef", &[Rule::Immutable, Rule::OneOf(&["workload"])]).of(&[field(
        "workload",
        &[],
    )
    .of(&[
        field("workloadName", &[Rule::Required, LONG_NAME]),
        field("podGroupTemplateName", &[Rule::Required, SHORT_NAME]),
    ])]),
    field("schedulingPolicy", &[Rule::Immutable, ONE_POLICY]).of(POLICY),
    field("schedulingConstraints", &[Rule::Immutable]).of(CONSTRAINTS),
    field("resourceClaims", &[Rule::Immutable, Rule::MaxItems(4), Rule::Keyed("name")])
        .each(&[ONE_CLAIM])
        .of(CLAIM),
    field("disruptionMode", &[Rule::Immutable, MODES]),
    field("priorityClassName", &[Rule::Immutable, LONG_NAME]),
    field("priority", &[Rule::Immutable, Rule::Minimum(i32::MIN as i64), Rule::Maximum(1_000_000_000)]),
];

const POD_GROUP_STATUS: &[Field] =
    &[field("resourceClaimStatuses", &[Rule::MaxItems(4), Rule::Keyed("name")])
        .of(&[field("resourceClaimName", &[LONG_NAME])])];

pub struct Workload;

impl Strategy for Workload {
    fn validate(&self, workload: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, &Path::new("spec"), WORKLOAD, workload.at("spec"), None);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, &Path::new("spec"), WORKLOAD, new.at("spec"), Some(old.at("spec")));
        errs
    }
}

pub struct PodGroup;

impl Strategy for PodGroup {
    fn default(&self, group: &mut Value) {
        group.default_absent("spec.disruptionMode", "Pod");
    }

    fn validate(&self, group: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, &Path::new("spec"), POD_GROUP, group.at("spec"), None);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, &Path::new("spec"), POD_GROUP, new.at("spec"), Some(old.at("spec")));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let path = Path::new("status");
        let mut errs = meta::validate_conditions(new.items("status.conditions"), &path.child("conditions"));
        let list = path.child("resourceClaimStatuses");
        let claims = new.items("spec.resourceClaims");
        for (i, status) in new.items("status.resourceClaimStatuses").iter().enumerate() {
            let name = status.str_at("name");
            if !claims.iter().any(|c| c.str_at("name") == name) {
                let detail = "must match the name of an entry in `spec.resourceClaims`";
                errs.invalid(&list.index(i).child("name"), name, detail);
            }
        }
        check(&mut errs, &path, POD_GROUP_STATUS, new.at("status"), Some(old.at("status")));
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update, named};

    const GROUP: &str = "scheduling.k8s.io";

    #[test]
    fn workloads() {
        let base =
            named(json!({"spec": {"podGroupTemplates": [{"name": "a", "schedulingPolicy": {"basic": {}}}]}}));
        check_create(
            GROUP,
            "Workload",
            &base,
            &[
                (json!({}), &[]),
                (json!({"spec": {"podGroupTemplates": []}}), &["spec.podGroupTemplates: Required value"]),
                (
                    json!({"spec": {"podGroupTemplates": [
                        {"name": "A", "schedulingPolicy": {}},
                        {"name": "b", "schedulingPolicy": {"gang": {"minCount": 0}, "basic": {}}},
                    ]}}),
                    &[
                        "spec.podGroupTemplates[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                        "spec.podGroupTemplates[0].schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`",
                        "spec.podGroupTemplates[1].schedulingPolicy: Invalid value: \"{basic, gang}\": must specify exactly one of: `basic`, `gang`",
                        "spec.podGroupTemplates[1].schedulingPolicy.gang.minCount: Invalid value: 0: must be greater than or equal to 1",
                    ],
                ),
                (
                    json!({"spec": {"podGroupTemplates": [{"name": "a", "schedulingPolicy": {"basic": {}}, "resourceClaims": [{"name": "c"}]}]}}),
                    &[
                        "spec.podGroupTemplates[0].resourceClaims[0]: Invalid value: \"\": must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            "Workload",
            &base,
            &[
                (json!({"metadata": {"labels": {"a": "b"}}}), &[]),
                (
                    json!({"spec": {"controllerRef": {"kind": "Job", "name": "j"}}}),
                    &["spec.controllerRef: Invalid value: null: field is immutable"],
                ),
            ],
        );
    }

    #[test]
    fn pod_groups() {
        let base = named(json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}}));
        check_create(
            GROUP,
            "PodGroup",
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"podGroupTemplateRef": {"workload": {"workloadName": "w"}}, "priority": 1_000_000_001}}),
                    &[
                        "spec.podGroupTemplateRef.workload.podGroupTemplateName: Required value",
                        "spec.priority: Invalid value: 1000000001: must be less than or equal to 1000000000",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            "PodGroup",
            &base,
            &[(
                json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 3}}}}),
                &["spec.schedulingPolicy: Invalid value: null: field is immutable"],
            )],
        );
    }
}
