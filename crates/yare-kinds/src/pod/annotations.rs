//! Annotations that mean something for pods, most of them from before there were fields for it.

use serde_json::Value;
use yare_schema::{
    field::{FieldError, Path},
    goprint,
};

use super::{affinity, security::each_container, volumes::check_descending_path};
use crate::{
    check::{Check, Errors, annotation, go_json},
    view::View,
};

/// Marks what the API server shows of a pod that a node runs on its own.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
/// An AppArmor profile, by container.
pub const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// A seccomp profile of the whole pod.
pub const POD_SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
/// A seccomp profile, by container.
pub const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";

const TOLERATIONS: &str = "scheduler.alpha.kubernetes.io/tolerations";
const LOCAL: &str = "localhost/";

/// Errors in the annotations of a pod or template, which stand at `path`.
pub fn check(errs: &mut Errors, path: &Path<'_>, owner: &Value) {
    if let Some(value) = annotation(owner, MIRROR)
        && owner.str_at("spec.nodeName").is_empty()
    {
        errs.invalid(&path.key(MIRROR), value, "must set spec.nodeName if mirror pod annotation is set");
    }
    if let Some(text) = annotation(owner, TOLERATIONS).filter(|text| !text.is_empty()) {
        match go_json(text.as_bytes(), Value::is_array, "[]core.Toleration") {
            Err(why) => errs.invalid(path, TOLERATIONS, why),
            Ok(tolerations) => {
                affinity::check_tolerations(errs, &path.child(TOLERATIONS), tolerations.items(""));
            }
        }
    }
    if let Some(profile) = annotation(owner, POD_SECCOMP) {
        check_seccomp(errs, &path.child(POD_SECCOMP), profile);
    }
    let all = || {
        owner.entries("metadata.annotations").map(|(key, value)| (key, value.as_str().unwrap_or_default()))
    };
    for (key, profile) in all().filter(|(key, _)| key.starts_with(SECCOMP)) {
        check_seccomp(errs, &path.child(key), profile);
    }
    for (key, profile) in all() {
        if let Some(container) = key.strip_prefix(APP_ARMOR) {
            check_app_armor(errs, &path.key(key), owner, container, profile);
        }
    }
}

fn check_seccomp(errs: &mut Errors, path: &Path<'_>, profile: &str) {
    match profile {
        "runtime/default" | "docker/default" | "unconfined" => {}
        _ => match profile.strip_prefix(LOCAL) {
            Some(file) => check_descending_path(errs, path, file),
            None => errs.invalid(path, profile, "must be a valid seccomp profile"),
        },
    }
}

fn check_app_armor(errs: &mut Errors, path: &Path<'_>, owner: &Value, container: &str, profile: &str) {
    let mut found = false;
    each_container(owner.at("spec"), &Path::ROOT, |c, _| found |= c.str_at("name") == container);
    if !found {
        errs.invalid(path, container, "container not found");
    }
    if !matches!(profile, "" | "runtime/default" | "unconfined") && !profile.starts_with(LOCAL) {
        errs.invalid(path, profile, format!("invalid AppArmor profile name: {}", goprint::quote(profile)));
    }
}

/// Errors in profiles of a new pod or of a template (its specification stands at `path`) that stand both in an
/// annotation and in a field, and differ.
pub fn check_agree(errs: &mut Errors, path: &Path<'_>, owner: &Value) {
    let spec = owner.at("spec");
    let context = path.child("securityContext");
    let pod_profile = spec.at("securityContext.seccompProfile");
    if let Some(text) = annotation(owner, POD_SECCOMP) {
        agree(errs, &context.child("seccompProfile"), "seccomp", pod_profile, text);
    }
    each_container(spec, path, |container, p| {
        let key = format!("{SECCOMP}{}", container.str_at("name"));
        if let Some(text) = annotation(owner, &key) {
            let p = p.child("securityContext");
            let profile = container.at("securityContext.seccompProfile");
            agree(errs, &p.child("seccompProfile"), "seccomp", profile, text);
        }
    });
    if spec.str_at("os.name") == "windows" {
        return;
    }
    each_container(spec, path, |container, p| {
        let key = format!("{APP_ARMOR}{}", container.str_at("name"));
        if let Some(text) = annotation(owner, &key) {
            let p = p.child("securityContext");
            let profile = match container.at("securityContext.appArmorProfile") {
                Value::Null => spec.at("securityContext.appArmorProfile"),
                own => own,
            };
            agree(errs, &p.child("appArmorProfile"), "apparmor", profile, text);
        }
    });
}

fn agree(errs: &mut Errors, path: &Path<'_>, what: &str, profile: &Value, text: &str) {
    let kind = profile.str_at("type");
    let file = text.strip_prefix(LOCAL);
    let same_kind = match kind {
        "Unconfined" => text == "unconfined",
        "RuntimeDefault" => text == "runtime/default" || (what == "seccomp" && text == "docker/default"),
        "Localhost" => file.is_some(),
        _ => true,
    };
    if !same_kind {
        errs.push(FieldError::forbidden(
            &path.child("type"),
            format!("{what} type in annotation and field must match"),
        ));
    } else if kind == "Localhost" && file != profile.str_opt("localhostProfile") {
        errs.push(FieldError::forbidden(
            &path.child("localhostProfile"),
            format!("{what} profile in annotation and field must match"),
        ));
    }
}
