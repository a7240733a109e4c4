//! `IPAddress` and `ServiceCIDR`: which addresses Services have, and where they come from.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use crate::{
    check::{Check, Errors},
    meta,
    meta::IMMUTABLE,
    names, net,
    shown::{PARENT, SERVICE_RANGES},
    strategy::{Context, Strategy},
    view::{View, ViewMut},
};

pub(super) struct IpAddress;

impl Strategy for IpAddress {
    fn validate(&self, address: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec.parentRef");
        let parent = address.at("spec.parentRef");
        if parent.is_null() {
            errs.required(&path, "");
            return errs;
        }
        let group = parent.str_at("group");
        if !group.is_empty() {
            errs.each(&path.child("group"), group, names::dns1123_subdomain(group));
        }
        for field in ["resource", "name"] {
            errs.name(&path.child(field), parent.str_at(field), names::path_segment);
        }
        let namespace = parent.str_at("namespace");
        if !namespace.is_empty() {
            errs.each(&path.child("namespace"), namespace, names::path_segment(namespace));
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        let (now, before) = (new.at("spec.parentRef"), old.at("spec.parentRef"));
        errs.immutable_shown(&Path::new("spec.parentRef"), now, before, PARENT);
        errs
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        let mut errs = Errors::new();
        net::check_ip(&mut errs, &Path::ROOT, name);
        errs.into_iter().map(|e| e.detail).collect()
    }
}

pub(super) struct ServiceCidr;

/// While the gate is off, main writes may say what they like about the status, as they could long ago.
const WIPING: &str = "ServiceCIDRStatusFieldWiping";

impl Strategy for ServiceCidr {
    fn prepare_for_create(&self, range: &mut Value, ctx: &Context<'_>) {
        if ctx.gates.is_on(WIPING) {
            range.remove("status");
        }
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, ctx.gates.is_on(WIPING), false);
    }

    fn validate(&self, range: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_cidrs(&mut errs, &Path::new("spec.cidrs"), range);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let path = Path::new("spec.cidrs");
        let (now, before) = (new.strings("spec.cidrs"), old.strings("spec.cidrs"));
        let second_family = before.len() == 1 && now.len() == 2;
        if now.len() != before.len() && !second_family {
            errs.invalid(&path, now, IMMUTABLE);
            return errs;
        }
        for (i, (now, before)) in now.iter().zip(&before).enumerate() {
            if now != before {
                errs.invalid(&path.index(i), *now, IMMUTABLE);
            }
        }
        if second_family {
            check_cidrs(&mut errs, &path, new);
        }
        errs
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }
}

fn check_cidrs(errs: &mut Errors, path: &Path<'_>, range: &Value) {
    let cidrs = range.strings("spec.cidrs");
    if cidrs.is_empty() {
        return errs.required(path, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        return errs.invalid_shown(path, range.at("spec"), SERVICE_RANGES, "may only hold up to 2 values");
    }
    for (i, cidr) in cidrs.iter().enumerate() {
        net::check_cidr(errs, &path.index(i), cidr);
    }
    let families: Vec<bool> =
        cidrs.iter().filter_map(|c| net::parse_cidr_sloppy(c)).map(|(ip, _)| ip.is_ipv4()).collect();
    if let [first, second] = families[..]
        && first == second
    {
        errs.invalid(
            path,
            cidrs,
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
}
