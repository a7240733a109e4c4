//! `ResourceSlice`: the devices that a driver offers on a node, or on several.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    quantity::Quantity,
};

use super::{check_pool_name, claims::at_most, status::check_binding, taints::check_taint};
use crate::{
    check::{Check, Errors, quantity},
    names,
    pod::{affinity::check_node_selector, volumes::check_driver_name},
    shown::ATTRIBUTE,
    strategy::{Context, Strategy, rules::check_length},
    view::{View, ViewMut, same},
};

pub struct ResourceSlice;

const MAX_DEVICES: usize = 128;
/// With taints, counters or lists among the attributes, devices are larger, so there are fewer.
const MAX_LARGE_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMPTIONS: usize = 2;
const MAX_TRAITS: usize = 32;
const MAX_ATTRIBUTE_VALUES: usize = 48;
const MAX_VALUE_BYTES: usize = 64;
const MAX_ID_BYTES: usize = 32;
/// A domain of 63 bytes, a slash, and an identifier.
const MAX_KEY_BYTES: usize = 63 + 1 + MAX_ID_BYTES;
const MAX_TAINTS: usize = 16;
const MAX_OPTIONS: usize = 10;

impl Strategy for ResourceSlice {
    fn default(&self, object: &mut Value) {
        let mappings = object
            .items_mut("spec.devices")
            .iter_mut()
            .filter_map(|device| device.at_mut("nodeAllocatableResourceMappings")?.as_object_mut());
        for mapping in mappings.flat_map(|mappings| mappings.values_mut()) {
            mapping.default_absent("allocationMultiplier", "1");
        }
    }

    fn default_in(&self, object: &mut Value, ctx: &Context<'_>) {
        for taint in object.items_mut("spec.devices").iter_mut().flat_map(|d| d.items_mut("taints")) {
            taint.default_absent("timeAdded", ctx.now);
        }
    }

    fn validate(&self, object: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check(object.at("spec"), &Value::Null)
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check(new.at("spec"), old.at("spec"))
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        let driver = new.str_at("spec.driver");
        if driver.to_lowercase() == driver {
            return Vec::new();
        }
        vec![format!(
            "spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"
        )]
    }

    fn has_generation(&self) -> bool {
        true
    }
}

/// Errors in the specification; `old` is what it was, `null` for a new one.
fn check(spec: &Value, old: &Value) -> Errors {
    let mut errs = Errors::new();
    let path = Path::new("spec");
    check_driver_name(&mut errs, &path.child("driver"), spec.str_at("driver"));
    let pool = path.child("pool");
    check_pool_name(&mut errs, &pool.child("name"), spec.str_at("pool.name"));
    let (count, generation) = (spec.int_at("pool.resourceSliceCount"), spec.int_at("pool.generation"));
    if count <= 0 {
        errs.invalid(&pool.child("resourceSliceCount"), count, "must be greater than zero");
    }
    if generation < 0 {
        errs.invalid(&pool.child("generation"), generation, "must be greater than or equal to zero");
    }
    if !old.is_null() {
        errs.immutable(&pool.child("name"), spec.at("pool.name"), old.at("pool.name"));
        for field in ["driver", "nodeName"] {
            errs.immutable(&path.child(field), spec.at(field), old.at(field));
        }
    }
    check_nodes(&mut errs, &path, spec, ONE_OF_FOUR);
    if spec.has("sharedCounters") && spec.has("devices") {
        errs.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let (devices, list) = (spec.items("devices"), path.child("devices"));
    let is_large = |d: &Value| {
        d.is_set("taints") || d.is_set("consumesCounters") || d.entries("attributes").any(|(_, a)| is_list(a))
    };
    let most = if devices.iter().any(is_large) { MAX_LARGE_DEVICES } else { MAX_DEVICES };
    if check_count(&mut errs, &list, devices, most) {
        let per_device = spec.bool_at("perDeviceNodeSelection");
        for (i, device) in devices.iter().enumerate() {
            let before = old.items("devices").iter().find(|d| d.at("name") == device.at("name"));
            check_device(&mut errs, &list.index(i), device, before, per_device);
        }
        check_unique(&mut errs, &list, devices, "name");
    }
    let (sets, list) = (spec.items("sharedCounters"), path.child("sharedCounters"));
    if check_count(&mut errs, &list, sets, MAX_COUNTER_SETS) {
        for (i, set) in sets.iter().enumerate() {
            let at = list.index(i);
            errs.name(&at.child("name"), set.str_at("name"), names::dns1123_label);
            check_counters(&mut errs, &at.child("counters"), set.at("counters"));
        }
        check_unique(&mut errs, &list, sets, "name");
    }
    errs
}

/// Whether there are at most `max` items; with more, none is looked at.
fn check_count(errs: &mut Errors, path: &Path<'_>, items: &[Value], max: usize) -> bool {
    at_most(errs, path, items, max);
    items.len() <= max
}

fn check_unique(errs: &mut Errors, path: &Path<'_>, items: &[Value], key: &str) {
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        if !seen.insert(item.str_at(key)) {
            errs.duplicate(&path.index(i), item.str_at(key));
        }
    }
}

