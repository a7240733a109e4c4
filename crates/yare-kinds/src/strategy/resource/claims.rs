//! What is asked for in a claim, and what was given.

use serde_json::Value;
use yare_schema::{
    features::Gates,
    field::{FieldError, Path},
};

use super::{
    selectors::{self, Terms},
    slice::check_qualified_name,
    taints::check_toleration,
};
use crate::{
    check::{Check, Errors, repeated},
    names,
    pod::volumes::check_driver_name,
    view::{View, ViewMut, same},
};

const MAX_REQUESTS: usize = 32;
const MAX_FIRST_AVAILABLE: usize = 8;
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
        default_tolerations(request);
    };
    for request in object.items_mut(path) {
        if let Some(exactly) = request.at_mut("exactly") {
            one(exactly);
        }
        request.items_mut("firstAvailable").iter_mut().for_each(one);
    }
}

/// Fills in how tolerations of taints compare values.
pub fn default_tolerations(holder: &mut Value) {
    for toleration in holder.items_mut("tolerations") {
        toleration.default_zero("operator", "Equal");
    }
}

/// Errors in a `ResourceClaimSpec`.
pub fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value, gates: &Gates) {
    let path = path.child("devices");
    let devices = spec.at("devices");
    let requests = devices.items("requests");
    let terms = Terms::new(gates, false);
    let check =
        |errs: &mut Errors, path: &Path<'_>, request: &Value| check_request(errs, path, request, terms);
    check_named(errs, &path.child("requests"), requests, MAX_REQUESTS, &check);
    let constraints = devices.items("constraints");
    let list = path.child("constraints");
    at_most(errs, &list, constraints, MAX_REQUESTS);
    for (i, constraint) in constraints.iter().enumerate().filter(|_| constraints.len() <= MAX_REQUESTS) {
        let p = list.index(i);
        check_references(errs, &p.child("requests"), constraint, requests);
        let attribute = ["matchAttribute", "distinctAttribute"].into_iter().find(|f| constraint.has(f));
        match attribute {
            Some(field) => check_attribute(errs, &p.child(field), constraint.str_at(field)),
            None if gates.is_on("DRAConsumableCapacity") => errs.required(
                &p,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
            None => errs.required(&p.child("matchAttribute"), ""),
        }
    }
    let configs = devices.items("config");
    let list = path.child("config");
    at_most(errs, &list, configs, MAX_REQUESTS);
    for (i, config) in configs.iter().enumerate().filter(|_| configs.len() <= MAX_REQUESTS) {
        let p = list.index(i);
        check_references(errs, &p.child("requests"), config, requests);
        check_configuration(errs, &p, config, None);
    }
}

/// Errors in a list of at most `max` requests, each with a name of its own.
fn check_named(
    errs: &mut Errors,
    path: &Path<'_>,
    items: &[Value],
    max: usize,
    check: &dyn Fn(&mut Errors, &Path<'_>, &Value),
) {
    if items.len() > max {
        return at_most(errs, path, items, max);
    }
    for (i, item) in items.iter().enumerate() {
        let p = path.index(i);
        let name = item.str_at("name");
        errs.each(&p.child("name"), name, names::dns1123_label(name));
        check(errs, &p, item);
    }
    let names: Vec<&str> = items.iter().map(|item| item.str_at("name")).collect();
    for (i, name) in repeated(&names) {
        errs.duplicate(&path.index(i), name);
    }
}

fn check_request(errs: &mut Errors, path: &Path<'_>, request: &Value, terms: Terms) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let first = request.items("firstAvailable");
    match (request.has("exactly"), !first.is_empty()) {
        (false, false) => errs.required(path, ONE),
        (true, true) => errs.invalid(path, Value::Null, format!("{ONE}, but multiple fields are set")),
        (true, false) => check_devices(errs, &path.child("exactly"), request.at("exactly"), terms),
        (false, true) => {
            let check =
                |errs: &mut Errors, path: &Path<'_>, sub: &Value| check_devices(errs, path, sub, terms);
            check_named(errs, &path.child("firstAvailable"), first, MAX_FIRST_AVAILABLE, &check);
        }
    }
}

fn check_devices(errs: &mut Errors, path: &Path<'_>, request: &Value, terms: Terms) {
    errs.name(&path.child("deviceClassName"), request.str_at("deviceClassName"), names::dns1123_subdomain);
    selectors::check(errs, &path.child("selectors"), request.items("selectors"), terms);
    let count = request.int_at("count");
    match request.str_at("allocationMode") {
        "All" if count != 0 => {
            errs.invalid(&path.child("count"), count, "must not be specified when allocationMode is 'All'")
        }
        "ExactCount" if count <= 0 => errs.invalid(&path.child("count"), count, "must be greater than zero"),
        "All" | "ExactCount" => {}
        mode => errs.one_of(&path.child("allocationMode"), mode, &["All", "ExactCount"]),
    }
    let list = path.child("tolerations");
    for (i, toleration) in request.items("tolerations").iter().enumerate() {
        check_toleration(errs, &list.index(i), toleration);
    }
}

/// `dra.example.com/model`
fn check_attribute(errs: &mut Errors, path: &Path<'_>, name: &str) {
    check_qualified_name(errs, path, name);
    if !name.contains('/') {
        errs.invalid(path, name, "a fully qualified name must be a domain and a name separated by a slash");
    }
}

/// Names of requests, or of a request and one of its alternatives with `/` between.
pub fn check_references(errs: &mut Errors, path: &Path<'_>, item: &Value, requests: &[Value]) {
    let names = item.strings("requests");
    if names.len() > MAX_REQUESTS {
        return errs.push(FieldError::too_many(path, names.len(), MAX_REQUESTS));
    }
    for (i, name) in names.iter().enumerate() {
        check_reference(errs, &path.index(i), name, requests);
    }
    for (i, name) in repeated(&names) {
        errs.duplicate(&path.index(i), name);
    }
}

/// One of [`check_references`].
pub fn check_reference(errs: &mut Errors, path: &Path<'_>, name: &str, requests: &[Value]) {
    const FORM: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return errs.invalid(path, name, FORM);
    }
    for part in &parts {
        errs.each(path, *part, names::dns1123_label(part));
    }
    let known = |request: &Value| {
        request.str_at("name") == parts[0]
            && parts.get(1).is_none_or(|part| {
                request.items("firstAvailable").iter().any(|sub| sub.str_at("name") == *part)
            })
    };
    if !requests.iter().any(known) {
        errs.invalid(path, name, FORM);
    }
}

/// Errors in a configuration for a driver; `old` is the list it stood in before, which may be long as it was.
pub fn check_configuration(
    errs: &mut Errors,
    path: &Path<'_>,
    config: &Value,
    old: Option<(&Value, &Value)>,
) {
    let p = path.child("opaque");
    if !config.has("opaque") {
        return errs.required(&p, "");
    }
    check_driver_name(errs, &p.child("driver"), config.str_at("opaque.driver"));
    let parameters = config.at("opaque.parameters");
    let p = p.child("parameters");
    let stored = old.is_some_and(|(new, old)| same(new, old));
    if parameters.is_null() {
        errs.required(&p, "");
    } else if !stored && parameters.to_string().len() > MAX_PARAMETERS_BYTES {
        errs.push(FieldError::too_long(&p, MAX_PARAMETERS_BYTES));
    } else if !parameters.is_object() {
        errs.invalid(&p, "<value omitted>", "must be a valid JSON object");
    }
}
