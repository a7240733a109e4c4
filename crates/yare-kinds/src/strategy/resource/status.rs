//! What a claim was given, and what drivers say of it: `status` of a `ResourceClaim`.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    goprint,
};

use super::{
    check_pool_name,
    claims::{at_most, check_configuration, check_reference, check_references},
};
use crate::{
    check::{Check, Errors},
    meta, names, net,
    pod::{affinity::check_node_selector, volumes::check_driver_name},
    strategy::rules::check_length,
    view::{View, ViewMut, same},
};

const MAX_RESULTS: usize = 32;
/// Those of the class and those of the claim.
const MAX_CONFIGS: usize = 64;
const MAX_RESERVED_FOR: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_DATA_BYTES: usize = 10 * 1024;
const MAX_INTERFACE_BYTES: usize = 256;
const MAX_HARDWARE_ADDRESS_BYTES: usize = 128;
const MAX_IPS: usize = 16;
const MAX_BINDING_CONDITIONS: usize = 4;
const RESULTS: &str = "status.allocation.devices.results";

/// What names one device, or one share of it.
type DeviceId<'a> = (&'a str, &'a str, &'a str, &'a str);

fn id(of: &Value) -> DeviceId<'_> {
    (of.str_at("driver"), of.str_at("pool"), of.str_at("device"), of.str_at("shareID"))
}

/// What is said of devices goes with them.
pub fn drop_deallocated(new: &mut Value, old: &Value) {
    let kept: HashSet<DeviceId<'_>> = new.items(RESULTS).iter().map(id).collect();
    let gone: HashSet<DeviceId<'_>> =
        old.items(RESULTS).iter().map(id).filter(|device| !kept.contains(device)).collect();
    if gone.is_empty() {
        return;
    }
    let devices: Vec<Value> =
        new.items("status.devices").iter().filter(|d| !gone.contains(&id(d))).cloned().collect();
    if devices.is_empty() {
        new.remove("status.devices");
    } else {
        new.set("status.devices", devices);
    }
}

/// Errors of an update of a claim's status.
pub fn check_update(errs: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("status");
    let status = new.at("status");
    check_consumers(errs, &path.child("reservedFor"), status.items("reservedFor"));
    check_devices(errs, &path.child("devices"), status);
    let list = path.child("reservedFor");
    let reserved = status.items("reservedFor");
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
    match (status.has("allocation"), old.has("status.allocation")) {
        (true, true) => errs.immutable(&p, status.at("allocation"), old.at("status.allocation")),
        (true, false) => {
            check_allocation(errs, &p, status.at("allocation"), new.items("spec.devices.requests"));
        }
        (false, _) => {}
    }
}

fn check_consumers(errs: &mut Errors, path: &Path<'_>, consumers: &[Value]) {
    at_most(errs, path, consumers, MAX_RESERVED_FOR);
    if consumers.len() > MAX_RESERVED_FOR {
        return;
    }
    for (i, consumer) in consumers.iter().enumerate() {
        let p = path.index(i);
        for field in ["resource", "name", "uid"] {
            errs.non_empty(&p.child(field), consumer.str_at(field));
        }
    }
    let mut uids = HashSet::new();
    for (i, consumer) in consumers.iter().enumerate() {
        if !uids.insert(consumer.str_at("uid")) {
            errs.duplicate(&path.index(i), consumer.str_at("uid"));
        }
    }
}

fn check_allocation(errs: &mut Errors, path: &Path<'_>, allocation: &Value, requests: &[Value]) {
    let devices = path.child("devices");
    let (list, results) = (devices.child("results"), allocation.items("devices.results"));
    at_most(errs, &list, results, MAX_RESULTS);
    for (i, result) in results.iter().enumerate().filter(|_| results.len() <= MAX_RESULTS) {
        let p = list.index(i);
        check_reference(errs, &p.child("request"), result.str_at("request"), requests);
        check_device(errs, &p, result);
        check_binding(errs, &p, result);
        check_share(errs, &p.child("shareID"), result);
    }
    let (list, configs) = (devices.child("config"), allocation.items("devices.config"));
    at_most(errs, &list, configs, MAX_CONFIGS);
    for (i, config) in configs.iter().enumerate().filter(|_| configs.len() <= MAX_CONFIGS) {
        let p = list.index(i);
        errs.required_one_of(&p.child("source"), config.str_at("source"), &["FromClaim", "FromClass"]);
        check_references(errs, &p.child("requests"), config, requests);
        check_configuration(errs, &p, config, None);
    }
    if allocation.has("nodeSelector") {
        check_node_selector(errs, &path.child("nodeSelector"), allocation.at("nodeSelector"));
    }
}

fn check_device(errs: &mut Errors, path: &Path<'_>, of: &Value) {
    check_driver_name(errs, &path.child("driver"), of.str_at("driver"));
    check_pool_name(errs, &path.child("pool"), of.str_at("pool"));
    let device = of.str_at("device");
    errs.each(&path.child("device"), device, names::dns1123_label(device));
}

/// The UID of a share, in its one normal form.
fn check_share(errs: &mut Errors, path: &Path<'_>, of: &Value) {
    let Some(uid) = of.str_opt("shareID") else { return };
    if let Err(why) = read_uuid(uid) {
        errs.invalid(path, uid, format!("error validating uid: {why}"));
    } else if uid.len() != 36 || uid.bytes().any(|b| b.is_ascii_uppercase()) {
        errs.invalid(
            path,
            uid,
            "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase hexadecimal characters",
        );
    }
}