/// What says on which nodes devices are.
#[derive(Clone, Copy)]
struct Nodes {
    per_device: bool,
    empty_name: &'static str,
    terms: Option<usize>,
    none: &'static str,
    several: &'static str,
}

const ONE_OF_FOUR: Nodes = Nodes {
    per_device: true,
    empty_name: "must be either unset or set to a non-empty string",
    terms: Some(1),
    none: "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
    several: "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set",
};

const PER_DEVICE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";

const ONE_OF_THREE: Nodes = Nodes {
    per_device: false,
    empty_name: "must not be empty",
    terms: None,
    none: PER_DEVICE,
    several: PER_DEVICE,
};

fn check_nodes(errs: &mut Errors, path: &Path<'_>, of: &Value, how: Nodes) {
    let mut set = Vec::new();
    if let Some(name) = of.str_opt("nodeName") {
        let p = path.child("nodeName");
        if name.is_empty() {
            errs.invalid(&p, name, how.empty_name);
        } else {
            set.push("`nodeName`");
            errs.each(&p, name, names::dns1123_subdomain(name));
        }
    }
    if of.has("nodeSelector") {
        set.push("`nodeSelector`");
        let p = path.child("nodeSelector");
        check_node_selector(errs, &p, of.at("nodeSelector"));
        let terms = of.at("nodeSelector.nodeSelectorTerms");
        if how.terms.is_some_and(|wanted| terms.items("").len() != wanted) {
            errs.invalid(
                &p.child("nodeSelectorTerms"),
                terms.clone(),
                "must have exactly one node selector term",
            );
        }
    }
    for (field, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        if field == "allNodes" || how.per_device {
            match of.bool_opt(field) {
                Some(true) => set.push(shown),
                Some(false) => {
                    errs.invalid(&path.child(field), false, "must be either unset or set to true");
                }
                None => {}
            }
        }
    }
    match set.len() {
        0 => errs.required(path, how.none),
        1 => {}
        _ => errs.invalid(path, format!("{{{}}}", set.join(", ")), how.several),
    }
}

/// Values of an attribute that has several.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn is_list(attribute: &Value) -> bool {
    LISTS.iter().any(|field| attribute.has(field))
}

