//! Which address families a service has, given those of the cluster.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::addresses;
use crate::{
    check::{Check, Errors},
    net,
    view::{View, ViewMut, same},
};

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

/// Fills in the policy and the families of a service that is created (then `old` is null) or changed. The cluster's
/// families are `known`, its first first.
pub fn assign(service: &mut Value, old: &Value, known: &[&str], strict: bool) -> Result<(), Vec<FieldError>> {
    if service.str_at("spec.type") == "ExternalName" || prefers_as_before(service, old) {
        return Ok(());
    }
    let mut errs = Errors::new();
    let path = Path::new("spec");
    let free = service.str_at("spec.clusterIP") == "None" && !service.is_set("spec.selector");
    if !service.has("spec.ipFamilyPolicy") {
        match old.str_opt("spec.ipFamilyPolicy") {
            Some(policy) => service.set("spec.ipFamilyPolicy", policy),
            None => service.set("spec.ipFamilyPolicy", if free { REQUIRE } else { SINGLE }),
        }
    }
    addresses::check(&mut errs, &path, service.at("spec"), old.at("spec"), strict);
    if !errs.is_empty() {
        return Err(errs);
    }
    let policy = service.str_at("spec.ipFamilyPolicy").to_owned();
    let policy_path = path.child("ipFamilyPolicy");
    if !old.is_null() {
        release(&mut errs, &policy_path, service, old, &policy);
    }
    if policy == SINGLE {
        for (list, what) in [("spec.clusterIPs", "cluster IPs"), ("spec.ipFamilies", "IP families")] {
            if service.items(list).len() == 2 {
                errs.invalid(
                    &policy_path,
                    policy.as_str(),
                    format!("must be '{REQUIRE}' or '{PREFER}' when multiple {what} are specified"),
                );
            }
        }
    }
    let mut families: Vec<String> =
        service.strings("spec.ipFamilies").into_iter().map(str::to_owned).collect();
    infer(&mut errs, &path, service, known, &mut families);
    if !errs.is_empty() {
        return Err(errs);
    }
    let first = known.first().copied().unwrap_or("IPv4");
    if !free {
        if policy == REQUIRE && known.len() < 2 {
            errs.invalid(
                &policy_path,
                policy.as_str(),
                "this cluster is not configured for dual-stack services",
            );
        }
        for (i, family) in families.iter().enumerate() {
            if !known.contains(&family.as_str()) {
                errs.invalid(
                    &path.child("ipFamilies").index(i),
                    family.as_str(),
                    "not configured on this cluster",
                );
            }
        }
        if !errs.is_empty() {
            return Err(errs);
        }
    }
    if families.is_empty() {
        families.push(first.to_owned());
    }
    if families.len() == 1 && policy != SINGLE && (free || known.len() == 2) {
        families.push(other(&families[0]).to_owned());
    }
    service.set("spec.ipFamilies", families);
    Ok(())
}

/// A service that would take two families gets and loses none by a change of the cluster.
pub fn prefers_as_before(service: &Value, old: &Value) -> bool {
    let prefers = |policy: &Value| policy == PREFER;
    !old.is_null()
        && prefers(service.at("spec.ipFamilyPolicy"))
        && (prefers(old.at("spec.ipFamilyPolicy")) || !old.is_set("spec.ipFamilyPolicy"))
        && service.at("spec.type") == old.at("spec.type")
        && same_addresses(service, old)
        && same(service.at("spec.ipFamilies"), old.at("spec.ipFamilies"))
}

fn same_addresses(service: &Value, old: &Value) -> bool {
    ["spec.clusterIP", "spec.clusterIPs"].iter().all(|at| same(service.at(at), old.at(at)))
}

/// The policy says whether the second address goes.
fn release(errs: &mut Errors, path: &Path<'_>, service: &mut Value, old: &Value, policy: &str) {
    let first = |service: &mut Value, list: &str| {
        if let [first, _, ..] = service.items(list) {
            let first = first.clone();
            service.set(list, vec![first]);
        }
    };
    if policy == SINGLE {
        if same_addresses(service, old) {
            first(service, "spec.clusterIPs");
        }
        if same(service.at("spec.ipFamilies"), old.at("spec.ipFamilies")) {
            first(service, "spec.ipFamilies");
        }
        return;
    }
    for (list, what) in
        [("spec.clusterIPs", "secondary cluster IP"), ("spec.ipFamilies", "secondary IP family")]
    {
        let (now, before) = (service.items(list), old.items(list));
        if !now.is_empty() && now.len() < before.len() {
            errs.invalid(path, policy, format!("must be '{SINGLE}' to release the {what}"));
        }
    }
}

/// Families that only the addresses tell.
fn infer(errs: &mut Errors, path: &Path<'_>, service: &Value, known: &[&str], families: &mut Vec<String>) {
    let ips = service.strings("spec.clusterIPs");
    for (i, ip) in ips.iter().enumerate().take_while(|(_, ip)| **ip != "None") {
        if i < families.len() {
            continue;
        }
        let family = if net::is_ipv6(ip) { "IPv6" } else { "IPv4" };
        if known.contains(&family) {
            families.push(family.to_owned());
        } else {
            errs.invalid(
                &path.child("clusterIPs").index(i),
                service.at("spec.clusterIPs").clone(),
                format!("{family} is not configured on this cluster"),
            );
        }
    }
}
