//! Strategies of the kinds of `resource.k8s.io` (dynamic resource allocation), in the shape of `v1`.
//!
//! Expressions of selectors are compiled, and their cost estimated, by the API server, which has the
//! compiler; here only their length is looked at.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    names,
    pod::{resources::is_extended, volumes::check_template_meta},
    view::{View, ViewMut},
};

mod claims;
mod pools;
mod slice;

/// `DeviceClass`
pub const DEVICE_CLASS: &dyn Strategy = &DeviceClass;

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: &dyn Strategy = &slice::DeviceTaintRule;

/// `ResourceClaim`
pub const RESOURCE_CLAIM: &dyn Strategy = &ResourceClaim;

/// `ResourceClaimTemplate`
pub const RESOURCE_CLAIM_TEMPLATE: &dyn Strategy = &ResourceClaimTemplate;

/// `ResourcePoolStatusRequest`
pub const RESOURCE_POOL_STATUS_REQUEST: &dyn Strategy = &pools::ResourcePoolStatusRequest;

/// `ResourceSlice`
pub const RESOURCE_SLICE: &dyn Strategy = &slice::ResourceSlice;

struct DeviceClass;

impl Strategy for DeviceClass {
    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        claims::check_selectors(&mut errs, &path.child("selectors"), object.items("spec.selectors"));
        let list = path.child("config");
        let configs = object.items("spec.config");
        claims::at_most(&mut errs, &list, configs, 32);
        for (i, config) in configs.iter().enumerate() {
            claims::check_configuration(&mut errs, &list.index(i), config);
        }
        if let Some(name) = object.str_opt("spec.extendedResourceName")
            && !is_extended(name)
        {
            errs.invalid(&path.child("extendedResourceName"), name, "must be a valid extended resource name");
        }
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

struct ResourceClaim;

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        claims::default_requests(object, "spec.devices.requests");
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        object.set("status", json!({}));
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        claims::check_spec(&mut errs, &Path::new("spec"), object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        claims::check_status_update(&mut errs, new, old);
        errs
    }

    fn has_status(&self) -> bool {
        true
    }
}

struct ResourceClaimTemplate;

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        claims::default_requests(object, "spec.spec.devices.requests");
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        check_template_meta(&mut errs, &path.child("metadata"), object.at("spec.metadata"));
        claims::check_spec(&mut errs, &path.child("spec"), object.at("spec.spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }
}

/// Errors in the name of a pool: subdomains with slashes between.
fn check_pool_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    if name.len() > names::SUBDOMAIN_MAX {
        errs.push(FieldError::too_long(path, names::SUBDOMAIN_MAX));
    }
    for part in name.split('/') {
        errs.each(path, part, names::dns1123_subdomain(part));
    }
}