fn check_device(
    errs: &mut Errors,
    path: &Path<'_>,
    device: &Value,
    before: Option<&Value>,
    per_device: bool,
) {
    let name = device.str_at("name");
    errs.each(&path.child("name"), name, names::dns1123_label(name));
    let (attributes, capacity) = (device.entries("attributes").count(), device.entries("capacity").count());
    if attributes + capacity > MAX_TRAITS {
        let detail = format!("the total number of attributes and capacities must not exceed {MAX_TRAITS}");
        errs.invalid(path, attributes + capacity, detail);
    }
    let values = |attribute: &Value| LISTS.iter().map(|f| attribute.items(f).len()).sum::<usize>().max(1);
    let total: usize = device.entries("attributes").map(|(_, a)| values(a)).sum();
    if total > MAX_ATTRIBUTE_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MAX_ATTRIBUTE_VALUES}");
        errs.invalid(path, total, detail);
    }
    let p = path.child("attributes");
    for (name, attribute) in device.entries("attributes") {
        check_qualified_name(errs, &p, name);
        check_attribute(errs, &p.key(&shortened(name)), attribute);
    }
    let p = path.child("capacity");
    let shared = device.bool_at("allowMultipleAllocations");
    for (name, capacity) in device.entries("capacity") {
        check_qualified_name(errs, &p, name);
        let key = shortened(name);
        let policy = p.key(&key);
        let policy = policy.child("requestPolicy");
        match (capacity.has("requestPolicy"), shared) {
            (false, _) => {}
            (true, false) => errs.forbidden(&policy, "allowMultipleAllocations must be true"),
            (true, true) => {
                check_policy(errs, &policy, quantity(capacity.at("value")), capacity.at("requestPolicy"));
            }
        }
    }
    let taints = device.items("taints");
    if !before.is_some_and(|before| same(before.at("taints"), device.at("taints"))) {
        let list = path.child("taints");
        if check_count(errs, &list, taints, MAX_TAINTS) {
            for (i, taint) in taints.iter().enumerate() {
                check_taint(errs, &list.index(i), taint, None);
            }
        }
    }
    let (consumed, list) = (device.items("consumesCounters"), path.child("consumesCounters"));
    if check_count(errs, &list, consumed, MAX_CONSUMPTIONS) {
        for (i, of) in consumed.iter().enumerate() {
            let at = list.index(i);
            errs.name(&at.child("counterSet"), of.str_at("counterSet"), names::dns1123_label);
            check_counters(errs, &at.child("counters"), of.at("counters"));
        }
        check_unique(errs, &list, consumed, "counterSet");
    }
    if per_device {
        check_nodes(errs, path, device, ONE_OF_THREE);
    } else if ["nodeName", "nodeSelector", "allNodes"].iter().any(|field| device.has(field)) {
        errs.invalid(
            path,
            Value::Null,
            "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
        );
    }
    check_binding(errs, path, device);
    check_mappings(errs, &path.child("nodeAllocatableResourceMappings"), device);
}

fn check_counters(errs: &mut Errors, path: &Path<'_>, counters: &Value) {
    let count = counters.entries("").count();
    if count == 0 {
        return errs.required(path, "");
    }
    if count > MAX_COUNTERS {
        return errs.push(FieldError::too_many(path, count, MAX_COUNTERS));
    }
    for (name, _) in counters.entries("") {
        errs.each(path, name, names::dns1123_label(name));
    }
}

/// A key as paths show it: one that is too long is cut in the middle.
fn shortened(key: &str) -> std::borrow::Cow<'_, str> {
    const DOTS: &str = "...";
    if key.len() <= MAX_KEY_BYTES {
        return key.into();
    }
    let left = MAX_KEY_BYTES - DOTS.len();
    let boundary = |at: usize| (0..=at).rev().find(|&i| key.is_char_boundary(i)).unwrap_or(0);
    let (head, tail) = (boundary(left.div_ceil(2)), boundary(key.len() - left / 2));
    format!("{}{DOTS}{}", &key[..head], &key[tail..]).into()
}

/// `model`, or `dra.example.com/model`.
pub fn check_qualified_name(errs: &mut Errors, path: &Path<'_>, name: &str) {
    let parts: Vec<&str> = name.split('/').collect();
    let (domain, id) = match parts[..] {
        [id] => (None, id),
        [domain, id] => (Some(domain), id),
        // Upstream takes what has more parts as it is.
        _ => return,
    };
    match domain {
        Some("") => errs.invalid(path, "", "the domain must not be empty"),
        Some(domain) => check_driver_name(errs, path, domain),
        None => {}
    }
    if domain.is_some() && id.is_empty() {
        return errs.invalid(path, "", "the name must not be empty");
    }
    check_length(errs, path, id, MAX_ID_BYTES);
    errs.each(path, id, names::c_identifier(id));
}

fn check_attribute(errs: &mut Errors, path: &Path<'_>, attribute: &Value) {
    let mut set = ["bool", "int", "string", "version"].iter().filter(|f| attribute.has(f)).count();
    let text = |errs: &mut Errors, path: &Path<'_>, text: &str, is_version: bool| {
        if is_version && !is_semantic_version(text) {
            errs.invalid(path, text, "must be a string compatible with semver.org spec 2.0.0");
        }
        check_length(errs, path, text, MAX_VALUE_BYTES);
    };
    for (field, is_version) in [("string", false), ("version", true)] {
        if let Some(value) = attribute.str_opt(field) {
            text(errs, &path.child(field), value, is_version);
        }
    }
    for field in LISTS.into_iter().filter(|field| attribute.has(field)) {
        set += 1;
        let list = path.child(field);
        if attribute.items(field).is_empty() {
            errs.invalid(&list, attribute.at(field).clone(), "must not be empty if specified");
        }
        for (i, value) in attribute.strings(field).into_iter().enumerate() {
            text(errs, &list.index(i), value, field == "versions");
        }
    }
    match set {
        0 => errs.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => errs.invalid_shown(path, attribute, ATTRIBUTE, "exactly one value must be specified"),
    }
}

