//! `ResourcePoolStatusRequest`: a question after the state of pools that is answered once, in `status`.

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

pub struct ResourcePoolStatusRequest;

const DEFAULT_LIMIT: i64 = 100;
const DRIVER: Rule = Rule::Format(driver);
const POOL: Rule = Rule::Format(pool);
const COUNT: &[Rule] = &[Rule::Minimum(0)];

const SPEC: &[Field] = &[
    field("driver", &[Rule::Required, DRIVER]),
    field("poolName", &[POOL]),
    field("limit", &[Rule::Minimum(1), Rule::Maximum(1000)]),
];
const STATUS: &[Field] = &[
    field("poolCount", &[Rule::Required, Rule::Minimum(0)]),
    field("pools", &[Rule::MaxItems(1000)]).of(&[
        field("driver", &[Rule::Required, DRIVER]),
        field("poolName", &[Rule::Required, POOL]),
        field("generation", &[Rule::Required, Rule::Minimum(0)]),
        field("resourceSliceCount", &[Rule::Minimum(1)]),
        field("totalDevices", COUNT),
        field("allocatedDevices", COUNT),
        field("availableDevices", COUNT),
        field("unavailableDevices", COUNT),
        field("nodeName", &[Rule::Format(names::dns1123_subdomain)]),
        field("validationError", &[Rule::MaxBytes(256)]),
    ]),
    field("conditions", &[Rule::MaxItems(10), Rule::Keyed("type")]),
];

/// A subdomain in letters of any case.
fn driver(name: &str) -> Vec<String> {
    let messages = names::dns1123_subdomain(&name.to_lowercase()).into_iter();
    messages
        .map(|message| {
            message
                .replace("a lowercase RFC 1123", "an RFC 1123")
                .replace("lower case alphanumeric", "alphanumeric")
                .replace("'example.com'", "'Example.com'")
        })
        .collect()
}

/// Subdomains with slashes between.
fn pool(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > names::SUBDOMAIN_MAX {
        out.push(format!("must be no more than {} bytes", names::SUBDOMAIN_MAX));
    }
    for (i, part) in name.split('/').enumerate() {
        if part.is_empty() {
            out.push(format!("segment {i}: must not be empty"));
        } else {
            out.extend(names::dns1123_subdomain(part).into_iter().map(|m| format!("segment {i}: {m}")));
        }
    }
    out
}

impl Strategy for ResourcePoolStatusRequest {
    fn default(&self, request: &mut Value) {
        request.default_absent("spec.limit", DEFAULT_LIMIT);
    }

    fn validate(&self, request: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check(&mut errs, &Path::new("spec"), SPEC, request.at("spec"), None);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        if !crate::view::same(new.at("spec"), old.at("spec")) {
            errs.invalid(&Path::new("spec"), Value::Null, meta::IMMUTABLE);
        }
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let (path, status) = (Path::new("status"), new.at("status"));
        let mut errs = Errors::new();
        if old.has("status") {
            errs.immutable(&path, status, old.at("status"));
            return errs;
        }
        if !status.is_null() {
            errs = meta::validate_conditions(status.items("conditions"), &path.child("conditions"));
            check(&mut errs, &path, STATUS, status, None);
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::strategy::testing::{check_create, check_update, status_errors};

    const GROUP: &str = "resource.k8s.io";
    const KIND: &str = "ResourcePoolStatusRequest";

    #[test]
    fn questions_and_answers() {
        let base = json!({"metadata": {"name": "q"}, "spec": {"driver": "d.example.com"}});
        check_create(
            GROUP,
            KIND,
            &base,
            &[
                (json!({}), &[]),
                (
                    json!({"spec": {"driver": null, "poolName": "a//b", "limit": 0}}),
                    &[
                        "spec.driver: Required value",
                        "spec.poolName: Invalid value: \"a//b\": segment 1: must not be empty",
                        "spec.limit: Invalid value: 0: must be greater than or equal to 1",
                    ],
                ),
            ],
        );
        check_update(
            GROUP,
            KIND,
            &base,
            &[(json!({"spec": {"limit": 5}}), &["spec: Invalid value: null: field is immutable"])],
        );
        let answered = json!({"status": {"poolCount": 1, "pools": [{"driver": "d.example.com", "poolName": "p", "generation": 1}]}});
        assert!(status_errors(GROUP, KIND, json!({}), answered.clone()).is_empty());
        let wrong =
            json!({"status": {"pools": [{"driver": "d.example.com", "poolName": "p", "generation": -1}]}});
        assert_eq!(
            status_errors(GROUP, KIND, json!({}), wrong),
            [
                "status.poolCount: Required value",
                "status.pools[0].generation: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
        let changed = json!({"status": {"poolCount": 2}});
        assert_eq!(status_errors(GROUP, KIND, answered, changed).len(), 1);
    }
}
