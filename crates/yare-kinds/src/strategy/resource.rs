//! Strategies of the kinds of `resource.k8s.io` (dynamic resource allocation), in the shape of `v1`.
//!
//! Expressions of selectors are compiled, and their cost estimated, by the API server, which has the
//! compiler; here only their length is looked at.

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::{Context, Flags, Strategy};
use crate::{
    check::{Check, Errors},
    meta, names,
    pod::{
        affinity::check_node_selector, resources::is_extended, volumes::check_driver_name,
        volumes::check_template_meta,
    },
    view::{View, ViewMut, same},
};

mod claims;

/// `DeviceClass`
pub const DEVICE_CLASS: &dyn Strategy = &DeviceClass;

/// `DeviceTaintRule`
pub const DEVICE_TAINT_RULE: &dyn Strategy = &Flags::new().status().generation();

/// `ResourceClaim`
pub const RESOURCE_CLAIM: &dyn Strategy = &ResourceClaim;

/// `ResourceClaimTemplate`
pub const RESOURCE_CLAIM_TEMPLATE: &dyn Strategy = &ResourceClaimTemplate;

/// `ResourcePoolStatusRequest`
pub const RESOURCE_POOL_STATUS_REQUEST: &dyn Strategy = &Flags::new().status().conditional_update();

/// `ResourceSlice`
pub const RESOURCE_SLICE: &dyn Strategy = &ResourceSlice;

struct DeviceClass;

impl Strategy for DeviceClass {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
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

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        claims::check_spec(&mut errs, &Path::new("spec"), object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
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

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec");
        check_template_meta(&mut errs, &path.child("metadata"), object.at("spec.metadata"));
        claims::check_spec(&mut errs, &path.child("spec"), object.at("spec.spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        errs.immutable(&Path::new("spec"), new.at("spec"), old.at("spec"));
        errs
    }
}

struct ResourceSlice;

impl Strategy for ResourceSlice {
    fn prepare_for_create(&self, object: &mut Value, ctx: &Context<'_>) {
        object.set("metadata.generation", 1);
        date_taints(object, ctx.now);
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        date_taints(new, ctx.now);
        meta::prepare_for_update(new, old, false, true);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_slice(&mut errs, &Path::new("spec"), object.at("spec"));
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errs = self.validate(new);
        let path = Path::new("spec");
        for field in ["driver", "nodeName"] {
            errs.immutable(&path.child(field), new.at("spec").at(field), old.at("spec").at(field));
        }
        let pool = path.child("pool");
        errs.immutable(&pool.child("name"), new.at("spec.pool.name"), old.at("spec.pool.name"));
        errs
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Taints without a time have been added now.
fn date_taints(object: &mut Value, now: &str) {
    for taint in object.items_mut("spec.devices").iter_mut().flat_map(|d| d.items_mut("taints")) {
        taint.default_absent("timeAdded", now);
    }
}

const MAX_DEVICES: usize = 128;

fn check_slice(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    check_driver_name(errs, &path.child("driver"), spec.str_at("driver"));
    let pool = path.child("pool");
    check_pool_name(errs, &pool.child("name"), spec.str_at("pool.name"));
    if spec.int_at("pool.resourceSliceCount") <= 0 {
        errs.invalid(
            &pool.child("resourceSliceCount"),
            spec.int_at("pool.resourceSliceCount"),
            "must be greater than zero",
        );
    }
    if spec.int_at("pool.generation") < 0 {
        errs.invalid(
            &pool.child("generation"),
            spec.int_at("pool.generation"),
            "must be greater than or equal to zero",
        );
    }
    let mut set = Vec::new();
    if let Some(name) = spec.str_opt("nodeName") {
        let p = path.child("nodeName");
        if name.is_empty() {
            errs.invalid(&p, name, "must be either unset or set to a non-empty string");
        } else {
            set.push("`nodeName`");
            errs.each(&p, name, names::dns1123_subdomain(name));
        }
    }
    if spec.has("nodeSelector") {
        set.push("`nodeSelector`");
        check_node_selector(errs, &path.child("nodeSelector"), spec.at("nodeSelector"));
    }
    for field in ["allNodes", "perDeviceNodeSelection"] {
        match spec.bool_opt(field) {
            Some(true) => {
                set.push(if field == "allNodes" { "`allNodes`" } else { "`perDeviceNodeSelection`" })
            }
            Some(false) => {
                errs.invalid(&path.child(field), false, "must be either unset or set to true");
            }
            None => {}
        }
    }
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => errs.required(path, ONE),
        1 => {}
        _ => errs.invalid(
            path,
            format!("{{{}}}", set.join(", ")),
            format!("{ONE}, but multiple fields are set"),
        ),
    }
    let devices = spec.items("devices");
    let list = path.child("devices");
    claims::at_most(errs, &list, devices, MAX_DEVICES);
    for (i, device) in devices.iter().enumerate() {
        let p = list.index(i);
        let name = device.str_at("name");
        errs.name(&p.child("name"), name, names::dns1123_label);
        if devices[..i].iter().any(|d| same(d.at("name"), device.at("name"))) {
            errs.duplicate(&p.child("name"), name);
        }
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