/// `1.2.3-alpha.1+build.5` (semver.org, 2.0.0).
fn is_semantic_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
    let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let is_digits = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit());
    let number = |w: &str| is_digits(w) && (w == "0" || !w.starts_with('0'));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && pre.is_none_or(|pre| pre.split('.').all(|w| word(w) && (!is_digits(w) || number(w))))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// How much of a capacity that several share one may ask for.
fn check_policy(errs: &mut Errors, path: &Path<'_>, capacity: Quantity, policy: &Value) {
    let (values, range) = (policy.items("validValues"), policy.at("validRange"));
    if !values.is_empty() && !range.is_null() {
        return errs.forbidden(
            path,
            "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time",
        );
    }
    let which = match (values.is_empty(), range.is_null()) {
        (false, _) => "validValues",
        (true, false) => "validRange",
        (true, true) => return,
    };
    if !policy.has("default") {
        return errs.required(&path.child("default"), format!("required when {which} is defined"));
    }
    let default = quantity(policy.at("default"));
    let path = path.child(which);
    if which == "validRange" {
        return check_range(errs, &path, capacity, default, range);
    }
    let options: Vec<Quantity> = values.iter().map(quantity).collect();
    for (i, pair) in options.windows(2).enumerate() {
        if pair[0] > pair[1] {
            let detail = "values must be sorted in ascending order";
            errs.invalid(&path.index(i + 1), pair[1].to_string(), detail);
        }
    }
    let counted = check_count(errs, &path, values, MAX_OPTIONS);
    for (i, option) in options.iter().enumerate().filter(|_| counted) {
        if *option > capacity {
            let detail = format!("option is larger than capacity value: {capacity}");
            errs.invalid(&path.index(i), option.to_string(), detail);
        }
    }
    // Options are the same where their whole numbers are.
    for (i, option) in options.iter().enumerate().filter(|_| counted) {
        if options[..i].iter().any(|before| before.value() == option.value()) {
            errs.duplicate(&path.index(i), option.value().to_string());
        }
    }
    if !counted || !options.contains(&default) {
        errs.invalid(&path, default.to_string(), "default value is not valid according to the requestPolicy");
    }
}

fn check_range(errs: &mut Errors, path: &Path<'_>, capacity: Quantity, default: Quantity, range: &Value) {
    let part = |field: &str| range.has(field).then(|| quantity(range.at(field)));
    let (min_path, max_path, step_path) = (path.child("min"), path.child("max"), path.child("step"));
    let Some(min) = part("min") else {
        return errs.required(&min_path, "required when validRange is defined");
    };
    if min > capacity {
        errs.invalid(&min_path, min.to_string(), format!("min is larger than capacity value: {capacity}"));
    }
    if default < min {
        errs.invalid(&min_path, default.to_string(), format!("default is less than min: {min}"));
    }
    let max = part("max");
    if let Some(max) = max {
        if min > max {
            errs.invalid(&max_path, min.to_string(), format!("min is larger than max: {max}"));
        }
        if max > capacity {
            let detail = format!("max is larger than capacity value: {capacity}");
            errs.invalid(&max_path, max.to_string(), detail);
        }
        if default > max {
            errs.invalid(&max_path, default.to_string(), format!("default is more than max: {max}"));
        }
    }
    let Some(step) = part("step") else { return };
    let one = min + step;
    if one > capacity {
        let detail = format!("one step {one} is larger than capacity value: {capacity}");
        errs.invalid(&step_path, step.to_string(), detail);
    }
    for value in [Some(default), max].into_iter().flatten() {
        // A step of nothing divides nothing.
        if (value.value() - min.value()).checked_rem(step.value()) != Some(0) {
            let detail = format!("value is not a multiple of a given step ({step}) from ({min})");
            errs.invalid(&step_path, value.to_string(), detail);
        }
    }
}

