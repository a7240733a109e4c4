//! Strategies of the kinds of `resource.k8s.io`: what may not change. Selectors are compiled by the scheduler.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{Context, Flags, Strategy};
use crate::{
    check::{Check, Errors},
    meta,
    view::{View, ViewMut},
};

/// `DeviceClass`
pub const DEVICE_CLASS: &dyn Strategy = &Flags::new().generation();

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: &dyn Strategy = &Flags::new().status().generation();

/// `ResourceClaim`
pub const RESOURCE_CLAIM: &dyn Strategy = &Claim { status: true };

/// `ResourceClaimTemplate`
pub const RESOURCE_CLAIM_TEMPLATE: &dyn Strategy = &Claim { status: false };

/// `ResourcePoolStatusRequest`
pub const RESOURCE_POOL_STATUS_REQUEST: &dyn Strategy = &Flags::new().status().conditional_update();

/// `ResourceSlice`
pub const RESOURCE_SLICE: &dyn Strategy = &ResourceSlice;

const MAX_REQUESTS: usize = 32;

/// `ResourceClaim` and `ResourceClaimTemplate`, whose specification never changes.
struct Claim {
    status: bool,
}

impl Claim {
    fn devices(&self) -> &'static str {
        if self.status { "spec.devices" } else { "spec.spec.devices" }
    }
}

impl Strategy for Claim {
    fn default(&self, claim: &mut Value) {
        for request in claim.items_mut(&format!("{}.requests", self.devices())) {
            if let Some(exactly) = request.at_mut("exactly") {
                default_request(exactly);
            }
            for alternative in request.items_mut("firstAvailable") {
                default_request(alternative);
            }
        }
    }

    fn validate(&self, claim: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let list = format!("{}.requests", self.devices());
        let path = Path::new(&list);
        let requests = claim.items(&list);
        super::rules::check_items(&mut errs, &path, requests.len(), MAX_REQUESTS);
        let mut seen: Vec<&str> = Vec::new();
        for (i, request) in requests.iter().enumerate() {
            let path = path.index(i);
            let name = request.str_at("name");
            errs.name(&path.child("name"), name, crate::names::dns1123_label);
            if seen.contains(&name) {
                errs.duplicate(&path.child("name"), name);
            }
            seen.push(name);
            match (request.has("exactly"), request.is_set("firstAvailable")) {
                (true, true) => errs.invalid(
                    &path,
                    request.clone(),
                    "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set",
                ),
                (false, false) => errs.required(&path, "exactly one of `exactly` or `firstAvailable` is required"),
                _ => {}
            }
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }

    fn has_status(&self) -> bool {
        self.status
    }
}

fn default_request(request: &mut Value) {
    request.default_zero("allocationMode", "ExactCount");
    if request.str_at("allocationMode") == "ExactCount" {
        request.default_zero("count", 1);
    }
}

struct ResourceSlice;

impl Strategy for ResourceSlice {
    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, false, true);
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = self.validate(new);
        for field in ["spec.driver", "spec.pool.name", "spec.nodeName"] {
            errs.immutable(&Path::new(field), new.at(field), old.at(field));
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        strategy::testing::{check_create, check_update, defaulted, named},
        view::View,
    };

    #[test]
    fn claims() {
        let base = named(json!({"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}));
        let claim = defaulted("resource.k8s.io", "ResourceClaim", base.clone());
        assert_eq!(
            claim.items("spec.devices.requests")[0].at("exactly"),
            &json!({"deviceClassName": "c", "allocationMode": "ExactCount", "count": 1})
        );
        check_create("resource.k8s.io", "ResourceClaim", &base, &[
            (json!({}), &[]),
            (json!({"spec": {"devices": {"requests": [{"name": "r"}]}}}), &[
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ]),
        ]);
        check_update("resource.k8s.io", "ResourceClaim", &base, &[(json!({"spec": null}), &[
            "spec: Invalid value: null: field is immutable",
        ])]);
    }
}
