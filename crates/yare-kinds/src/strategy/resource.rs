//! Strategies of the kinds of `resource.k8s.io` (dynamic resource allocation), in the shape of `v1`.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{Context, Strategy};
use crate::{
    check::{Check, Errors},
    meta, names,
    pod::{resources::is_extended, volumes::check_template_meta},
    view::{View, ViewMut},
};

mod claims;
mod pools;
mod selectors;
mod slice;
mod status;
mod taints;

/// `DeviceClass`
pub const DEVICE_CLASS: &dyn Strategy = &DeviceClass;

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: &dyn Strategy = &taints::DeviceTaintRule;

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
    fn validate(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        check_class(object, None, ctx)
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        check_class(new, Some(old), ctx)
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn judges_prefix(&self) -> bool {
        false
    }
}

fn check_class(class: &Value, old: Option<&Value>, ctx: &Context<'_>) -> Errors {
    const MAX_CONFIGS: usize = 32;
    let mut errs = Errors::new();
    let path = Path::new("spec");
    // Selectors that stay as they are may use what new ones may not yet.
    let stored = old.is_some_and(|old| old.at("spec.selectors") == class.at("spec.selectors"));
    let terms = selectors::Terms::new(ctx.gates, stored);
    selectors::check(&mut errs, &path.child("selectors"), class.items("spec.selectors"), terms);
    let (list, configs) = (path.child("config"), class.items("spec.config"));
    claims::at_most(&mut errs, &list, configs, MAX_CONFIGS);
    let before = old.map(|old| (class.at("spec.config"), old.at("spec.config")));
    for (i, config) in configs.iter().enumerate().filter(|_| configs.len() <= MAX_CONFIGS) {
        claims::check_configuration(&mut errs, &list.index(i), config, before);
    }
    if let Some(name) = class.str_opt("spec.extendedResourceName")
        && !is_extended(name)
    {
        errs.invalid(&path.child("extendedResourceName"), name, "must be a valid extended resource name");
    }
    errs
}

struct ResourceClaim;

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        claims::default_requests(object, "spec.devices.requests");
        object
            .items_mut("status.allocation.devices.results")
            .iter_mut()
            .for_each(claims::default_tolerations);
    }

    fn prepare_for_create(&self, object: &mut Value, _ctx: &Context<'_>) {
        object.set("status", json!({}));
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        meta::restore_client_metadata(new, old);
        status::drop_deallocated(new, old);
    }

    fn validate(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        claims::check_spec(&mut errs, &Path::new("spec"), object.at("spec"), ctx.gates);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        status::check_update(&mut errs, new, old);
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

    fn validate(&self, object: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        check_template_meta(&mut errs, &path.child("metadata"), object.at("spec.metadata"));
        claims::check_spec(&mut errs, &path.child("spec"), object.at("spec.spec"), ctx.gates);
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
