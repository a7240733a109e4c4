//! `CertificateSigningRequest`: who asks is on record, somebody approves (`approval`), a signer signs
//! (`status`).

use std::collections::HashSet;

use serde_json::{Value, json};
use yare_schema::field::{FieldError, Path};

use super::pem;
use crate::{
    check::{Check, Errors, check_signer_name},
    meta,
    strategy::{Context, Strategy},
    view::{View, ViewMut, same},
};

pub struct CertificateSigningRequest;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const MIN_EXPIRATION_S: i64 = 600;
/// Conditions that are true or absent, and that stay.
const LASTING: [&str; 3] = ["Approved", "Denied", "Failed"];
/// Conditions that only `approval` may set.
const VERDICTS: [&str; 2] = ["Approved", "Denied"];
const CONDITIONS: &str = "status.conditions";

/// What an update may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum May {
    Nothing,
    Certify,
    Approve,
}

impl Strategy for CertificateSigningRequest {
    fn prepare_for_create(&self, request: &mut Value, ctx: &Context<'_>) {
        // Nobody asks in another's name. UID, groups and extra of the user are the server's to add.
        for field in ["uid", "groups", "extra"] {
            request.remove(&format!("spec.{field}"));
        }
        request.set("spec.username", ctx.user);
        request.remove("status");
    }

    fn prepare_for_update(&self, new: &mut Value, old: &Value, _ctx: &Context<'_>) {
        meta::prepare_for_update(new, old, true, false);
        new.copy_from(old, "spec");
    }

    fn prepare_for_status_update(&self, new: &mut Value, old: &Value, ctx: &Context<'_>) {
        meta::prepare_for_status_update(new, old);
        keep_verdicts(new, old);
        stamp(new, old, ctx.now);
    }

    fn prepare_for_subresource_update(
        &self,
        subresource: &str,
        new: &mut Value,
        old: &Value,
        ctx: &Context<'_>,
    ) {
        match subresource {
            "status" => self.prepare_for_status_update(new, old, ctx),
            "approval" => {
                meta::prepare_for_status_update(new, old);
                stamp(new, old, ctx.now);
                let conditions = new.at(CONDITIONS).clone();
                new.copy_from(old, "status");
                match conditions {
                    Value::Null => drop(new.remove(CONDITIONS)),
                    conditions => new.set(CONDITIONS, conditions),
                }
            }
            _ => self.prepare_for_update(new, old, ctx),
        }
    }

    fn validate(&self, request: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        check_spec(&mut errs, &Path::new("spec"), request.at("spec"));
        check_conditions(&mut errs, request, &Value::Null);
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_update(new, old, May::Nothing)
    }

    fn validate_status_update(&self, new: &Value, old: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        check_update(new, old, May::Certify)
    }

    fn validate_subresource_update(
        &self,
        subresource: &str,
        new: &Value,
        old: &Value,
        _ctx: &Context<'_>,
    ) -> Vec<FieldError> {
        let may = match subresource {
            "status" => May::Certify,
            "approval" => May::Approve,
            _ => May::Nothing,
        };
        check_update(new, old, may)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate_name(&self, _name: &str) -> Vec<String> {
        Vec::new()
    }
}

fn of_type<'a>(request: &'a Value, kind: &str) -> Vec<&'a Value> {
    request.items(CONDITIONS).iter().filter(|c| c.str_at("type") == kind).collect()
}

/// An update of the status takes the verdicts as they were, where it has as many of them.
fn keep_verdicts(new: &mut Value, old: &Value) {
    for kind in VERDICTS {
        let before = of_type(old, kind);
        if before.len() == of_type(new, kind).len() {
            let now = new.items_mut(CONDITIONS).iter_mut().filter(|c| c.str_at("type") == kind);
            for (now, before) in now.zip(before) {
                *now = before.clone();
            }
        }
    }
}