/// Whether `text` is a UUID in one of the forms that upstream's reader takes.
fn read_uuid(text: &str) -> Result<(), String> {
    const FORMAT: &str = "invalid UUID format";
    let hex = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit());
    let plain = match text.len() {
        32 => return if hex(text) { Ok(()) } else { Err(FORMAT.into()) },
        36 => text,
        38 => match text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(plain) => plain,
            None => return Err("invalid bracketed UUID format".into()),
        },
        45 => match text.split_at_checked(9) {
            Some((urn, plain)) if urn.eq_ignore_ascii_case("urn:uuid:") => plain,
            Some((urn, _)) => return Err(format!("invalid urn prefix: {}", goprint::quote(urn))),
            None => return Err(FORMAT.into()),
        },
        length => return Err(format!("invalid UUID length: {length}")),
    };
    let is_good = |(i, b): (usize, u8)| {
        if matches!(i, 8 | 13 | 18 | 23) { b == b'-' } else { b.is_ascii_hexdigit() }
    };
    if plain.bytes().enumerate().all(is_good) { Ok(()) } else { Err(FORMAT.into()) }
}

/// What drivers say of devices that the claim has.
fn check_devices(errs: &mut Errors, path: &Path<'_>, status: &Value) {
    let devices = status.items("devices");
    let allocated: HashSet<DeviceId<'_>> =
        status.items("allocation.devices.results").iter().map(id).collect();
    // In upstream's type and order.
    let shown = |(driver, pool, device, share): DeviceId<'_>| {
        let text = |text: &str| Value::from(text).to_string();
        format!(
            "{{\"Driver\":{},\"Pool\":{},\"Device\":{},\"ShareID\":{}}}",
            text(driver),
            text(pool),
            text(device),
            text(share)
        )
    };
    for (i, device) in devices.iter().enumerate() {
        let p = path.index(i);
        check_device(errs, &p, device);
        check_share(errs, &p.child("shareID"), device);
        if !allocated.contains(&id(device)) {
            let error = FieldError::invalid(&p, Value::Null, "must be an allocated device in the claim");
            errs.push(error.showing(shown(id(device))));
        }
        let (list, conditions) = (p.child("conditions"), device.items("conditions"));
        at_most(errs, &list, conditions, MAX_CONDITIONS);
        errs.extend(meta::validate_conditions(conditions, &list));
        let data = device.at("data");
        if device.get("data").is_some_and(|data| !data.is_null()) {
            check_data(errs, &p.child("data"), data);
        }
        check_network(errs, &p.child("networkData"), device.at("networkData"));
    }
    let mut seen = HashSet::new();
    for (i, device) in devices.iter().enumerate() {
        if !seen.insert(id(device)) {
            errs.push(FieldError::duplicate(&path.index(i), Value::Null).showing(shown(id(device))));
        }
    }
}

fn check_data(errs: &mut Errors, path: &Path<'_>, data: &Value) {
    if data.to_string().len() > MAX_DATA_BYTES {
        errs.push(FieldError::too_long(path, MAX_DATA_BYTES));
    } else if !data.is_object() {
        errs.invalid(path, "<value omitted>", "must be a valid JSON object");
    }
}

fn check_network(errs: &mut Errors, path: &Path<'_>, data: &Value) {
    check_length(errs, &path.child("interfaceName"), data.str_at("interfaceName"), MAX_INTERFACE_BYTES);
    let hardware = data.str_at("hardwareAddress");
    check_length(errs, &path.child("hardwareAddress"), hardware, MAX_HARDWARE_ADDRESS_BYTES);
    let (list, ips) = (path.child("ips"), data.strings("ips"));
    if ips.len() > MAX_IPS {
        return errs.push(FieldError::too_many(&list, ips.len(), MAX_IPS));
    }
    for (i, ip) in ips.iter().enumerate() {
        net::check_interface_address(errs, &list.index(i), ip);
    }
    for (i, ip) in crate::check::repeated(&ips) {
        errs.duplicate(&list.index(i), ip);
    }
}

/// Conditions that must come true, or must not, before a pod is bound to a device.
pub fn check_binding(errs: &mut Errors, path: &Path<'_>, device: &Value) {
    let (good, bad) = (device.strings("bindingConditions"), device.strings("bindingFailureConditions"));
    let (good_path, bad_path) = (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    for (list, conditions) in [(&good_path, &good), (&bad_path, &bad)] {
        if conditions.len() > MAX_BINDING_CONDITIONS {
            errs.push(FieldError::too_many(list, conditions.len(), MAX_BINDING_CONDITIONS));
            continue;
        }
        for (i, condition) in conditions.iter().enumerate() {
            errs.each(&list.index(i), *condition, names::qualified_name(condition));
        }
    }
    for (i, condition) in good.iter().enumerate() {
        if good[..i].contains(condition) {
            errs.duplicate(&good_path.index(i), *condition);
        }
    }
    for (i, condition) in bad.iter().enumerate() {
        if bad[..i].contains(condition) {
            errs.duplicate(&bad_path.index(i), *condition);
        }
        if good.contains(condition) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            errs.invalid(&bad_path.index(i), *condition, detail);
        }
    }
    if good.is_empty() && !bad.is_empty() {
        let detail = "bindingConditions are required to use bindingFailureConditions";
        errs.invalid(&good_path, device.at("bindingConditions").clone(), detail);
    }
    if bad.is_empty() && !good.is_empty() {
        let detail = "bindingFailureConditions are required to use bindingConditions";
        errs.invalid(&bad_path, device.at("bindingFailureConditions").clone(), detail);
    }
}
