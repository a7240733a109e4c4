//! `VolumeAttachment`.

use serde_json::Value;
use yare_schema::field::{FieldError, Path};

use super::inline;
use crate::{
    check::{Check, Errors},
    names,
    pod::volumes::check_driver_name,
    shown::ATTACHMENT,
    strategy::{Context, Strategy},
    view::View,
};

pub(super) struct VolumeAttachment;

const MAX_METADATA_B: usize = 256 * 1024;
const MAX_MESSAGE: usize = 1024;
const ONE_SOURCE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";

impl Strategy for VolumeAttachment {
    fn validate(&self, attachment: &Value, _ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = Errors::new();
        let (path, spec) = (Path::new("spec"), attachment.at("spec"));
        check_driver_name(&mut errs, &path.child("attacher"), spec.str_at("attacher"));
        let p = path.child("source");
        let name = spec.str_opt("source.persistentVolumeName");
        match (name, spec.has("source.inlineVolumeSpec")) {
            (None, false) => errs.required(&p, ONE_SOURCE),
            (Some(_), true) => errs.forbidden(&p, ONE_SOURCE),
            (Some(""), false) => {
                errs.required(
                    &p.child("persistentVolumeName"),
                    "must specify non empty persistentVolumeName",
                );
            }
            (Some(_), false) => {}
            (None, true) => {
                let p = p.child("inlineVolumeSpec");
                inline::check(&mut errs, &p, spec.at("source.inlineVolumeSpec"));
            }
        }
        let node = spec.str_at("nodeName");
        errs.each(&path.child("nodeName"), node, names::dns1123_subdomain(node));
        check_status(&mut errs, attachment.at("status"));
        if let Some(name) = name {
            errs.each(&p.child("persistentVolumeName"), name, names::dns1123_subdomain(name));
        }
        errs
    }

    fn validate_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        let mut errs = self.validate(new, ctx);
        errs.immutable_shown(&Path::new("spec"), new.at("spec"), old.at("spec"), ATTACHMENT);
        errs
    }

    fn validate_status_update(&self, new: &Value, old: &Value, ctx: &Context<'_>) -> Vec<FieldError> {
        self.validate_update(new, old, ctx)
    }

    fn has_status(&self) -> bool {
        true
    }

    fn status_leaves_metadata(&self) -> bool {
        true
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn check_status(errs: &mut Errors, status: &Value) {
    let path = Path::new("status");
    let size_b: usize =
        status.entries("attachmentMetadata").map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size_b > MAX_METADATA_B {
        errs.push(FieldError::too_long(&path.child("attachmentMetadata"), MAX_METADATA_B));
    }
    for field in ["attachError", "detachError"] {
        let (p, error) = (path.child(field), status.at(field));
        if error.str_at("message").len() > MAX_MESSAGE {
            // The limit that upstream tells here is the other one.
            errs.push(FieldError::too_long(&p.child("message"), MAX_METADATA_B));
        }
        if let Some(code) = error.int_opt("errorCode") {
            errs.in_range(&p.child("errorCode"), code, 0, i64::from(i32::MAX));
        }
    }
}