/// What of a node's own resources a device takes along.
fn check_mappings(errs: &mut Errors, path: &Path<'_>, device: &Value) {
    for (name, mapping) in device.entries("nodeAllocatableResourceMappings") {
        let at = path.key(name);
        if name.contains('/') && !name.contains("kubernetes.io/") {
            errs.invalid(&at, name, "must be a node allocatable resource name");
        }
        if !mapping.has("allocationMultiplier") && !mapping.has("capacityKey") {
            errs.invalid(&at, "", "at least one of allocationMultiplier or capacityKey must be set");
            continue;
        }
        if mapping.has("allocationMultiplier") {
            let multiplier = quantity(mapping.at("allocationMultiplier"));
            if multiplier.signum() <= 0 {
                let shown = multiplier.to_string();
                errs.invalid(&at.child("allocationMultiplier"), shown, "must be positive");
            }
        }
        if let Some(key) = mapping.str_opt("capacityKey") {
            let p = at.child("capacityKey");
            if key.is_empty() {
                errs.invalid(&p, "", "capacityKey must not be an empty string");
            } else if device.at("capacity").get(key).is_none() {
                errs.not_found(&p, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::is_semantic_version;
    use crate::strategy::testing::check_create;

    const GROUP: &str = "resource.k8s.io";

    fn slice(device: Value) -> Value {
        json!({"metadata": {"name": "s"}, "spec": {
            "driver": "d.example.com", "nodeName": "n", "pool": {"name": "p", "resourceSliceCount": 1},
            "devices": [device],
        }})
    }

    #[test]
    fn devices() {
        let cases: &[(Value, &[&str])] = &[
            (
                json!({"name": "d", "attributes": {"model": {"string": "x"}}, "capacity": {"a.b/mem": {"value": "1Gi"}}}),
                &[],
            ),
            (
                json!({"name": "d", "attributes": {"model": {}, "v": {"version": "1.2"}}}),
                &[
                    "spec.devices[0].attributes[model]: Invalid value: \"\": exactly one value must be specified",
                    "spec.devices[0].attributes[v].version: Invalid value: \"1.2\": must be a string compatible with semver.org spec 2.0.0",
                ],
            ),
            (
                json!({"name": "d", "capacity": {"mem": {"value": "4", "requestPolicy": {"default": "1", "validValues": ["1"]}}}}),
                &[
                    "spec.devices[0].capacity[mem].requestPolicy: Forbidden: allowMultipleAllocations must be true",
                ],
            ),
            (
                json!({"name": "d", "allowMultipleAllocations": true, "capacity": {"mem": {"value": "4", "requestPolicy": {"default": "3", "validRange": {"min": "1", "max": "5", "step": "4"}}}}}),
                &[
                    "spec.devices[0].capacity[mem].requestPolicy.validRange.max: Invalid value: \"5\": max is larger than capacity value: 4",
                    "spec.devices[0].capacity[mem].requestPolicy.validRange.step: Invalid value: \"4\": one step 5 is larger than capacity value: 4",
                    "spec.devices[0].capacity[mem].requestPolicy.validRange.step: Invalid value: \"3\": value is not a multiple of a given step (4) from (1)",
                ],
            ),
            (
                json!({"name": "d", "taints": [{"key": "k", "effect": "X"}], "bindingConditions": ["a"], "allNodes": true}),
                &[
                    "spec.devices[0].taints[0].effect: Unsupported value: \"X\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
                    "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
                    "spec.devices[0].bindingFailureConditions: Invalid value: null: bindingFailureConditions are required to use bindingConditions",
                ],
            ),
            (
                json!({"name": "d", "consumesCounters": [{"counterSet": "c", "counters": {}}, {"counterSet": "c", "counters": {"x": {"value": "1"}}}]}),
                &[
                    "spec.devices[0].consumesCounters[0].counters: Required value",
                    "spec.devices[0].consumesCounters[1]: Duplicate value: \"c\"",
                ],
            ),
        ];
        for (device, expect) in cases {
            check_create(GROUP, "ResourceSlice", &slice(device.clone()), &[(json!({}), expect)]);
        }
    }

    #[test]
    fn semantic_versions() {
        for (text, expect) in [
            ("1.2.3", true),
            ("0.0.0-alpha.1+b.01", true),
            ("1.0.0--x", true),
            ("1.2", false),
            ("01.2.3", false),
            ("1.2.3-01", false),
            ("1.2.3-", false),
            ("1.2.3+", false),
            ("v1.2.3", false),
        ] {
            assert_eq!(is_semantic_version(text), expect, "{text}");
        }
    }
}
