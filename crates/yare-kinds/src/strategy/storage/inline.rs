//! The volume that stands in a `VolumeAttachment` itself: a `PersistentVolumeSpec` that says less than others.

use serde_json::Value;
use yare_schema::field::Path;

use crate::{
    check::{Check, Errors},
    pod::volumes::{SourceOf, as_second, check_network_source},
    strategy::core::{claim::check_access_modes, volume::SOURCES},
    view::View,
};

const NOT_HERE: &str = "may not be specified in the context of inline volumes";

/// Errors in an inline volume.
pub fn check(errs: &mut Errors, path: &Path<'_>, spec: &Value) {
    let forbid = |errs: &mut Errors, field: &str| {
        if spec.is_set(field) {
            errs.forbidden(&path.child(field), NOT_HERE);
        }
    };
    if spec.has("claimRef") {
        errs.forbidden(&path.child("claimRef"), NOT_HERE);
    }
    forbid(errs, "capacity");
    if !spec.has("csi") {
        errs.required(&path.child("csi"), "has to be specified in the context of inline volumes");
    }
    let (p, modes) = (path.child("accessModes"), spec.strings("accessModes"));
    if modes.is_empty() {
        errs.required(&p, "");
    }
    check_access_modes(errs, &p, &modes);
    if !matches!(spec.str_at("persistentVolumeReclaimPolicy"), "" | "Retain") {
        errs.forbidden(
            &path.child("persistentVolumeReclaimPolicy"),
            "may only be Retain in the context of inline volumes",
        );
    }
    if spec.has("nodeAffinity") {
        errs.forbidden(&path.child("nodeAffinity"), NOT_HERE);
    }
    let mut first = true;
    for kind in SOURCES.iter().filter(|kind| spec.has(kind)) {
        // A flexVolume beside another kind has never been an error.
        if !first && *kind != "flexVolume" {
            errs.forbidden(&path.child(as_second(kind)), "may not specify more than 1 volume type");
            continue;
        }
        first = false;
        check_network_source(errs, path, kind, spec.at(kind), SourceOf::PersistentVolume { name: "" });
        if *kind == "local" {
            errs.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
        }
    }
    if first {
        errs.required(path, "must specify a volume type");
    }
    forbid(errs, "storageClassName");
    if spec.str_opt("volumeMode").is_some_and(|mode| mode != "Filesystem") {
        errs.forbidden(
            &path.child("volumeMode"),
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        );
    }
}
