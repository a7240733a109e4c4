//! A service's own addresses: their families, and how they may change.

use std::collections::HashSet;

use serde_json::Value;
use yare_schema::field::Path;

use super::is_headless;
use crate::{
    check::{Check, Errors},
    net,
    view::View,
};

/// Errors in `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`.
pub fn check(errs: &mut Errors, path: &Path<'_>, spec: &Value, old: &Value, strict: bool) {
    let ips = spec.strings("clusterIPs");
    let shown = || spec.at("clusterIPs").clone();
    let ips_path = path.child("clusterIPs");
    match (spec.str_at("clusterIP"), ips.first()) {
        ("", None) => {}
        ("", Some(_)) => {
            errs.invalid(&ips_path, shown(), "must be empty when `clusterIP` is not specified");
        }
        (_, None) => errs.required(&ips_path, ""),
        (ip, Some(first)) => {
            if ip != *first {
                errs.invalid(&ips_path, shown(), "first value must match `clusterIP`");
            }
        }
    }
    let families = spec.strings("ipFamilies");
    let families_path = path.child("ipFamilies");
    let mut seen = HashSet::new();
    for (i, family) in families.iter().enumerate() {
        errs.one_of(&families_path.index(i), family, &["IPv4", "IPv6"]);
        if !seen.insert(*family) {
            errs.duplicate(&families_path.index(i), *family);
        }
    }
    if let Some(policy) = spec.str_opt("ipFamilyPolicy") {
        let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
        errs.one_of(&path.child("ipFamilyPolicy"), policy, &policies);
    }
    let before = errs.len();
    let existing = old.strings("clusterIPs");
    for (i, ip) in ips.iter().enumerate() {
        if i == 0 && *ip == "None" {
            if ips.len() > 1 {
                errs.invalid(&ips_path, shown(), "'None' must be the first and only value");
            }
            continue;
        }
        net::check_old_ip(errs, &ips_path.index(i), ip, &existing, strict);
    }
    let wrong = errs.len() > before;
    if ips.len() > 2 {
        errs.invalid(&ips_path, shown(), "may only hold up to 2 values");
    }
    if wrong {
        return;
    }
    let both = ips.iter().any(|ip| net::is_ipv4(ip)) && ips.iter().any(|ip| net::is_ipv6(ip));
    if ips.len() > 1 && !both {
        errs.invalid(&ips_path, shown(), "may specify no more than one IP for each IP family");
    }
    if ips == ["None"] {
        return;
    }
    for (i, (ip, family)) in ips.iter().zip(&families).enumerate() {
        let fits = match *family {
            "IPv4" => !net::is_ipv6(ip),
            "IPv6" => net::is_ipv6(ip),
            _ => true,
        };
        if !fits {
            errs.invalid(
                &ips_path.index(i),
                *ip,
                format!("expected an {family} value as indicated by `ipFamilies[{i}]`"),
            );
        }
    }
}

/// The first address and family stay; a second may come and, on request, go.
pub fn check_update(errs: &mut Errors, new: &Value, old: &Value) {
    if [new, old].iter().any(|s| s.str_at("spec.type") == "ExternalName") {
        return;
    }
    let (headless, was_headless) = (is_headless(new), is_headless(old));
    if !(headless && was_headless) {
        check_list(errs, new, old, "clusterIPs", "clusterIP");
    }
    if !headless && !was_headless {
        check_list(errs, new, old, "ipFamilies", "ipFamily");
    }
}

fn check_list(errs: &mut Errors, new: &Value, old: &Value, field: &str, singular: &str) {
    let path = Path::new("spec");
    let list = path.child(field);
    let (now, before) = (new.at("spec").strings(field), old.at("spec").strings(field));
    let shown = || new.at("spec").at(field).clone();
    const CHANGED: &str = "may not change once set";
    if now.len() == before.len() {
        for (i, _) in before.iter().zip(&now).enumerate().filter(|(_, (b, n))| b != n) {
            // Upstream reports every family at the first.
            let i = if field == "ipFamilies" { 0 } else { i };
            errs.invalid(&list.index(i), shown(), CHANGED);
        }
        return;
    }
    if before.len() > now.len() && new.strings("spec.clusterIPs").is_empty() {
        errs.invalid(&list.index(0), shown(), format!("primary {singular} can not be unset"));
    }
    if let (Some(first), Some(was)) = (now.first(), before.first())
        && first != was
    {
        // Upstream shows the addresses for the families too.
        errs.invalid(&list.index(0), new.at("spec.clusterIPs").clone(), CHANGED);
    }
    let policy = new.at("spec.ipFamilyPolicy");
    if before.len() > now.len() && now.len() == 1 && policy != "SingleStack" {
        errs.invalid(
            &path.child("ipFamilyPolicy"),
            policy.clone(),
            format!("must be set to 'SingleStack' when releasing the secondary {singular}"),
        );
    }
}