fn stamp(new: &mut Value, old: &Value, now: &str) {
    for condition in new.items_mut(CONDITIONS) {
        condition.default_absent("lastUpdateTime", now);
        let same = old.items(CONDITIONS).iter().find(|c| {
            c.at("type") == condition.at("type")
                && c.at("status") == condition.at("status")
                && c.has("lastTransitionTime")
        });
        let since = same.map_or_else(|| json!(now), |c| c.at("lastTransitionTime").clone());
        condition.default_absent("lastTransitionTime", since);
    }
}

fn check_spec(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let request = spec.str_at("request");
    if let Err(e) = pem::check_request(request) {
        errs.invalid(&path.child("request"), request, e);
    }
    let (p, usages) = (path.child("usages"), spec.strings("usages"));
    if usages.is_empty() {
        errs.required(&p, "");
    }
    for (i, usage) in usages.iter().enumerate() {
        errs.one_of(&p.index(i), usage, USAGES);
    }
    for (i, usage) in crate::check::repeated(&usages) {
        errs.duplicate(&p.index(i), usage);
    }
    let (p, signer) = (path.child("signerName"), spec.str_at("signerName"));
    if signer == LEGACY_SIGNER {
        errs.invalid(&p, signer, "the legacy signerName is not allowed via this API version");
    } else {
        check_signer_name(errs, &p, signer);
    }
    if let Some(seconds) = spec.int_opt("expirationSeconds").filter(|s| *s < MIN_EXPIRATION_S) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.invalid(&path.child("expirationSeconds"), seconds, detail);
    }
}

/// What `old` breaks already may stay broken.
fn check_conditions(errs: &mut Errors, request: &Value, old: &Value) {
    let list = Path::new(CONDITIONS);
    let kinds = |r: &Value| -> Vec<String> {
        r.items(CONDITIONS).iter().map(|c| c.str_at("type").to_owned()).collect()
    };
    let before = kinds(old);
    let had_repeats = before.iter().collect::<HashSet<_>>().len() < before.len();
    let had_both = VERDICTS.iter().all(|kind| before.iter().any(|b| b == kind));
    let had_empty = before.iter().any(String::is_empty);
    let mut seen: HashSet<&str> = HashSet::new();
    for (i, condition) in request.items(CONDITIONS).iter().enumerate() {
        let path = list.index(i);
        let (kind, status) = (condition.str_at("type"), condition.str_at("status"));
        if kind.is_empty() && !had_empty {
            errs.required(&path.child("type"), "");
        }
        let allowed: &[&str] =
            if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        errs.required_one_of(&path.child("status"), status, allowed);
        let other = VERDICTS.iter().find(|v| VERDICTS.contains(&kind) && **v != kind);
        if other.is_some_and(|other| seen.contains(other)) && !had_both {
            errs.invalid(&list, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if seen.contains(&kind) && !had_repeats {
            errs.duplicate(&path.child("type"), kind);
        }
        seen.insert(kind);
    }
}

fn check_update(new: &Value, old: &Value, may: May) -> Errors {
    let mut errs = Errors::new();
    check_conditions(&mut errs, new, old);
    let conditions = Path::new(CONDITIONS);
    for kind in LASTING {
        if of_type(new, kind).len() < of_type(old, kind).len() {
            errs.forbidden(&conditions, format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    for kind in VERDICTS.iter().filter(|_| may != May::Approve) {
        let (now, before) = (of_type(new, kind), of_type(old, kind));
        if now.len() > before.len() {
            errs.forbidden(&conditions, format!("updates may not add a condition of type {kind:?}"));
        } else if now.len() == before.len() && now.iter().zip(&before).any(|(n, b)| !same(n, b)) {
            errs.forbidden(&conditions, format!("updates may not modify a condition of type {kind:?}"));
        }
    }
    let certificate = Path::new("status.certificate");
    let (now, before) = (new.str_at("status.certificate"), old.str_at("status.certificate"));
    if now != before {
        if let Err(e) = pem::check_certificates(now) {
            errs.invalid(&certificate, "<certificate data>", e);
        }
        if may != May::Certify {
            errs.forbidden(&certificate, "updates may not set certificate content");
        } else if !before.is_empty() {
            errs.forbidden(&certificate, "updates may not modify existing certificate content");
        }
    }
    errs
}
