//! What is asked for in a claim, and what was given.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::{check_pool_name, slice::check_toleration};
use crate::{
    check::{Check, Errors},
    meta::immutable,
    names,
    pod::{affinity::check_node_selector, volumes::check_driver_name},
    view::{View, ViewMut, same},
};

const MAX_REQUESTS: usize = 32;
const MAX_FIRST_AVAILABLE: usize = 8;
const MAX_SELECTORS: usize = 32;
const MAX_TOLERATIONS: usize = 16;
const MAX_RESERVED_FOR: usize = 256;
const MAX_EXPRESSION_BYTES: usize = 10 * 1024;
const MAX_PARAMETERS_BYTES: usize = 10 * 1024;

/// An error where there are more than `max` items.
pub fn at_most(errs: &mut Errors, path: &Path<'_>, items: &[Value], max: usize) {
    if items.len() > max {
        errs.push(FieldError::too_many(path, items.len(), max));
    }
}

/// Defaults of the requests at `path`: one device, exactly.
pub fn default_requests(object: &mut Value, path: &str) {
    let one = |request: &mut Value| {
        request.default_zero("allocationMode", "ExactCount");
        if request.str_at("allocationMode") == "ExactCount" {
            request.default_zero("count", 1);
        }
    };
    for request in object.items_mut(path) {
        if let Some(exactly) = request.at_mut("exactly") {
            one(exactly);
        }
        request.items_mut("firstAvailable").iter_mut().for_each(one);
    }
}

/// Errors in a `ResourceClaimSpec`.
pub fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let path = path.child("devices");
    let devices = spec.at("devices");
    let requests = devices.items("requests");
    let list = path.child("requests");
    at_most(errs, &list, requests, MAX_REQUESTS);
    for (i, request) in requests.iter().enumerate() {
        let p = list.index(i);
        check_name(errs, &p.child("name"), request, &requests[..i]);
        check_request(errs, &p, request);
    }
    let constraints = devices.items("constraints");
    let list = path.child("constraints");
    at_most(errs, &list, constraints, MAX_REQUESTS);
    for (i, constraint) in constraints.iter().enumerate() {
        let p = list.index(i);
        check_references(errs, &p.child("requests"), constraint, requests);
        let attribute = ["matchAttribute", "distinctAttribute"].into_iter().find(|f| constraint.has(f));
        match attribute {
            Some(field) => check_attribute(errs, &p.child(field), constraint.str_at(field)),
            None => {
                errs.required(&p, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required")
            }
        }
    }
    let configs = devices.items("config");
    let list = path.child("config");
    at_most(errs, &list, configs, MAX_REQUESTS);
    for (i, config) in configs.iter().enumerate() {
        let p = list.index(i);
        check_references(errs, &p.child("requests"), config, requests);
        check_configuration(errs, &p, config);
    }
}

fn check_name(errs: &mut Errors, path: &Path<'_>, item: &Value, before: &[Value]) {
    let name = item.str_at("name");
    errs.each(path, name, names::dns1123_label(name));
    if before.iter().any(|other| other.str_at("name") == name) {
        errs.duplicate(path, name);
    }
}

fn check_request(errs: &mut Errors, path: &Path<'_>, request: &Value) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let first = request.items("firstAvailable");
    match (request.has("exactly"), !first.is_empty()) {
        (false, false) => errs.required(path, ONE),
        (true, true) => errs.invalid(path, Value::Null, format!("{ONE}, but multiple fields are set")),
        (true, false) => check_devices(errs, &path.child("exactly"), request.at("exactly")),
        (false, true) => {
            let list = path.child("firstAvailable");
            at_most(errs, &list, first, MAX_FIRST_AVAILABLE);
            for (i, sub_request) in first.iter().enumerate() {
                let p = list.index(i);
                check_name(errs, &p.child("name"), sub_request, &first[..i]);
                check_devices(errs, &p, sub_request);
            }
        }
    }
}

fn check_devices(errs: &mut Errors, path: &Path<'_>, request: &Value) {
    errs.name(&path.child("deviceClassName"), request.str_at("deviceClassName"), names::dns1123_subdomain);
    check_selectors(errs, &path.child("selectors"), request.items("selectors"));
    let (tolerations, list) = (request.items("tolerations"), path.child("tolerations"));
    at_most(errs, &list, tolerations, MAX_TOLERATIONS);
    for (i, toleration) in tolerations.iter().enumerate().take(MAX_TOLERATIONS) {
        check_toleration(errs, &list.index(i), toleration);
    }
    let count = request.int_at("count");
    match request.str_at("allocationMode") {
        "All" if count != 0 => {
            errs.invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'")
        }
        "ExactCount" if count <= 0 => errs.invalid(&path.child("count"), count, "must be greater than zero"),
        "All" | "ExactCount" => {}
        mode => errs.one_of(&path.child("allocationMode"), mode, &["All", "ExactCount"]),
    }
}

/// Errors in selectors of devices.
pub fn check_selectors(errs: &mut Errors, path: &Path<'_>, selectors: &[Value]) {
    at_most(errs, path, selectors, MAX_SELECTORS);
    for (i, selector) in selectors.iter().enumerate() {
        let p = path.index(i);
        let p = p.child("cel");
        if !selector.has("cel") {
            errs.required(&p, "");
        } else if selector.str_at("cel.expression").len() > MAX_EXPRESSION_BYTES {
            errs.push(FieldError::too_long(&p.child("expression"), MAX_EXPRESSION_BYTES));
        }
    }
}

/// `dra.example.com/model`
fn check_attribute(errs: &mut Errors, path: &Path<'_>, name: &str) {
    match name.split_once('/') {
        Some((domain, id)) => {
            errs.each(path, domain, names::dns1123_subdomain(domain));
            errs.each(path, id, names::c_identifier(id));
        }
        None if name.is_empty() => errs.required(path, ""),
        None => errs.invalid(path, name, "must include a domain"),
    }
}

/// Names of requests, or of a request and one of its alternatives with `/` between.
fn check_references(errs: &mut Errors, path: &Path<'_>, item: &Value, requests: &[Value]) {
    let names = item.strings("requests");
    let mut seen = HashSet::new();
    for (i, name) in names.iter().enumerate() {
        check_reference(errs, &path.index(i), name, requests);
        if !seen.insert(*name) {
            errs.duplicate(&path.index(i), *name);
        }
    }
}

fn check_reference(errs: &mut Errors, path: &Path<'_>, name: &str, requests: &[Value]) {
    let (request, alternative) = name.split_once('/').map_or((name, None), |(r, a)| (r, Some(a)));
    let known = requests
        .iter()
        .filter(|r| r.str_at("name") == request)
        .any(|r| alternative.is_none_or(|a| r.items("firstAvailable").iter().any(|s| s.str_at("name") == a)));
    if !known {
        errs.invalid(
            path,
            name,
            "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
        );
    }
}

/// Errors in a configuration for a driver.
pub fn check_configuration(errs: &mut Errors, path: &Path<'_>, config: &Value) {
    let p = path.child("opaque");
    if !config.has("opaque") {
        return errs.required(&p, "");
    }
    check_driver_name(errs, &p.child("driver"), config.str_at("opaque.driver"));
    let parameters = config.at("opaque.parameters");
    let p = p.child("parameters");
    if parameters.is_null() {
        errs.required(&p, "");
    } else if !parameters.is_object() {
        errs.invalid(&p, "<value omitted>", "must be a valid JSON object");
    } else if parameters.to_string().len() > MAX_PARAMETERS_BYTES {
        errs.push(FieldError::too_long(&p, MAX_PARAMETERS_BYTES));
    }
}

/// Errors of an update of a claim's status.
pub fn check_status_update(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("status");
    let status = new.at("status");
    let reserved = status.items("reservedFor");
    let list = path.child("reservedFor");
    at_most(errs, &list, reserved, MAX_RESERVED_FOR);
    let mut uids = HashSet::new();
    for (i, consumer) in reserved.iter().enumerate() {
        let p = list.index(i);
        for field in ["resource", "name", "uid"] {
            errs.non_empty(&p.child(field), consumer.str_at(field));
        }
        if !uids.insert(consumer.str_at("uid")) {
            errs.duplicate(&p.child("uid"), consumer.str_at("uid"));
        }
    }
    if !reserved.is_empty() && !status.has("allocation") {
        errs.forbidden(&list, "may not be specified when `allocated` is not set");
    } else if new.has("metadata.deletionTimestamp") {
        let before = old.items("status.reservedFor");
        if reserved.iter().any(|consumer| !before.iter().any(|b| same(b, consumer))) {
            errs.forbidden(
                &list,
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            );
        }
    }
    let p = path.child("allocation");
    if !status.has("allocation") {
        return;
    }
    if old.has("status.allocation") {
        errs.extend(immutable(status.at("allocation"), old.at("status.allocation"), &p));
        return;
    }
    let requests = new.items("spec.devices.requests");
    let devices = p.child("devices");
    let list = devices.child("results");
    let results = status.items("allocation.devices.results");
    at_most(errs, &list, results, MAX_REQUESTS);
    for (i, result) in results.iter().enumerate() {
        let p = list.index(i);
        check_reference(errs, &p.child("request"), result.str_at("request"), requests);
        check_driver_name(errs, &p.child("driver"), result.str_at("driver"));
        check_pool_name(errs, &p.child("pool"), result.str_at("pool"));
        errs.name(&p.child("device"), result.str_at("device"), names::dns1123_label);
    }
    if status.has("allocation.nodeSelector") {
        check_node_selector(errs, &p.child("nodeSelector"), status.at("allocation.nodeSelector"));
    }
}
